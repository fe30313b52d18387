"""`--import FILE`: the user's Python files, which are run first and may register methods."""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from dls.cli import UsageError
from dls.record.files import one_line

PREFIX = "dls_import_"
"""The first part of the module name of such a file."""


def add_flag(parser: argparse._ActionsContainer) -> None:
    """Add --import to a command line, or to a group of its options."""
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="FILE",
        action="append",
        default=[],
        help="run this Python file first, which may register methods (@dls.register)",
    )


def load(argv: Sequence[str]) -> UsageError | None:
    """Run the files that a command line imports, before the rest of it is parsed.

    The methods that they register have flags of their own. Returns the error of a file that cannot
    be run, of which all ranks must know.
    """
    try:
        for name in _named(argv):
            run(Path(name))
    except UsageError as error:
        return error
    return None


def _named(argv: Sequence[str]) -> Iterator[str]:
    for flag, value in zip(argv, [*argv[1:], ""], strict=False):  # no pair without arguments
        if flag == "--import":
            yield value
        elif flag.startswith("--import="):
            yield flag.partition("=")[2]


def run(path: Path) -> None:
    """Run a file as a module, once. UsageError."""
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    name = f"{PREFIX}{path.stem}_{digest}"
    there = sys.modules.get(name)
    if there is not None and getattr(there, "__file__", None) == str(path.resolve()):
        return
    if not path.is_file():
        raise UsageError(f"--import {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"--import {path}: it is no Python file; its name ends in .py")
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        words = f"{type(error).__name__}: {one_line(str(error))}"
        raise UsageError(f"--import {path}: {words}") from error
