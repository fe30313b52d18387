"""Run several command lines of a program under one mpirun; print what came of them, as JSON.

The first argument is the module whose `main` takes a command line, each other one a command line.
An outcome is `ranks`, a list of status, stdout and stderr of every rank, and `left`, the names that
lie in the current folder afterwards.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable

from dls.comm.world import World
from tests.mpi.many import code_is_read_once


def run(main: Callable[[list[str]], int], line: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(shlex.split(line))
    return status, out.getvalue(), err.getvalue()


def outcomes(module: str, lines: list[str]) -> None:
    main, comm, happened = importlib.import_module(module).main, World(), []
    with code_is_read_once():
        for line in lines:
            ranks = comm.allgather_objects(run(main, line))
            happened.append({"ranks": ranks, "left": sorted(os.listdir())})
    if comm.rank == 0:
        print(json.dumps(happened))


if __name__ == "__main__":
    outcomes(sys.argv[1], sys.argv[2:])
