"""`python -m dls.bench`: what selection and adjustment cost on this machine, everything side by side in one run.

A command measures rows and prints them as one table. All contenders of a row take turns within each repetition, so that whatever
else the machine does meets them alike; times are medians over the repetitions. To add a command, write a function that yields
rows (column to value) and name it in COMMANDS.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table
from threadpoolctl import threadpool_limits

from dls import backends, bench_model, models
from dls.backends import Backend
from dls.config import UsageError
from reference import methods
from reference.adjustment import Counts, Thresholds
from reference.ops import Vector

T = TypeVar("T")
Row = dict[str, Any]

NETWORKS = {"vgg16": ((3, 32, 32), 10), "resnet20": ((3, 32, 32), 10)}
"""Networks whose layers may stand for a size: shape of the images and number of classes (CIFAR-10's)."""
WARM_UP = 4
"""Steps before the clock runs: compilation, first thresholds, and a residual that holds what was not sent."""
WIDTH = 100
"""Columns of text that the tables need."""
TAIL = 3
"""Degrees of freedom of the gradients' Student distribution: heavy tails, as gradients have."""


# Gradients and layers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """Layers, k of each, and gradients that differ from step to step."""

    name: str
    sizes: Sequence[int]
    density: float
    noise: Vector
    scales: Vector

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each layer begins (L + 1)."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    def k(self) -> Counts:
        """Layer-wise Top-k's split of the budget (L)."""
        return methods.split_budget(methods.budget(sum(self.sizes), self.density), self.sizes)

    def gradient(self, step: int) -> Vector:
        """The gradient (n) of a step: the same noise, each time at other places, at each layer's own scale."""
        return np.roll(self.noise, step * 7_654_321) * self.scales


def workloads(names: Sequence[str], densities: Sequence[float]) -> Iterator[Workload]:
    """Each size at each density."""
    for name in names:
        sizes = layer_sizes(name)
        scales = np.repeat(np.random.default_rng(1).lognormal(0, 0.5, len(sizes)).astype(np.float32), sizes)
        noise = np.random.default_rng(0).standard_t(TAIL, sum(sizes)).astype(np.float32)
        for density in densities:
            yield Workload(name, sizes, density, noise, scales)


def layer_sizes(name: str) -> list[int]:
    """The layers of a network, or one layer of so many values."""
    if name not in NETWORKS:
        return [int(name)]
    shape, classes = NETWORKS[name]
    return [layer.size for layer in models.build(name, shape, classes, 0, backends.load("numpy").nn).layers]


# Contenders -----------------------------------------------------------------------------------------------------------------


@dataclass
class Selector:
    """Layer-wise selection by one backend: accumulate, choose, encode, clear; with or without the last thresholds as hints."""

    backend: Backend
    work: Workload
    hints: bool = True
    residual: Vector = field(init=False)
    thresholds: Thresholds = field(init=False)
    k: Counts = field(init=False)
    heads: list[Vector] = field(init=False)

    def __post_init__(self) -> None:
        self.residual = self.backend.ops.zeros(sum(self.work.sizes))
        self.thresholds, self.k = np.zeros(len(self.work.sizes)), self.work.k()

    def layers(self, flat: Vector) -> list[Vector]:
        """The layers of a flat vector (n), as views."""
        return np.split(flat, self.work.offsets[1:-1])

    def choose(self, gradient: Vector) -> list[NDArray[np.int64]]:
        """Choose and encode; the residual holds v afterwards. Returns the indices of each layer."""
        ops, hints = self.backend.ops, self.thresholds if self.hints else np.zeros_like(self.thresholds)
        index, values, self.thresholds, self.heads = ops.select_layers(self.residual, gradient, self.work.offsets, self.k, hints)
        cuts = np.cumsum(self.k)[:-1]
        chosen = np.split(index, cuts)
        for part, part_values, n in zip(chosen, np.split(values, cuts), self.work.sizes, strict=True):
            ops.encode(part, part_values, n)
        return chosen

    def clear(self, chosen: Sequence[NDArray[np.int64]]) -> None:
        """What was sent leaves the residual."""
        for layer, index in zip(self.layers(self.residual), chosen, strict=True):
            self.backend.ops.clear(layer, index)

    def step(self, gradient: Vector) -> None:
        """One training step's selection."""
        self.clear(self.choose(gradient))

    def adjust(self) -> Counts:
        """DLS(1)'s k for the next step, between `choose` and `clear`."""
        v, sizes = self.layers(self.residual), self.work.sizes
        inner = [float(t) for t, k, n in zip(self.thresholds, self.k, sizes, strict=True) if 0 < k < n]
        t = self.backend.adjustment.complete_thresholds(v, self.k, inner)
        k: Counts = self.backend.adjustment.adjust(v, self.k, t, 1, self.heads)
        return k


def torch_topk(work: Workload, threads: int) -> Callable[[Vector], None] | None:
    """torch.topk of every layer's magnitudes alone, without accumulating; None where torch is not installed."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    torch.set_num_threads(threads)
    counts = work.k().tolist()

    def step(gradient: Vector) -> None:
        for layer, k in zip(np.split(gradient, work.offsets[1:-1]), counts, strict=True):
            torch.topk(torch.from_numpy(layer).abs(), k, sorted=False)

    return step


def timed(times: list[float], call: Callable[..., T], *args: Any) -> T:
    """Make the call and note its seconds."""
    start = time.perf_counter()
    result = call(*args)
    times.append(time.perf_counter() - start)
    return result


def set_threads(backend: Backend, threads: int) -> None:
    """So many threads for the backend, and for the libraries beneath it."""
    threadpool_limits(threads)
    backend.ops.set_threads(threads)


# The commands ---------------------------------------------------------------------------------------------------------------


def select(options: argparse.Namespace) -> Iterator[Row]:
    """Time of one step's selection as a multiple of the floor, one `residual += gradient` on as many threads (topk: torch)."""
    fast, plain = backends.load(options.backend), backends.load("numpy")
    for work in workloads(options.sizes, options.densities):
        for threads in options.threads:
            set_threads(fast, threads)
            floor = fast.ops.zeros(sum(work.sizes))
            contenders: dict[str, Callable[[Vector], Any] | None] = {
                "floor": lambda gradient, floor=floor: fast.ops.accumulate(floor, gradient),  # type: ignore[misc]
                "numpy": Selector(plain, work).step,
                "cold": Selector(fast, work, hints=False).step,
                "steady": Selector(fast, work).step,
                "topk": torch_topk(work, threads),
            }
            yield _select_row(work, threads, contenders, options.steps)


def _select_row(work: Workload, threads: int, contenders: Mapping[str, Callable[[Vector], Any] | None], steps: int) -> Row:
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for step in range(WARM_UP + steps):
        gradient = work.gradient(step)
        for name, contender in contenders.items():
            if contender is not None:
                timed(times[name], contender, gradient)
    medians = {name: float(np.median(seconds[WARM_UP:])) if seconds else None for name, seconds in times.items()}
    floor, steady = medians["floor"], medians["steady"]
    assert floor is not None
    assert steady is not None
    row: Row = {"layers": work.name, "density": work.density, "threads": threads, "floor, ms": 1000 * floor}
    for name in ("steady", "cold", "numpy", "topk"):
        seconds = medians[name]
        row[f"{name} / floor"] = "not installed" if seconds is None else seconds / floor
        if name in ("numpy", "topk") and seconds is not None:
            row[f"{name} / steady"] = seconds / steady
    return row


def adjust(options: argparse.Namespace) -> Iterator[Row]:
    """Time that DLS(1)'s adjustment adds to one step, as a share of Layer-wise Top-k's selection."""
    backend, plain = backends.load(options.backend), backends.load("numpy")
    for work in workloads(options.sizes, options.densities):
        for threads in options.threads:
            set_threads(backend, threads)
            yield _adjust_row(work, threads, Selector(backend, work), Selector(backend, work), plain, options.steps)


def _adjust_row(work: Workload, threads: int, layerwise: Selector, dls: Selector, plain: Backend, steps: int) -> Row:
    times: dict[str, list[float]] = {name: [] for name in ("floor", "layerwise", "dls", "adjust", "numpy")}
    floor = dls.backend.ops.zeros(sum(work.sizes))
    for step in range(WARM_UP + steps):
        gradient = work.gradient(step)
        timed(times["floor"], dls.backend.ops.accumulate, floor, gradient)
        timed(times["layerwise"], layerwise.step, gradient)
        start = time.perf_counter()
        chosen = dls.choose(gradient)
        between = time.perf_counter()
        k = timed(times["adjust"], dls.adjust)
        slow = Selector(plain, work)
        slow.residual, slow.thresholds, slow.k, slow.heads = dls.residual, dls.thresholds, dls.k, dls.heads
        timed(times["numpy"], slow.adjust)
        after = time.perf_counter()
        dls.clear(chosen)
        times["dls"].append(between - start + time.perf_counter() - after)
        dls.k = k
    seconds = {name: float(np.median(all_[WARM_UP:])) for name, all_ in times.items()}
    return {
        "layers": work.name,
        "density": work.density,
        "threads": threads,
        "floor, ms": 1000 * seconds["floor"],
        "select, ms": 1000 * seconds["layerwise"],
        "select in dls, ms": 1000 * seconds["dls"],
        "adjust, ms": 1000 * seconds["adjust"],
        "adjust / select": seconds["adjust"] / seconds["layerwise"],
        "numpy / adjust": seconds["numpy"] / seconds["adjust"],
    }


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


def main(argv: list[str] | None = None) -> int:
    """Measure as the command line says. Exit status: 0 done, 2 bad usage."""
    try:
        options = build_parser().parse_args(argv)
        if options.json:
            options.json.write_text("[]\n", encoding="utf-8")  # what cannot be written shows before the hours of measuring
        command = COMMANDS[options.command]
        rows = list(command.rows(options))
    except (UsageError, backends.BackendMissing, ValueError) as error:
        print(f"dls.bench: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"dls.bench: cannot write {options.json}: {error.strerror}", file=sys.stderr)
        return 2
    show((command.rows.__doc__ or "").strip(), rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
