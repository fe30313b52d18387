"""The command line: what is asked for, and in which order it is done."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dls import backends
from dls.bench import contenders, model, network, selection
from dls.bench.selection import NETWORKS, Row
from dls.called import usage_name
from dls.cli import Parser, UsageError
from dls.comm import launcher
from dls.comm.errors import MissingMPI
from dls.program import memory, output
from dls.record import files
from dls.tasks import models
from dls.tools import reports
from dls.tools.hosts import HostsError, bits_per_second
from dls.tools.reports import Report

if TYPE_CHECKING:
    from dls.comm.world import World

T = TypeVar("T")


# The commands -------------------------------------------------------------------------------------


def _select(options: argparse.Namespace) -> Iterator[Row]:
    """Time of one step's selection as a multiple of the floor: one pass of `residual += gradient`,
    or as long a copy on a GPU.
    """
    backend = backends.load(options.backend)
    return selection.select(
        backend, options.sizes, options.densities, options.threads, options.steps
    )


def _adjust(options: argparse.Namespace) -> Iterator[Row]:
    """Time that DLS(1)'s adjustment adds to one step, as a share of Layer-wise Top-k's
    selection.
    """
    backend = backends.load(options.backend)
    return selection.adjust(
        backend, options.sizes, options.densities, options.threads, options.steps
    )


def _model(options: argparse.Namespace) -> Iterator[Row]:
    """Time of a training step's forward and backward pass, beside PyTorch's with the same threads
    where that is installed.
    """
    return model.measure(options.models, options.batch, options.threads, options.steps)


def _exchange(options: argparse.Namespace) -> Iterator[Row]:
    """The sparse allgather alone, under mpirun, beside the MPI library's Allgatherv of the same
    bytes and its dense Allreduce.
    """
    from dls.bench import exchange  # here, as it loads MPI, which other measurements can do without

    backend = backends.load(options.backend, options.comm.rank_on_node)
    return exchange.measure(options.comm, backend, options.sizes, options.densities, options.steps)


def _step(options: argparse.Namespace) -> Iterator[Row]:
    """A whole training step with each method, under mpirun: time, communication that was waited
    for, and bytes of a rank.
    """
    from dls.bench import step

    settings = {
        "density": options.density,
        "batch_size": options.batch,
        "threads": options.threads,
        "backend": options.backend,
    }
    return step.measure(options.comm, options.networks, options.methods, settings, options.steps)


def _network(options: argparse.Namespace) -> Iterator[Row]:
    """The same over networks of limited rate, on hosts that this machine plays itself (needs
    root).
    """
    lists = {"networks": options.networks, "methods": options.methods}
    single = ("density", "batch", "threads", "backend", "steps")
    step_options = [f"--{name}={','.join(items)}" for name, items in lists.items()]
    step_options += [f"--{name}={getattr(options, name)}" for name in single]
    return network.measure(options.rates, options.hosts, step_options)


def _network_summary(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """How DLS stands to its targets, and the chart."""
    reports.show("DLS and its targets; a missed one is named", list(network.judge(rows)))
    if options.chart:
        network.draw(rows, options.chart)


@dataclass(frozen=True)
class Command:
    """What yields the rows, what adds its own options with what it takes unless told otherwise, and
    what follows the table.

    `ranks`: it measures the ranks of mpirun, all of which call it, and yields its rows on rank 0.
    """

    rows: Callable[[argparse.Namespace], Iterator[Row]]
    options: Callable[[argparse.ArgumentParser], None]
    summary: Callable[[argparse.Namespace, Sequence[Row]], None] = lambda options, rows: None
    ranks: bool = False


# Command line -------------------------------------------------------------------------------------


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
        raise argparse.ArgumentTypeError(
            f"{text} is outside [1, {cores}], the cores of this machine"
        )
    return int(text)


def _density(text: str) -> float:
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is outside (0, 1]")
    return float(text)


def _size(text: str) -> str:
    if text not in NETWORKS and int(text) < 1:
        raise ValueError
    return text


def _model_name(text: str) -> str:
    if text not in models.names():
        raise ValueError
    return text


def _positive(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def _rate(text: str) -> str:
    if text != network.UNLIMITED:
        bits_per_second(text)
    return text


def _contender(text: str) -> str:
    try:
        contenders.settings_of(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _bench_network(text: str) -> str:
    if text not in contenders.NETWORKS:
        raise ValueError
    return text


def _selection_options(*default: str) -> Callable[[argparse.ArgumentParser], None]:
    """Options of what works on vectors of these sizes."""

    def add(sub: argparse.ArgumentParser) -> None:
        sizes = f"values of one layer, or {' or '.join(NETWORKS)}"
        sub.add_argument(
            "--sizes", type=_list_of(_size, sizes), default=list(default), metavar="N,…", help=sizes
        )
        _add_densities(sub)
        _add_backend(sub)
        _add_threads(sub)

    return add


def _model_options(sub: argparse.ArgumentParser) -> None:
    names = f"models: {', '.join(models.names())}"
    default = ["lenet", "vgg16", "resnet20"]
    sub.add_argument(
        "--models", type=_list_of(_model_name, names), default=default, metavar="NAME,…", help=names
    )
    sub.add_argument(
        "--batch", type=_positive, default=32, metavar="N", help="images of a step (default 32)"
    )
    _add_threads(sub)


def _exchange_options(sub: argparse.ArgumentParser) -> None:
    sizes = "values of the gradient"
    sub.add_argument(
        "--sizes",
        type=_list_of(_positive, sizes),
        default=[1_000_000, 25_600_000],
        metavar="N,…",
        help=sizes,
    )
    _add_densities(sub)
    _add_backend(sub)


def _step_options(sub: argparse.ArgumentParser) -> None:
    networks, methods = list(contenders.NETWORKS), list(contenders.CONTENDERS)
    words = "networks: resnet20, vgg16, or mlp with two hidden layers of 4096"
    sub.add_argument(
        "--networks",
        type=_list_of(_bench_network, words),
        default=networks,
        metavar="NAME,…",
        help=words,
    )
    words = (
        "methods; METHOD/at-end sends all after the backward pass, METHOD/N buckets of N values,"
        " METHOD/NAME=VALUE sets NAME"
    )
    sub.add_argument(
        "--methods", type=_list_of(_contender, words), default=methods, metavar="NAME,…", help=words
    )
    words = "share of the gradient that is sent (default 0.01)"
    sub.add_argument("--density", type=_density, default=0.01, metavar="X", help=words)
    sub.add_argument(
        "--batch",
        type=_positive,
        default=32,
        metavar="N",
        help="images of a rank's step (default 32)",
    )
    sub.add_argument(
        "--threads", type=_threads, default=1, metavar="N", help="threads of each rank (default 1)"
    )
    _add_backend(sub)


def _network_options(sub: argparse.ArgumentParser) -> None:
    _step_options(sub)
    rates, default = (
        "rates of all links, as tc writes them, or unlimited",
        ["100mbit", "1gbit", network.UNLIMITED],
    )
    sub.add_argument(
        "--rates", type=_list_of(_rate, rates), default=default, metavar="RATE,…", help=rates
    )
    hosts = "numbers of hosts, one rank on each"
    sub.add_argument(
        "--hosts", type=_list_of(_positive, hosts), default=[2, 4], metavar="N,…", help=hosts
    )
    sub.add_argument("--chart", type=Path, metavar="FILE", help="draw the steps to this picture")


def _add_densities(sub: argparse.ArgumentParser) -> None:
    words = "shares of the gradient that are sent"
    sub.add_argument(
        "--densities",
        type=_list_of(_density, words),
        default=[0.01, 0.001],
        metavar="X,…",
        help=words,
    )


def _add_backend(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--backend",
        choices=backends.names(),
        default=backends.default(),
        help="who computes (default %(default)s)",
    )


def _add_threads(sub: argparse.ArgumentParser) -> None:
    words = "numbers of threads"
    default = sorted({1, min(2, len(os.sched_getaffinity(0)))})
    sub.add_argument(
        "--threads", type=_list_of(_threads, words), default=default, metavar="N,…", help=words
    )


COMMANDS = {
    "select": Command(_select, _selection_options("1000000", "25600000", "vgg16", "resnet20")),
    "adjust": Command(_adjust, _selection_options("vgg16")),
    "model": Command(_model, _model_options),
    "exchange": Command(_exchange, _exchange_options, ranks=True),
    "step": Command(_step, _step_options, ranks=True),
    "network": Command(_network, _network_options, _network_summary),
}


def build_parser() -> argparse.ArgumentParser:
    """The command line of `python -m dls.bench`."""
    parser = Parser(prog=usage_name("bench"), description="Measure on this machine.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        text = (command.rows.__doc__ or "").strip()
        sub = commands.add_parser(name, help=text, description=text)
        command.options(sub)
        sub.add_argument(
            "--steps",
            type=_positive,
            default=7,
            metavar="N",
            help="steps measured of each row (default 7)",
        )
        reports.add_options(sub)
    return parser


def _measure(options: argparse.Namespace) -> Sequence[Row]:
    """The command's rows; the files that were asked for have them as soon as they are there."""
    rows: list[Row] = []
    report = None
    for row in COMMANDS[options.command].rows(options):
        rows.append(row)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
        if options.report:
            report = report or Report.begin(
                options.report, options.command, getattr(options, "backend", "numpy")
            )
            report.write(rows, complete=False)
    return rows


def _check_chart(options: argparse.Namespace) -> None:
    """UsageError, before any measuring, where the chart cannot be written."""
    chart = getattr(options, "chart", None)
    if chart and (obstacle := files.obstacle(chart)):
        raise UsageError(f"--chart {chart}: {obstacle}")


def _finish(options: argparse.Namespace, rows: Sequence[Row]) -> None:
    """Print the table and whatever follows it; write the report."""
    command = COMMANDS[options.command]
    reports.show((command.rows.__doc__ or "").strip(), rows)
    command.summary(options, rows)
    if options.report:
        backend = getattr(options, "backend", "numpy")
        print(f"written to {reports.write(options.report, options.command, backend, rows)}")


def _ranks(command: str) -> World | None:
    """The ranks that a command of this name measures. UsageError where there are none."""
    if not COMMANDS[command].ranks:
        return None
    from dls.comm.world import World  # here, as it loads MPI

    try:
        comm = World()
    except MissingMPI as error:
        raise UsageError(str(error)) from None
    if words := launcher.alone(comm.size, comm.library, os.environ):
        raise UsageError(words)
    return comm


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says. Exit status: 0 done, 2 bad usage."""
    rank = 0 if launcher.speaks(os.environ) else 1  # until MPI tells it
    try:
        with output.unheard():
            options = build_parser().parse_args(argv)
            options.comm = _ranks(options.command)
            rank = options.comm.rank if options.comm else 0
            memory.keep_freed()
            reports.prepare(options)
            _check_chart(options)
            rows = _measure(options)
            if rank == 0:
                _finish(options, rows)
    except (UsageError, HostsError, backends.BackendMissing, ValueError) as error:
        return _refuse(str(error), rank)
    except OSError as error:
        return _refuse(f"cannot write {files.described(error)}", rank)
    return 0


def _refuse(words: str, rank: int) -> int:
    """Status 2, and one line from one rank."""
    if rank == 0:
        print(f"dls.bench: {words}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # whatever was set up is taken down
    sys.exit(main())
