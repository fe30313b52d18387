"""Starting ranks from a test."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dls.tools.programs import mpirun
from tests.mpi import many

ROOT = Path(__file__).parent.parent
TIMEOUT = 500
OPEN_MPI = {
    "OMPI_ALLOW_RUN_AS_ROOT": "1",
    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
"""What Open MPI wants before it starts ranks in a container, and more ranks than cores; other
libraries do not look.
"""

FRAME = re.compile(r"^-{70,}\n.*?^-{70,}\n", re.MULTILINE | re.DOTALL)
"""Open MPI's mpirun frames what it says of its own when a rank ends with another status than 0, and
ends it with a NUL.
"""


@dataclass(frozen=True)
class Finished:
    """A program that ended."""

    status: int
    out: str
    err: str


Programs = Sequence[tuple[int, Sequence[str | Path]]]


def launch(
    programs: Programs, cwd: Path, threads: str = "1", options: Sequence[str] = ()
) -> Finished:
    """Start and wait for the end."""
    return finish(start(programs, cwd, threads, options))


def start(
    programs: Programs, cwd: Path, threads: str = "1", options: Sequence[str] = ()
) -> subprocess.Popen[str]:
    """mpirun OPTIONS… -n RANKS python ARGS… [: -n RANKS python ARGS…], BLAS with so many threads; 0
    ranks: without mpirun.
    """
    command: list[str] = []
    for ranks, args in programs:
        command += (
            ([":"] if command else [])
            + (["-n", str(ranks)] if ranks else [])
            + [sys.executable, *map(str, args)]
        )
    if programs[0][0]:
        command = [mpirun(), *options, *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": threads} | OPEN_MPI
    return subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def train_all(ranks: int, commands: Iterable[str], cwd: Path) -> Finished:
    """Train under one mpirun, one command line of dls.train after the other; each ends well."""
    done = launch([(ranks, [ROOT / "tests" / "mpi" / "many.py", *commands])], cwd)
    assert done.status == 0, done.err
    return done


def work_all(workers: int, commands: Iterable[str]) -> None:
    """Train as workers of this process, one command line after the other; each ends well.

    Sparse methods have the bits of ranks, as tests/mpi/test_workers.py holds.
    """
    many.train_all(f"{command} --workers {workers}" for command in commands)


@dataclass(frozen=True)
class Outcome:
    """What came of one of several command lines.

    statuses: of every rank; out, err: what all of them said; left: the names in the folder.
    """

    statuses: list[int]
    out: str
    err: str
    left: list[str]


def outcomes(ranks: int, module: str, commands: Iterable[str], cwd: Path) -> list[Outcome]:
    """Run a program's command lines one after the other under one mpirun.

    What ends all ranks, as a failed run does, needs an mpirun of its own.
    """
    program = ROOT / "tests" / "mpi" / "outcomes.py"
    done = launch([(ranks, [program, module, *commands])], cwd)
    assert done.status == 0, done.err
    happened = json.loads(done.out)
    said = [list(zip(*outcome["ranks"], strict=True)) for outcome in happened]
    return [
        Outcome(list(statuses), "".join(out), "".join(err), outcome["left"])
        for (statuses, out, err), outcome in zip(said, happened, strict=True)
    ]


def finish(program: subprocess.Popen[str]) -> Finished:
    """Wait for the end of a program that was started."""
    with program:
        try:
            out, err = program.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            program.kill()
            raise
    return Finished(program.returncode, out, FRAME.sub("", err).replace("\0", ""))


def wait_until(
    condition: Callable[[], bool], seconds: float, program: subprocess.Popen[Any] | None = None
) -> bool:
    """Look again and again until the condition holds, and at most so many seconds or until the
    program ends; whether it holds.
    """
    deadline = time.monotonic() + seconds
    while (
        not (holds := condition())
        and time.monotonic() < deadline
        and (program is None or program.poll() is None)
    ):
        time.sleep(0.001)
    return holds
