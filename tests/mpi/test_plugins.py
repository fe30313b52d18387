"""--import under mpirun: what fails ends all ranks in one line; how a stopped run goes on."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from dls.record import checkpoint
from tests.conftest import lines
from tests.launch import OPEN_MPI, ROOT, launch, outcomes
from tests.mpi.test_command_line import TINY, is_refused
from tests.tools.test_plugins import BROKEN, broken, write

ONE_RANK = """
import os
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK")) == "1":
    raise RuntimeError("only here")
"""


def test_what_cannot_be_imported_ends_all_ranks(tmp_path: Path) -> None:
    cases = {case: (f"--import {broken(tmp_path, case).name}", BROKEN[case][1]) for case in BROKEN}
    half = write(tmp_path / "half.py", "half")
    half.write_text(half.read_text() + ONE_RANK)
    cases["one rank"] = (
        "--import half.py --method half --knob 3",
        "--import half.py: RuntimeError: only here",
    )
    write(tmp_path / "own.py")
    cases["workers"] = (
        "--import own.py --method own --knob 3 --workers 2",
        "start it without mpirun",
    )
    write(
        tmp_path / "clash.py", "clash", "lr", "float", 0.7
    )  # the last one: it stays in these processes
    cases["clash"] = (
        "--import clash.py --method clash",
        "the method's setting 'lr' has the name of another setting or flag",
    )
    commands = [f"{shlex.join(TINY)} --steps 1 {line}" for line, _ in cases.values()]
    for outcome, (_, words) in zip(
        outcomes(2, "dls.train", commands, tmp_path), cases.values(), strict=True
    ):
        is_refused(outcome, words)


def test_one_rank_that_cannot_import_ends_mpirun(tmp_path: Path, train) -> None:
    half = write(tmp_path / "half.py", "half")
    half.write_text(half.read_text() + ONE_RANK)
    done = train(
        2, "--import", "half.py", *TINY, "--method", "half", "--steps", "1", "--out", "run"
    )
    assert done.status == 2
    assert lines(done.err) == ["dls.train: --import half.py: RuntimeError: only here"]
    assert not (tmp_path / "run").exists()


def test_ranks_whose_files_differ_are_named(tmp_path: Path) -> None:
    """As from a disk of their own with another copy."""
    for place in ("a", "b"):
        path = write(tmp_path / place / "own.py")
        path.write_text(f"{path.read_text()}# {place}\n")
    start = (
        "import os, sys; os.chdir({!r}); from dls.train import main; sys.exit(main(sys.argv[1:]))"
    )
    args = [
        *TINY,
        "--steps",
        "1",
        "--out",
        str(tmp_path / "run"),
        "--import",
        "own.py",
        "--method",
        "own",
    ]
    done = launch(
        [(1, ["-c", start.format(str(tmp_path / place)), *args]) for place in ("a", "b")], tmp_path
    )
    assert done.status == 2
    (line,) = lines(done.err)
    assert "rank 1 differs from rank 0 in code version" in line


STOPS = """
import os, signal
from dls.comm import launcher
begin = Own.begin
def stopping(self, finished):
    if finished == 1 and self.net.rank == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    begin(self, finished)
Own.begin = stopping
"""


@pytest.mark.parametrize(
    ("ranks", "flags"),
    [(2, ["--import=my own.py"]), (0, ["--import", "my own.py", "--workers", "2"])],
)
def test_the_command_that_goes_on_keeps_imports_and_workers(
    ranks: int, flags: list[str], tmp_path: Path, train
) -> None:
    path = write(tmp_path / "my own.py")
    path.write_text(path.read_text() + STOPS)
    done = train(
        ranks, *flags, *TINY, "--method", "own", "--knob", "3", "--steps", "9", "--out", "run"
    )
    assert done.status == os.EX_TEMPFAIL, done.err
    (command,) = re.findall(r"go on with (.*)", done.out)
    assert ("--workers 2" in command) == (ranks == 0)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    again = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment | OPEN_MPI,
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 0, (command, again.stderr)
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert (found.step, found.world_size) == (9, 2)
    assert "bits may differ" not in again.stdout
