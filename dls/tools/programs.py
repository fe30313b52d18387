"""This Python, and the mpirun that belongs to it, as the beginning of a command."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from dls.cli import UsageError


def python() -> list[str]:
    """This Python, with its option -P (no modules from the current folder) where it has that."""
    return [sys.executable, *(["-P"] if sys.flags.safe_path else [])]


def mpirun() -> str:
    """The mpirun beside this Python, or else that of the path. UsageError where there is none."""
    beside = Path(sys.executable).parent / "mpirun"
    program = str(beside) if beside.exists() else shutil.which("mpirun")
    if program is None:
        raise UsageError("there is no mpirun: pip install mpich")
    return program
