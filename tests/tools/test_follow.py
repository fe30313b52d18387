"""Watching a run: what is new is said once, and the end is the end of its writer."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from dls.inspect import __main__ as inspect
from dls.inspect import follow
from dls.record.lock import Lock
from dls.record.writer import Writer
from tests.launch import ROOT, finish, start, wait_until
from tests.tools.test_inspect import header, rows, write

FAR = 60.0
"""Seconds; nothing here lasts so long."""


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "EVERY", 0.001)


@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_is_followed_to_its_end(terminal: bool, tmp_path: Path) -> None:
    """Here the writer is a thread of this program, which goes on when the last words were heard."""
    own = Lock()
    own.take(tmp_path)
    writer = Writer(tmp_path / "trace.h5", header())
    with (tmp_path / "out.txt").open("w+") as file:
        console = Console(file=file, force_terminal=terminal, width=400, height=60, highlight=False)
        watching = threading.Thread(target=follow.follow, args=([tmp_path], console))
        watching.start()
        text = tmp_path / "out.txt"

        def heard(words: str) -> bool:
            return wait_until(lambda: (file.flush(), words in text.read_text())[1], FAR)

        assert heard("nothing recorded yet")
        for step in (1, 2, 3):
            writer.append("steps", rows([step], loss=float(step)))
            assert heard(f"step {step}, loss {step}.0000")
            assert watching.is_alive()
        writer.evaluation(3, 0.5, 0.875)
        writer.close()
        own.release()
        watching.join(FAR)
        assert not watching.is_alive()
        said = text.read_text()
    assert "accuracy 87.50%" in said
    if not terminal:
        lines = said.splitlines()
        assert len(lines) == len(set(lines))
        assert "\x1b" not in said


def test_a_run_that_is_over_is_shown_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [write(tmp_path / name / "trace.h5", rows([1, 2])) for name in ("one", "two")]
    assert inspect.main([*map(str, folders), "--follow"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in out[:2]] == ["one", "two"]
    assert out[3].split() == ["one", "two"]


def test_it_ends_with_a_writer_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, time\nfrom tests.tools.test_inspect import header, rows\n"
        "from dls.record import lock\nfrom dls.record.writer import Writer\n"
        "own = lock.Lock(); own.take(pathlib.Path(sys.argv[1]).parent)\n"
        "w = Writer(pathlib.Path(sys.argv[1]), header())\nw.append('steps', rows([1, 2]))\n"
        "print('there', flush=True)\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "trace.h5")]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "there\n"
        watching = start([(0, ["-m", "dls.inspect", "--follow", tmp_path])], tmp_path)
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("step 2, loss 1.0000")
        writer.kill()
        writer.wait()
        done = finish(watching)
    assert done.status == 0
    assert "Time of a step" in done.out
    assert "was killed; --repair" in done.err
    assert done.err.count("\n") == 1


def test_after_ctrl_c_it_says_what_it_always_says(tmp_path: Path) -> None:
    own = Lock()
    own.take(tmp_path)
    writer = Writer(tmp_path / "trace.h5", header())
    watching = start([(0, ["-m", "dls.inspect", "--follow", tmp_path])], tmp_path)
    assert watching.stdout is not None
    assert watching.stdout.readline() == "nothing recorded yet\n"
    watching.send_signal(signal.SIGINT)
    done = finish(watching)
    assert (done.status, done.err) == (0, "")
    assert "recorded        0" in done.out
    assert done.out.endswith("nothing recorded yet\n")
    writer.close()
    own.release()


@pytest.mark.parametrize("option", ["--json", "--repair"])
def test_what_it_does_not_go_with(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(tmp_path), "--follow", option]) == 2
    assert "--follow goes with neither" in capsys.readouterr().err


def test_nothing_to_follow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(tmp_path), "--follow"]) == 2
    assert "holds no trace.h5" in capsys.readouterr().err
