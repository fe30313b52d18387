"""The commands of `python -m dls.bench`: what each measures, and its options."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dls import backends
from dls.bench import adjust, model, select, torch_names
from dls.tasks import models
from dls.tools import networks, options, plotting, tables, variants
from dls.tools.hosts import UNLIMITED, bits_per_second
from dls.tools.options import Group
from dls.tools.rows import Row

Options = argparse.Namespace

RATES = ("100mbit", "1gbit", UNLIMITED)
"""The rates of links that are measured unless others are named."""


@dataclass(frozen=True)
class Command:
    """A command: its title, what yields its rows, and what adds its own options.

    summary: prints what follows the table. of_ranks: it measures the ranks of mpirun, all of which
    call it, and yields its rows on rank 0. check: refuses options before anything is measured.
    """

    title: str
    rows: Callable[[Options], Iterator[Row]]
    add_options: Callable[[argparse.ArgumentParser], None]
    summary: Callable[[Options, Sequence[Any]], None] = lambda given, rows: None
    of_ranks: bool = False
    check: Callable[[Options], None] = lambda given: None


# Measuring ----------------------------------------------------------------------------------------


def _select(given: Options) -> Iterator[Row]:
    backend = backends.load(given.backend)
    return select.measure(backend, given.sizes, given.densities, given.threads, given.steps)


def _adjust(given: Options) -> Iterator[Row]:
    backend = backends.load(given.backend)
    return adjust.measure(backend, given.sizes, given.densities, given.threads, given.steps)


def _model(given: Options) -> Iterator[Row]:
    return model.measure(given.models, given.batch, given.threads, given.steps)


def _exchange(given: Options) -> Iterator[Row]:
    from dls.bench import exchange  # here, as it loads MPI, which other commands can do without

    if given.fit:
        from dls.bench import calibrate

        return calibrate.measure(given.comm, given.fit, given.steps)
    backend = backends.load(given.backend, given.comm.rank_on_node)
    return exchange.measure(given.comm, backend, given.sizes, given.densities, given.steps)


def _step(given: Options) -> Iterator[Row]:
    from dls.bench import step  # here, as it loads the whole training program

    settings = {
        "density": given.density,
        "batch_size": given.batch,
        "threads": given.threads,
        "backend": given.backend,
    }
    return step.measure(given.comm, given.networks, given.methods, settings, given.steps)


def _network(given: Options) -> Iterator[Row]:
    from dls.bench import network

    lists = {"networks": given.networks, "methods": given.methods}
    of_step = [f"--{name}={','.join(items)}" for name, items in lists.items()]
    single = ("density", "batch", "threads", "backend", "steps")
    of_step += [f"--{name}={getattr(given, name)}" for name in single]
    return network.measure(given.rates, given.hosts, of_step)


def _network_summary(given: Options, rows: Sequence[Any]) -> None:
    """How DLS stands to its targets, and the chart."""
    from dls.bench import chart, targets

    title = "DLS and its targets: the last column names those that it misses"
    tables.show_rows(title, list(targets.judge(rows)))
    if given.chart:
        chart.draw(rows, given.chart)


def _torch(given: Options) -> Iterator[Row]:
    from dls.bench import torch_network

    places = [torch_network.Place(rate, hosts) for hosts in given.hosts for rate in given.rates]
    settings = {
        "density": given.density,
        "threads": given.threads,
        "rounds": given.steps,
        "block": given.block,
        "seconds": given.seconds,
    }
    done = torch_network.rows_in(given.resume) if given.resume else []
    return torch_network.measure(places, given.models, given.contenders, settings, done)


def _torch_summary(given: Options, rows: Sequence[Any]) -> None:
    """How DLS stands to its targets, the Markdown, and the chart of what was asked for."""
    from dls.bench import torch_network, torch_report, torch_targets

    steps = [row for row in rows if isinstance(row, torch_network.TorchRow)]
    tables.show_rows("DLS and its targets", list(torch_targets.judge(steps)))
    if given.markdown:
        torch_report.write_markdown(rows, given.markdown)
    if given.chart:
        torch_report.draw([row for row in steps if _is_asked_for(row, given)], given.chart)


def _is_asked_for(row: Any, given: Options) -> bool:
    """Whether it is one of those that the options name."""
    place = row.rate in given.rates and row.hosts in given.hosts
    return (
        place and f"{row.model}/{row.batch}" in given.models and row.contender in given.contenders
    )


def _check_torch(given: Options) -> None:
    """UsageError where PyTorch is missing, or the chart cannot be drawn or written."""
    from dls.bench import torch_network

    torch_network.check()
    _check_chart(given)


def _check_chart(given: Options) -> None:
    """UsageError where the chart cannot be drawn or written."""
    if given.chart:
        plotting.check_picture("--chart", given.chart)


# Options ------------------------------------------------------------------------------------------


def _selection_options(*default: str) -> Callable[[argparse.ArgumentParser], None]:
    """The options of what works on vectors of these sizes."""

    def add(parser: argparse.ArgumentParser) -> None:
        words = f"numbers of values in one layer, or {' or '.join(networks.LAYERED)}"
        options.add_list(parser, "--sizes", _size, default, "N", words)
        options.add_densities(parser)
        options.add_backend(parser)
        options.add_thread_counts(parser)

    return add


def _size(text: str) -> str:
    if text not in networks.LAYERED:
        options.size(text)
    return text


def _model_options(parser: argparse.ArgumentParser) -> None:
    names = models.names()
    default = ("lenet", "vgg16", "resnet20")
    words = f"models of {', '.join(names)}"
    options.add_list(parser, "--models", options.one_of(names), default, "NAME", words)
    options.add_batch(parser)
    options.add_thread_counts(parser)


def _exchange_options(parser: argparse.ArgumentParser) -> None:
    default, words = (1_000_000, 25_600_000), "values of the gradient"
    options.add_list(parser, "--sizes", options.size, default, "N", words)
    options.add_densities(parser)
    options.add_backend(parser)
    words = "measure the network instead, and write it to FILE for dls.predict --network"
    parser.add_argument("--fit", type=Path, metavar="FILE", help=words)


def _step_options(parser: argparse.ArgumentParser) -> None:
    names = networks.TRAINED
    words = "networks: resnet20, vgg16, or mlp with two hidden layers of 4096"
    options.add_list(parser, "--networks", options.one_of(names), names, "NAME", words)
    words = (
        "methods; METHOD/at-end sends everything after the backward pass, METHOD/N sends buckets"
        " of N values, METHOD/NAME=VALUE has the setting NAME at VALUE"
    )
    compared = variants.COMPARED
    options.add_list(parser, "--methods", variants.check, compared, "METHOD", words)
    words = "share of the gradient that is sent"
    options.add_number(parser, "--density", options.density, 0.01, "X", words)
    options.add_batch(parser)
    options.add_number(parser, "--threads", options.threads, 1, "N", "threads of each rank")
    options.add_backend(parser)


def _network_options(parser: argparse.ArgumentParser) -> None:
    _step_options(parser)
    group = parser.add_argument_group("network")
    _add_link_options(group)
    words = "also draw the step times to FILE: .png, .pdf, .svg"
    group.add_argument("--chart", type=Path, metavar="FILE", help=words)


def _torch_options(parser: argparse.ArgumentParser) -> None:
    words = "models and the batch of a rank: resnet18, gpt or mlp"
    default = ("resnet18/4", "resnet18/32", "gpt/4", "mlp/32")
    options.add_list(parser, "--models", torch_names.model_and_batch, default, "NAME/BATCH", words)
    words = (
        "what is compared: none (no communication), ddp, ddp/fp16, ddp/powersgd=R, ddp/topk=X,"
        " each with /bucket_mb=N, or METHOD, METHOD/NAME=VALUE"
    )
    names = torch_names.DEFAULT
    options.add_list(parser, "--contenders", torch_names.check, names, "NAME", words)
    words = "share of the gradient that our sparse methods send"
    options.add_number(parser, "--density", options.density, 0.01, "X", words)
    options.add_number(parser, "--threads", options.threads, 1, "N", "threads of each rank")
    words = "steps that each takes in a row; --steps counts such rounds"
    options.add_number(parser, "--block", options.positive, 3, "N", words)
    words = "train each for so many seconds instead, and show what it has learned"
    options.add_number(parser, "--seconds", options.seconds, 0.0, "S", words)
    group = parser.add_argument_group("network")
    words = "rates of all links, as tc writes them, unlimited, or memory: no hosts, one machine"
    options.add_list(group, "--rates", _rate_or_memory, RATES, "RATE", words)
    words = "numbers of hosts, with one rank on each"
    options.add_list(group, "--hosts", options.size, (2,), "N", words)
    words = "begin with the rows of FILE, as --json or --report wrote it, and measure the others"
    parser.add_argument("--resume", type=Path, metavar="FILE", help=words)
    words = "also write the tables to FILE, as Markdown"
    parser.add_argument("--markdown", type=Path, metavar="FILE", help=words)
    words = "also draw the step times to FILE, without other rows of --resume: .png, .pdf, .svg"
    parser.add_argument("--chart", type=Path, metavar="FILE", help=words)


def _rate_or_memory(text: str) -> str:
    return text if text == torch_names.MEMORY else _rate(text)


def _add_link_options(group: Group) -> None:
    words = f"rates of all links, as tc writes them, or {UNLIMITED}"
    options.add_list(group, "--rates", _rate, RATES, "RATE", words)
    words = "numbers of hosts, with one rank on each"
    options.add_list(group, "--hosts", options.size, (2, 4), "N", words)


def _rate(text: str) -> str:
    if text != UNLIMITED:
        bits_per_second(text)
    return text


COMMANDS = {
    "select": Command(
        "A training step's selection, as a multiple of the floor: the least time that the memory"
        " allows, that of `residual += gradient` or of as long a copy on a GPU.",
        _select,
        _selection_options("1000000", "25600000", "vgg16", "resnet20"),
    ),
    "adjust": Command(
        "What DLS(1)'s adjustment adds to a training step, as a share of Layer-wise Top-k's"
        " selection.",
        _adjust,
        _selection_options("vgg16"),
    ),
    "model": Command(
        "The forward and backward pass of a training step, with each backend and, where PyTorch is"
        " installed, with that on as many threads.",
        _model,
        _model_options,
    ),
    "exchange": Command(
        "Under mpirun: the sparse allgather, beside the MPI library's Allgatherv of the same bytes"
        " and its dense Allreduce.",
        _exchange,
        _exchange_options,
        of_ranks=True,
    ),
    "step": Command(
        "Under mpirun: whole training steps with each method: their time, the communication that"
        " ranks waited for, and the bytes that a rank sent.",
        _step,
        _step_options,
        of_ranks=True,
    ),
    "network": Command(
        "Training steps with each method over networks of limited rate, on hosts that this machine"
        " plays itself (needs root).",
        _network,
        _network_options,
        _network_summary,
        check=_check_chart,
    ),
    "torch": Command(
        "Training steps of PyTorch models over networks of limited rate, with DDP and its hooks and"
        " with our methods, on hosts that this machine plays itself (needs root).",
        _torch,
        _torch_options,
        _torch_summary,
        check=_check_torch,
    ),
}
"""The commands by their names."""
