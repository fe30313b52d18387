"""What a run tells its user: how fast it goes, whether it learns, and what to type next."""

from __future__ import annotations

import math
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dls.backends import Backend
from dls.program import guessing, invocation
from dls.program.pace import RECENT, Pace
from dls.program.progress import Reporter
from dls.tasks import data
from tests.launch import OPEN_MPI, ROOT, start, wait_until

FAR = 100.0
"""Seconds; nothing here lasts so long."""


def pace(total: int, ends: list[float]) -> Pace:
    pace = Pace(total)
    for step, end in enumerate(ends, start=1):
        pace.step(step, end)
    return pace


def test_the_speed_is_that_of_the_last_steps() -> None:
    """A first step that compiles for 30 s says nothing of the others, nor does a slow part of long
    ago.
    """
    assert str(pace(100, [30.0, 30.5, 31.0])) == "2.0 steps/s, 0:00:48 left"
    slow = [10.0 * step for step in range(20)]
    assert (
        pace(1000, slow + [slow[-1] + 0.25 * step for step in range(1, RECENT + 1)]).speed() == 4.0
    )


@pytest.mark.parametrize(
    ("total", "ends", "said"),
    [(9, [], ""), (9, [30.0], ""), (3, [1.0, 2.0, 3.0], "1.0 steps/s"), (9, [1.0, 1.0], "")],
)
def test_what_is_not_known_is_not_said(total: int, ends: list[float], said: str) -> None:
    assert str(pace(total, ends)) == said


@pytest.mark.parametrize(
    ("loss", "accuracy", "words"),
    [
        (2.0, 0.10, "accuracy of 10.00%"),
        (2.0, 0.13, "accuracy of 13.00%"),  # of 360 images, chance gives 13 % now and then
        (2.31, 0.50, "loss of 2.3100"),
        (math.nan, 0.50, "loss of nan"),
        (2.29, 0.20, ""),
    ],
)
def test_no_better_than_guessing(loss: float, accuracy: float, words: str) -> None:
    warning = guessing.warning(loss, accuracy, data.load("digits"), sparse=True)
    assert words in warning and bool(words) == bool(warning)


def test_what_to_try_fits_the_run() -> None:
    sparse, dense = (
        guessing.warning(9.0, 0.1, data.load("digits"), sparse) for sparse in (True, False)
    )
    assert re.findall(r"--[a-z-]+", sparse) == [
        "--lr",
        "--density",
        "--density-warmup",
        "--clip-norm",
    ]
    assert re.findall(r"--[a-z-]+", dense) == ["--lr", "--clip-norm"]


def test_the_warning_is_said_once_in_a_row_and_at_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reporter = Reporter("plain", 0, 4, quiet=False)
    for step, warning in enumerate(["guessing", "guessing", "", "guessing"], start=1):
        reporter.evaluation(step, 1, 2.0, 0.1, warning)
    reporter.done(Path("runs/x"), 1)
    warned = [line for line in capsys.readouterr().out.splitlines() if "guessing" in line]
    assert warned == ["so far, guessing", "warning: guessing"]


def test_compiling_is_announced(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from dls import backends, train

    def load(name: str, rank_on_node: int = 0) -> Backend:
        loaded = real("numpy", rank_on_node)
        return Backend(
            "numpy", loaded.ops, loaded.adjustment, loaded.wire, loaded.nn, compiled=False
        )

    real = backends.load
    monkeypatch.setattr(backends, "load", load)
    assert train.main(["--steps", "1", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said.index(train.COMPILING) == 1 and "step 1/1" in said[2]


@pytest.mark.parametrize("typed", ["python3", "./python", sys.executable])
def test_the_interpreter_is_named_as_it_was_typed(
    typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where that name leads to it; else by its path, as one that mpirun found on another host's
    path.
    """
    (tmp_path / "python").symlink_to("/bin/true")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "orig_argv", [typed, "-m", "dls.train"])
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.setattr(sys, "executable", str(Path(sys.executable).with_name("python3")))
    name = "python3" if typed == "python3" else sys.executable
    assert invocation.command("inspect") == [name, "-m", "dls.inspect"]


def test_without_a_launcher_a_single_rank_needs_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """And several, whose launcher is on another host, get a plain one."""
    monkeypatch.setattr(sys, "orig_argv", [sys.executable, "mine.py", "--seed", "1"])
    monkeypatch.setattr(sys, "argv", ["mine.py", "--seed", "1"])
    go_on = f"{shlex.quote(sys.executable)} mine.py --resume --out 'a run'"
    assert invocation.go_on(Path("a run"), 1) == go_on
    assert re.fullmatch(rf"\S*mpirun -n 3 {re.escape(go_on)}", invocation.go_on(Path("a run"), 3))


def typed(command: str, folder: Path) -> list[str]:
    """The lines that the command says where nobody has activated an environment."""
    options = {"cwd": folder, "env": {"PYTHONPATH": str(ROOT)} | OPEN_MPI, "timeout": FAR}
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_command_after_a_stop_and_that_at_the_end_work_as_typed(tmp_path: Path) -> None:
    args = [
        "-m",
        "dls.train",
        "--steps",
        "100000",
        "--eval-every",
        "1",
        "--lr",
        "0",
        "--out",
        "a run",
    ]
    program = start([(2, args)], tmp_path)
    out = program.stdout
    assert out and wait_until(lambda: "so far, " in out.readline(), FAR, program)
    program.send_signal(signal.SIGUSR1)
    *_, stopped, warning, go_on = program.communicate(timeout=FAR)[0].splitlines()
    assert program.returncode == 75
    assert warning.startswith("warning: a test ")
    step = re.search(r"^stopped after step (\d+)", stopped)
    assert step
    done = typed(go_on.removeprefix("go on with ") + f" --steps {step[1]}", tmp_path)
    page = typed(done[-1].removeprefix("look into it with "), tmp_path)
    assert any("accuracy" in line for line in page)
