"""Commands that the user can type next, made from how this program was started."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "prterun")
"""Programs that start ranks, whose command line ends with that of a rank."""
GENERATIONS = 3
"""How far above a rank its launcher may be: MPICH has a proxy in between."""


def python() -> str:
    """The interpreter for a command line, as the user typed it, where that name still leads to it;
    its whole path elsewhere.
    """
    return shlex.quote(_interpreter())


def _interpreter() -> str:
    typed = sys.orig_argv[0]
    found = shutil.which(typed)
    same = found is not None and os.path.abspath(found) == os.path.abspath(sys.executable)
    return typed if same else sys.executable


def go_on(out: Path, ranks: int) -> str:
    """The whole command that goes on with the run in that folder, on as many ranks."""
    kept = _kept(sys.argv[1:])
    processes = 1 if "--workers" in kept else ranks
    launcher = _launcher() or _plain_launcher(processes)
    flags = [*kept, "--resume", "--out", str(out)]
    return " ".join(
        [*map(shlex.quote, launcher), python(), *map(shlex.quote, [*_program(), *flags])]
    )


def _kept(arguments: Sequence[str]) -> list[str]:
    """The flags that no checkpoint keeps, and without which the run cannot go on."""
    kept: list[str] = []
    for text, after in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = text.partition("=")
        typed = value if equals else after
        if flag == "--import" or (flag == "--workers" and typed.strip("0")):  # 0 workers are ranks
            kept += [flag, typed]
    return kept


def _program() -> Sequence[str]:
    """What was given to the interpreter, without the program's own arguments."""
    own = len(sys.argv) - 1
    return sys.orig_argv[1 : len(sys.orig_argv) - own]


def _launcher() -> Sequence[str]:
    """mpirun and its options, as typed; nothing where no launcher on this host has this program in
    its command line.
    """
    process = os.getppid()
    for _ in range(GENERATIONS):
        try:
            command = Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8").split("\0")[:-1]
            process = _parent(process)
        except (OSError, UnicodeDecodeError):
            return []
        before, rank = command[: -len(sys.orig_argv)], command[-len(sys.orig_argv) :]
        if rank == sys.orig_argv and before and Path(before[0]).name in LAUNCHERS:
            return before
    return []


def _parent(process: int) -> int:
    """The process that started it. OSError where it has ended."""
    status = Path(f"/proc/{process}/stat").read_text(encoding="utf-8")
    return int(status.rpartition(")")[2].split()[1])  # the name in brackets may hold anything


def _plain_launcher(ranks: int) -> Sequence[str]:
    """mpirun beside the interpreter, or from the path; none for a single rank."""
    if ranks == 1:
        return []
    beside = Path(_interpreter()).with_name("mpirun")
    return [str(beside) if beside.parent.name and beside.exists() else "mpirun", "-n", str(ranks)]
