"""Runs that are asked to stop: all ranks end after the same step, with a checkpoint that goes on to
the same bits.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dls.record import checkpoint, reader
from tests.conftest import lines
from tests.launch import finish, launch, start, train_all
from tests.mpi.test_bits import loaded

COMMON = [
    "--density",
    "0.02",
    "--mlp-widths",
    "16",
    "--batch-size",
    "4",
    "--threads",
    "1",
    "--backend",
    "numpy",
]

ASKED = """
import os, signal, sys
from dls import train
from mpi4py import MPI
step = train._step
def asked(run, recorder, reporter, number):
    for place, name in enumerate(sys.argv[1].split(",")):
        if number == 7 + place and MPI.COMM_WORLD.rank == MPI.COMM_WORLD.size - 1:
            os.kill(os.getpid(), signal.Signals[name])
    step(run, recorder, reporter, number)
train._step = asked
sys.exit(train.main(sys.argv[2:]))
"""


def asked(folder: Path, ranks: int, signals: str, *args: str):
    """Train with the last rank getting these signals, one a step from step 7 on."""
    program = folder / "asked.py"
    program.write_text(ASKED)
    return launch([(ranks, [program, signals, *COMMON, *args])], folder)


@pytest.mark.parametrize(
    ("ranks", "signals", "method"),
    [
        (1, "SIGINT", "dls"),
        (2, "SIGINT,SIGTERM", "global-topk"),
        (3, "SIGTERM", "dls"),
        (3, "SIGUSR1", "dense"),
    ],
)
def test_one_rank_is_asked_and_all_stop_and_go_on(
    ranks: int, signals: str, method: str, tmp_path: Path
) -> None:
    args = ["--method", method, "--steps", "20", "--out"]
    stopped = asked(tmp_path, ranks, signals, *args, "run")
    assert stopped.status == os.EX_TEMPFAIL, stopped
    assert not lines(stopped.err)
    assert "stopped after step 8 of 20" in stopped.out
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert found.step == 8
    commands = [["--resume", "--out", "run"], [*COMMON, *args, "whole"]]
    train_all(ranks, map(shlex.join, commands), tmp_path)
    for one, two in zip(
        loaded(tmp_path / "run", ranks), loaded(tmp_path / "whole", ranks), strict=True
    ):
        assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert reader.read(tmp_path / "run" / "trace.h5").steps["step"].tolist() == list(range(1, 21))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_second_ctrl_c_stops_at_once(ranks: int, tmp_path: Path) -> None:
    done = asked(
        tmp_path, ranks, "SIGINT,SIGINT", "--steps", "20", "--checkpoint-every", "3", "--out", "run"
    )
    assert done.status == 1
    assert lines(done.err) == [f"dls.train: rank {ranks - 1}, step 8: interrupted"]
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert found.step == 6


def test_who_is_asked_at_the_last_step_is_done(tmp_path: Path) -> None:
    assert asked(tmp_path, 2, "SIGTERM", "--steps", "8", "--out", "run").status == 0


def begun(program: subprocess.Popen[str]) -> None:
    """Return when the run takes its steps."""
    assert program.stdout is not None
    assert "writing to run" in program.stdout.readline()
    time.sleep(0.3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_mpirun_passes_the_wish_on(number: signal.Signals, tmp_path: Path) -> None:
    program = start(
        [(2, ["-m", "dls.train", *COMMON, "--steps", "1000000", "--out", "run"])], tmp_path
    )
    begun(program)
    program.send_signal(number)
    done = finish(program)
    assert done.status == os.EX_TEMPFAIL, done
    assert not [line for line in lines(done.err) if line.startswith("dls.train")]
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert f"stopped after step {found.step} of 1000000" in done.out


def test_without_mpirun_too(tmp_path: Path) -> None:
    program = start(
        [(0, ["-m", "dls.train", *COMMON, "--steps", "1000000", "--out", "run"])], tmp_path
    )
    begun(program)
    program.send_signal(signal.SIGTERM)
    assert finish(program).status == os.EX_TEMPFAIL
