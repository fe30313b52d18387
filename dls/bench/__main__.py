"""The command line of `python -m dls.bench`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dls import backends
from dls.bench.commands import COMMANDS
from dls.called import usage_name
from dls.cli import Parser, UsageError
from dls.comm import launcher
from dls.comm.errors import MissingMPI
from dls.program import memory, output
from dls.record import files
from dls.tools import options, reports, tables
from dls.tools.reports import Report
from dls.tools.rows import Row

if TYPE_CHECKING:
    from dls.comm.world import World

STEPS = 7
"""Steps that are measured of each row, unless told otherwise."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m dls.bench`."""
    parser = Parser(prog=usage_name("bench"), description="Measure on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        below = commands.add_parser(name, help=command.title, description=command.title)
        command.add_options(below)
        words = "steps that are measured for each row"
        options.add_number(below, "--steps", options.positive, STEPS, "N", words)
        reports.add_options(below)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says. Exit status: 0 done, 2 bad usage."""
    rank = 0 if launcher.speaks(os.environ) else 1  # until MPI tells it
    try:
        with output.unheard():
            given = build_parser().parse_args(argv)
            given.comm = _ranks(given.command)
            rank = given.comm.rank if given.comm else 0
            memory.keep_freed()
            reports.prepare(given)
            COMMANDS[given.command].check(given)
            rows = _measure(given)
            if rank == 0:
                _finish(given, rows)
    except (backends.BackendMissing, ValueError) as error:
        return _refuse(str(error), rank)
    except OSError as error:
        return _refuse(f"cannot write {files.described(error)}", rank)
    return 0


def _ranks(command: str) -> World | None:
    """The ranks that a command measures, None for one that measures none.

    UsageError where there are no ranks.
    """
    if not COMMANDS[command].of_ranks:
        return None
    from dls.comm.world import World  # here, as it loads MPI

    try:
        comm = World()
    except MissingMPI as error:
        raise UsageError(str(error)) from None
    if words := launcher.alone(comm.size, comm.library, os.environ):
        raise UsageError(words)
    return comm


def _measure(given: argparse.Namespace) -> Sequence[Row]:
    """The command's rows; the files that were asked for hold each as soon as it is measured."""
    rows: list[Row] = []
    report = None
    for row in COMMANDS[given.command].rows(given):
        rows.append(row)
        if given.json:
            reports.write_json(rows, given.json)
        if given.report:
            report = report or Report.begin(given.report, given.command, _backend(given))
            report.write(rows, complete=False)
    return rows


def _finish(given: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Print the table and what follows it; write the complete report."""
    command = COMMANDS[given.command]
    tables.show_rows(command.title, rows)
    command.summary(given, rows)
    if given.report:
        path = reports.write(given.report, given.command, _backend(given), rows)
        print(f"written to {path}")


def _backend(given: argparse.Namespace) -> str:
    """The backend whose device names the report."""
    return getattr(given, "backend", "numpy")


def _refuse(words: str, rank: int) -> int:
    """Status 2, and one line from one rank."""
    if rank == 0:
        print(f"dls.bench: {words}", file=sys.stderr)
    return 2


def _end(*_: object) -> None:
    """End on SIGTERM as on any error, so that whatever was set up is taken down."""
    sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _end)
    sys.exit(main())
