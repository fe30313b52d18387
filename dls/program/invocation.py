"""Commands that the user can type next, in the way in which this program was started."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dls import called

LAUNCHERS = ("mpirun", "mpiexec", "mpiexec.hydra", "prterun")
"""Programs that start ranks. Their command line ends with that of a rank."""
GENERATIONS = 3
"""How many processes up from a rank its launcher may be: MPICH has a proxy in between."""


def _interpreter() -> str:
    """The interpreter as the user typed it, where that name leads to it; else its whole path."""
    typed = sys.orig_argv[0]
    found = shutil.which(typed)
    same = found is not None and os.path.abspath(found) == os.path.abspath(sys.executable)
    return typed if same else sys.executable


def command(name: str) -> list[str]:
    """The words that start another command of this program, such as "inspect"."""
    if called.by() == called.SCRIPT:
        return [_script(), name]
    module = ["dls", name] if called.by() else [f"dls.{name}"]
    return [_interpreter(), "-m", *module]


def _script() -> str:
    """The installed program as the user can type it: by its name where that leads to it."""
    path = sys.orig_argv[1]
    found = shutil.which(called.SCRIPT)
    same = found is not None and os.path.abspath(found) == os.path.abspath(path)
    return called.SCRIPT if same else path


def go_on(out: Path, ranks: int) -> str:
    """The whole command that goes on with the run in that folder, on as many ranks."""
    kept = _kept(sys.argv[1:])
    processes = 1 if "--workers" in kept else ranks
    launcher = _launcher() or _plain_launcher(processes)
    return shlex.join([*launcher, *_program(), *kept, "--resume", "--out", str(out)])


def _kept(arguments: Sequence[str]) -> list[str]:
    """The flags that a checkpoint does not hold, and that the run needs to go on."""
    kept: list[str] = []
    for text, after in zip(arguments, [*arguments[1:], ""], strict=True):
        flag, equals, value = text.partition("=")
        typed = value if equals else after
        if flag == "--import" or (flag == "--workers" and typed.strip("0")):  # 0 means ranks
            kept += [flag, typed]
    return kept


def _program() -> list[str]:
    """How this program was started, without its own arguments."""
    own = len(sys.argv) - 1
    words = sys.orig_argv[: len(sys.orig_argv) - own]
    if called.by() == called.SCRIPT:
        return [_script(), *words[2:]]
    return [_interpreter(), *words[1:]]


def _launcher() -> Sequence[str]:
    """mpirun and its options, as typed.

    Nothing where no launcher on this host has this program in its command line.
    """
    process = os.getppid()
    for _ in range(GENERATIONS):
        try:
            text = Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8")
            process = _parent(process)
        except (OSError, UnicodeDecodeError):
            return []
        words = text.split("\0")[:-1]
        if words and Path(words[0]).name in LAUNCHERS and (options := _before_rank(words)):
            return options
    return []


def _before_rank(words: Sequence[str]) -> Sequence[str]:
    """A launcher's command line up to that of this rank; nothing where it is another's."""
    rank = sys.orig_argv
    if called.by() == called.SCRIPT:  # its first line names the interpreter, not the user
        arguments = rank[2:]
        cut = len(words) - len(arguments)
        is_this = cut > 1 and Path(words[cut - 1]).name == Path(rank[1]).name
        return words[: cut - 1] if is_this and words[cut:] == arguments else []
    cut = len(words) - len(rank)
    return words[:cut] if cut > 0 and words[cut:] == rank else []


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
