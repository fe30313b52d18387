"""`python -m dls.bench`: what selection, adjustment and the network's layers cost on this machine, everything side by side.

A command measures rows and prints them as one table. To add one, write a function that yields rows (column to value) and name it
in COMMANDS.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from dls import backends, bench_model, bench_report, bench_selection, models
from dls.bench_selection import NETWORKS, Row
from dls.config import UsageError

T = TypeVar("T")

WIDTH = 100
"""Columns of text that the tables need."""


# The commands ---------------------------------------------------------------------------------------------------------------


def select(options: argparse.Namespace) -> Iterator[Row]:
    """Time of one step's selection as a multiple of the floor: one pass of `residual += gradient`, or as long a copy on a GPU."""
    backend = backends.load(options.backend)
    return bench_selection.select(backend, options.sizes, options.densities, options.threads, options.steps)


def adjust(options: argparse.Namespace) -> Iterator[Row]:
    """Time that DLS(1)'s adjustment adds to one step, as a share of Layer-wise Top-k's selection."""
    backend = backends.load(options.backend)
    return bench_selection.adjust(backend, options.sizes, options.densities, options.threads, options.steps)


def model(options: argparse.Namespace) -> Iterator[Row]:
    """Time of a training step's forward and backward pass, beside PyTorch's with the same threads where that is installed."""
    return bench_model.measure(options.models, options.batch, options.threads, options.steps)


@dataclass(frozen=True)
class Command:
    """What yields the rows, the sizes or models it takes unless told otherwise, and what adds its own options."""

    rows: Callable[[argparse.Namespace], Iterator[Row]]
    sizes: Sequence[str]
    options: Callable[[argparse.ArgumentParser, list[str]], None]



# Command line ---------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help")


def _list_of(convert: Callable[[str], T], words: str) -> Callable[[str], list[T]]:
    """An option's type: values with commas between them."""

    def parse(text: str) -> list[T]:
        try:
            return [convert(item.strip()) for item in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: expected {words}") from None

    return parse


def _threads(text: str) -> int:
    cores = len(os.sched_getaffinity(0))
    if not 1 <= int(text) <= cores:
        raise argparse.ArgumentTypeError(f"{text} is outside [1, {cores}], the cores of this machine")
    return int(text)


def _density(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is outside (0, 1]")
    return float(text)


def _size(text: str) -> str:
    if text not in NETWORKS and int(text) < 1:
        raise ValueError
    return text


def _model(text: str) -> str:
    if text not in models.names():
        raise ValueError
    return text


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _selection_options(sub: argparse.ArgumentParser, default: list[str]) -> None:
    sizes = f"values of one layer, or {' or '.join(NETWORKS)}"
    sub.add_argument("--sizes", type=_list_of(_size, sizes), default=default, metavar="N,…", help=sizes)
    densities = "shares of the gradient that are sent"
    sub.add_argument("--densities", type=_list_of(_density, densities), default=[0.01, 0.001], metavar="X,…", help=densities)
    sub.add_argument("--backend", choices=backends.names(), default="numba", help="who is measured (default numba)")


def _model_options(sub: argparse.ArgumentParser, default: list[str]) -> None:
    names = f"models: {', '.join(models.names())}"
    sub.add_argument("--models", type=_list_of(_model, names), default=default, metavar="NAME,…", help=names)
    sub.add_argument("--batch", type=_positive, default=32, metavar="N", help="images of a step (default 32)")


COMMANDS = {
    "select": Command(select, ("1000000", "25600000", "vgg16", "resnet20"), _selection_options),
    "adjust": Command(adjust, ("vgg16",), _selection_options),
    "model": Command(model, ("lenet", "vgg16", "resnet20"), _model_options),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m dls.bench`."""
    parser = _Parser(prog="python -m dls.bench", description="Measure on this machine.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = (command.rows.__doc__ or "").strip()
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        command.options(sub, list(command.sizes))
        threads = "numbers of threads"
        default = sorted({1, min(2, len(os.sched_getaffinity(0)))})
        sub.add_argument("--threads", type=_list_of(_threads, threads), default=default, metavar="N,…", help=threads)
        sub.add_argument("--steps", type=_positive, default=7, metavar="N", help="steps measured of each row (default 7)")
        sub.add_argument("--json", type=Path, metavar="FILE", help="write the rows there as well")
        words = "write the rows, and on what they were measured, to a file there that is named after the device"
        sub.add_argument("--report", type=Path, metavar="FOLDER", help=words)
    return parser


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the rows as one table."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        table.add_column("\n".join(column.split(" ")), justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    Console(width=max(WIDTH, Console().width)).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, str) and value.isdigit():
        return f"{int(value):,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _prepare(options: argparse.Namespace) -> None:
    """What cannot be written shows before the hours of measuring."""
    if options.json:
        options.json.write_text("[]\n", encoding="utf-8")
    if options.report:
        options.report.mkdir(parents=True, exist_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says. Exit status: 0 done, 2 bad usage."""
    try:
        options = build_parser().parse_args(argv)
        _prepare(options)
        command = COMMANDS[options.command]
        rows = list(command.rows(options))
    except (UsageError, backends.BackendMissing, ValueError) as error:
        print(f"dls.bench: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"dls.bench: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    show((command.rows.__doc__ or "").strip(), rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    if options.report:
        print(f"written to {bench_report.write(options.report, options.command, getattr(options, 'backend', 'numpy'), rows)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
