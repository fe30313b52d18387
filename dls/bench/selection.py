"""`python -m dls.bench select` and `adjust`: what a training step's selection costs, and DLS's
adjustment beside it.

All contenders of a row take turns within each repetition, so that whatever else the machine does
meets them alike; times are medians over the repetitions. A clock stops when a value of the result
has come back, so a device has done all its work by then.

The floor is what the memory allows. On a CPU it is one `residual += gradient`. On a GPU it is a
copy, on the device, of 6n bytes for n values: it reads 6n and writes 6n, together the 12n that
reading residual and gradient and writing the residual takes.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dls import backends
from dls.backends import Backend
from dls.exchange.methods.dls import with_rest
from dls.program import config
from dls.tasks import models
from reference import methods
from reference.adjustment import Counts, Thresholds
from reference.ops import Head, Selection, Vector

T = TypeVar("T")
Row = dict[str, Any]

NETWORKS = {"vgg16": ((3, 32, 32), 10), "resnet20": ((3, 32, 32), 10)}
"""Networks whose layers may stand for a size: shape of the images and number of classes
(CIFAR-10's).
"""
WARM_UP = 4
"""Steps before the clock runs: compilation, first thresholds, and a residual that holds what was
not sent.
"""
COPIES = 20
"""Copies of a turn of a GPU's floor: a single one takes less time than waiting for it."""
RESERVE = float(config.build({}).dls_reserve)
"""DLS's reserve, as it is by default."""
TAIL = 3
"""Degrees of freedom of the gradients' Student distribution: heavy tails, as gradients have."""


# Gradients and layers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """Layers, k of each, and gradients that differ from step to step."""

    name: str
    sizes: Sequence[int]
    density: float
    noise: Vector
    scales: Vector

    @property
    def n(self) -> int:
        """All values."""
        return sum(self.sizes)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each layer begins (L + 1)."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    def k(self) -> Counts:
        """Layer-wise Top-k's split of the budget (L)."""
        return methods.split_budget(methods.budget(self.n, self.density), self.sizes)

    def gradient(self, step: int) -> Vector:
        """The gradient (n) of a step: the same noise, each time at other places, at each layer's
        own scale.
        """
        return np.roll(self.noise, step * 7_654_321) * self.scales


def workloads(names: Sequence[str], densities: Sequence[float]) -> Iterator[Workload]:
    """Each size at each density."""
    for name in names:
        sizes = layer_sizes(name)
        scales = np.repeat(
            np.random.default_rng(1).lognormal(0, 0.5, len(sizes)).astype(np.float32), sizes
        )
        noise = np.random.default_rng(0).standard_t(TAIL, sum(sizes)).astype(np.float32)
        for density in densities:
            yield Workload(name, sizes, density, noise, scales)


def layer_sizes(name: str) -> list[int]:
    """The layers of a network, or one layer of so many values."""
    if name not in NETWORKS:
        return [int(name)]
    shape, classes = NETWORKS[name]
    return [
        layer.size
        for layer in models.build(name, shape, classes, 0, backends.load("numpy").nn).layers
    ]


# Contenders ---------------------------------------------------------------------------------------


def _as_it_is(gradient: Vector) -> Any:
    return gradient


def _no_wait() -> None:
    return


@dataclass(frozen=True)
class Contender:
    """Who takes turns.

    A turn is `step`, timed until `wait` returns, on what `put`, untimed, makes of the gradient.
    """

    step: Callable[[Any], Any]
    put: Callable[[Vector], Any] = _as_it_is
    wait: Callable[[], Any] = _no_wait
    steps: int = 1
    """How many steps one call of `step` takes."""

    def turn(self, gradient: Vector) -> float:
        """The seconds of one step on this gradient (n)."""
        ready = self.put(gradient)
        self.wait()
        start = time.perf_counter()
        self.step(ready)
        self.wait()
        return (time.perf_counter() - start) / self.steps


@dataclass
class Selector:
    """Layer-wise selection by one backend: accumulate, choose, encode, clear; with or without the
    last thresholds as hints.

    reserve: that of DLS, which `bring` chooses; 0 is Layer-wise Top-k.
    """

    backend: Backend
    work: Workload
    hints: bool = True
    reserve: float = 0.0
    residual: Vector = field(init=False)
    thresholds: Thresholds = field(init=False)
    k: Counts = field(init=False)
    sent: Counts = field(init=False)
    heads: list[Head] = field(init=False)

    def __post_init__(self) -> None:
        self.residual = self.backend.ops.zeros(self.work.n)
        self.thresholds, self.k = np.zeros(len(self.work.sizes)), self.work.k()

    def layers(self, flat: Vector) -> list[Vector]:
        """The layers of a flat vector (n), as views."""
        return [flat[start:stop] for start, stop in pairwise(self.work.offsets)]

    def choose(self, gradient: Vector) -> Selection:
        """Choose and encode; the residual holds v afterwards.

        Returns what was chosen of all layers together.
        """
        ops, hints = (
            self.backend.ops,
            self.thresholds if self.hints else np.zeros_like(self.thresholds),
        )
        self.sent = methods.own_k(self.k, self.reserve)
        chosen = ops.select_layers(
            self.residual, gradient, self.work.offsets, self.sent, hints, self.k
        )
        index, values, self.thresholds, self.heads = chosen
        self.backend.wire.encode(index, values, self.residual.size)
        return index, values

    def bring(self) -> Selection:
        """What the reserve brings, encoded: the largest of what `choose` has left."""
        ops, room = self.backend.ops, int(self.k.sum() - self.sent.sum())
        index, values = ops.top_k_of_rest(self.residual, self.work.offsets, self.heads, room)
        on_host = ops.to_host(index), ops.to_host(values)
        self.sent, self.thresholds = with_rest(
            self.sent, self.thresholds, self.work.offsets, *on_host
        )
        self.backend.wire.encode(index, values, self.residual.size)
        return index, values

    def clear(self, chosen: Selection) -> None:
        """What was sent leaves the residual."""
        self.backend.ops.scatter_subtract(self.residual, *chosen)

    def step(self, gradient: Vector) -> None:
        """One training step's selection."""
        self.clear(self.choose(gradient))

    def adjust(self) -> Counts:
        """DLS(1)'s k for the next step, between `bring` and `clear`."""
        v, sizes = self.layers(self.residual), self.work.sizes
        inner = [
            float(t) for t, k, n in zip(self.thresholds, self.sent, sizes, strict=True) if 0 < k < n
        ]
        t = self.backend.adjustment.complete_thresholds(v, self.sent, inner)
        k: Counts = self.backend.adjustment.adjust(v, self.sent, t, 1, self.heads)
        return k

    def wait(self) -> None:
        """Return when the residual is what it should be."""
        wait_for(self.backend, self.residual)

    def contender(self) -> Contender:
        """This selection, with gradients where the backend computes."""
        return Contender(self.step, self.backend.ops.from_host, self.wait)

    def on(self, other: Backend) -> Selector:
        """The same state in the hands of another backend."""
        twin = Selector(other, self.work)
        twin.thresholds, twin.k, twin.sent = self.thresholds, self.k, self.sent
        twin.residual = self._handed(self.residual, other)
        twin.heads = [
            head._replace(
                positions=self._handed(head.positions, other),
                values=self._handed(head.values, other),
            )
            for head in self.heads
        ]
        return twin

    def _handed(self, array: NDArray[Any], other: Backend) -> NDArray[Any]:
        moved: NDArray[Any] = other.ops.from_host(self.backend.ops.to_host(array))
        return moved


def wait_for(backend: Backend, array: Vector) -> None:
    """Return when the array (n > 0) is computed: a device hands out a value only after all that was
    asked of it before.
    """
    backend.ops.to_host(array[:1])


def floor(backend: Backend, n: int) -> Contender:
    """What the memory allows, see the top of this file."""
    if backend.on_host:
        total = backend.ops.zeros(n)
        return Contender(lambda gradient: backend.ops.accumulate(total, gradient))
    source, target = (backend.ops.zeros(-(-3 * n // 2)) for _ in range(2))

    def copy(_: Vector) -> None:
        for _turn in range(COPIES):
            target[...] = source

    return Contender(copy, wait=lambda: wait_for(backend, target), steps=COPIES)


def torch_topk(work: Workload, threads: int) -> Contender | None:
    """torch.topk of every layer's magnitudes alone, on the CPU, without accumulating; None where
    torch is not installed.
    """
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    torch.set_num_threads(threads)
    counts = work.k().tolist()

    def step(gradient: Vector) -> None:
        for layer, k in zip(np.split(gradient, work.offsets[1:-1]), counts, strict=True):
            torch.topk(torch.from_numpy(layer).abs(), k, sorted=False)

    return Contender(step)


def torch_on_card(work: Workload) -> Contender | None:
    """`torch_pipeline` on the GPU; None where torch is not installed with CUDA."""
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    return torch_pipeline(torch, work, torch.zeros(work.n, device="cuda"))


def torch_pipeline(torch: Any, work: Workload, residual: Any) -> Contender:
    """The whole selection as one writes it in PyTorch, layer by layer: accumulate, top-k, pack for
    the host, clear.

    residual: a float32 tensor (n), which lies where the work is to be done.
    """
    layers = list(zip(torch.split(residual, list(work.sizes)), work.k().tolist(), strict=True))

    def step(gradient: Any) -> None:
        residual.add_(gradient)
        for v, k in layers:
            index = torch.topk(v.abs(), k, sorted=False).indices
            torch.cat([index.int(), v[index].view(torch.int32)]).cpu()
            v[index] = 0

    return Contender(
        step,
        lambda gradient: torch.from_numpy(gradient).to(residual.device),
        lambda: residual[:1].cpu(),
    )


def set_threads(backend: Backend, threads: int) -> None:
    """So many threads for the backend, and for the libraries beneath it."""
    threadpool_limits(threads)
    backend.ops.set_threads(threads)


# The commands -------------------------------------------------------------------------------------


def select(
    backend: Backend,
    sizes: Sequence[str],
    densities: Sequence[float],
    threads: Sequence[int],
    steps: int,
) -> Iterator[Row]:
    """Yield a row per size, density and number of threads: the floor in ms, the others as multiples
    of it.
    """
    for work in workloads(sizes, densities):
        for count in threads:
            set_threads(backend, count)
            contenders = {
                name: one for name, one in _contenders(backend, work, count).items() if one
            }
            medians = _race(contenders, work, steps)
            row: Row = {"layers": work.name, "density": work.density, "threads": count}
            yield row | _ratios(medians, _contenders_of(backend))


def _contenders_of(backend: Backend) -> Sequence[str]:
    """Those beside the floor."""
    return (
        ("steady", "cold", "numpy", "topk")
        if backend.on_host
        else ("steady", "cold", "topk", "numba")
    )


def _contenders(backend: Backend, work: Workload, threads: int) -> Mapping[str, Contender | None]:
    """Who takes turns; numpy, slow on what a GPU is for, gives way to numba there."""
    others: dict[str, Callable[[], Contender | None]] = {
        "floor": lambda: floor(backend, work.n),
        "steady": lambda: Selector(backend, work).contender(),
        "cold": lambda: Selector(backend, work, hints=False).contender(),
        "topk": lambda: torch_topk(work, threads) if backend.on_host else torch_on_card(work),
        "numpy": lambda: Selector(backends.load("numpy"), work).contender(),
        "numba": lambda: _numba(work, threads),
    }
    return {name: others[name]() for name in ("floor", *_contenders_of(backend))}


def _numba(work: Workload, threads: int) -> Contender:
    """The numba backend on the CPU."""
    backend = backends.load("numba")
    set_threads(backend, threads)
    return Selector(backend, work).contender()


def _race(contenders: Mapping[str, Contender], work: Workload, steps: int) -> dict[str, float]:
    """Let all take turns; return each one's median seconds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for step in range(WARM_UP + steps):
        gradient = work.gradient(step)
        for name, contender in contenders.items():
            times[name].append(contender.turn(gradient))
    return {name: float(np.median(seconds[WARM_UP:])) for name, seconds in times.items()}


def _ratios(medians: Mapping[str, float], names: Sequence[str]) -> Row:
    """Milliseconds of the floor and of the steady selection; all as multiples of the floor, others
    of the steady one as well.
    """
    row: Row = {"floor, ms": 1000 * medians["floor"], "steady, ms": 1000 * medians["steady"]}
    for name in names:
        row[f"{name} / floor"] = (
            medians[name] / medians["floor"] if name in medians else "not installed"
        )
        if name not in ("steady", "cold") and name in medians:
            row[f"{name} / steady"] = medians[name] / medians["steady"]
    return row


def adjust(
    backend: Backend,
    sizes: Sequence[str],
    densities: Sequence[float],
    threads: Sequence[int],
    steps: int,
) -> Iterator[Row]:
    """Yield a row per size, density and number of threads: what DLS(1) adds, as shares of
    Layer-wise Top-k's selection.
    """
    for work in workloads(sizes, densities):
        for count in threads:
            set_threads(backend, count)
            yield {"layers": work.name, "density": work.density, "threads": count} | _adjust_row(
                backend, work, steps
            )


def _adjust_row(backend: Backend, work: Workload, steps: int) -> Row:
    times: dict[str, list[float]] = {
        name: [] for name in ("floor", "layerwise", "dls", "reserve", "adjust", "numpy")
    }
    least, dls, plain = (
        floor(backend, work.n),
        Selector(backend, work, reserve=RESERVE),
        backends.load("numpy"),
    )
    layerwise = Selector(backend, work).contender()
    for step in range(WARM_UP + steps):
        gradient = work.gradient(step)
        times["floor"].append(least.turn(gradient))
        times["layerwise"].append(layerwise.turn(gradient))
        for name, seconds in _dls_turn(dls, plain, backend.ops.from_host(gradient)).items():
            times[name].append(seconds)
    medians = {name: float(np.median(all_[WARM_UP:])) for name, all_ in times.items()}
    return {
        "floor, ms": 1000 * medians["floor"],
        "select, ms": 1000 * medians["layerwise"],
        "select in dls, ms": 1000 * medians["dls"],
        "reserve, ms": 1000 * medians["reserve"],
        "adjust, ms": 1000 * medians["adjust"],
        "reserve / select": medians["reserve"] / medians["layerwise"],
        "adjust / select": medians["adjust"] / medians["layerwise"],
        "numpy / adjust": medians["numpy"] / medians["adjust"],
    }


def _dls_turn(dls: Selector, plain: Backend, gradient: Vector) -> dict[str, float]:
    """The seconds of a step of DLS: selection, what the reserve brings, adjustment, and the same
    adjustment by the reference.
    """
    dls.wait()
    choosing, chosen = _timed(dls, dls.choose, gradient)
    bringing, more = _timed(dls, dls.bring)
    adjusting, k = _timed(dls, dls.adjust)
    slow = dls.on(plain)
    slowly, _ = _timed(slow, slow.adjust)
    clearing, _ = _timed(dls, dls.clear, chosen)
    dls.clear(more)
    dls.k = k
    return {"dls": choosing + clearing, "reserve": bringing, "adjust": adjusting, "numpy": slowly}


def _timed(selector: Selector, call: Callable[..., T], *args: Any) -> tuple[float, T]:
    """The seconds of the call, and what it returns."""
    start = time.perf_counter()
    result = call(*args)
    selector.wait()
    return time.perf_counter() - start, result
