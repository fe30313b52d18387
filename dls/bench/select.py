"""`python -m dls.bench select`: what a training step's selection costs.

The contenders of a row take turns; times are medians. A clock stops when a value of the result has
come back, so that a device has done all its work by then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from dls import backends
from dls.backends import Backend
from dls.bench import pytorch
from dls.bench.floor import floor
from dls.bench.selector import Selector
from dls.bench.timing import TimedStep, set_threads
from dls.bench.workload import Workload, workloads
from dls.tools import turns
from dls.tools.rows import Row, Title

NOT_INSTALLED = "not installed"
"""What stands in a row where a library is missing."""
HOST_OTHERS = ("numpy", "topk")
"""What is measured beside a backend that computes on the CPU."""
DEVICE_OTHERS = ("topk", "numba")
"""What is measured beside a backend that computes on a GPU."""
Ratio = float | str
"""A ratio of two times, or NOT_INSTALLED."""


@dataclass(frozen=True)
class SelectionRow(Row):
    """Times of the selection by one workload: as multiples of the floor, and of `steady`.

    steady: with the last thresholds as hints; cold: without them; topk: PyTorch's. Which others
    there are depends on where the backend computes.
    """

    layers: str
    density: float
    threads: int
    floor_ms: Annotated[float, Title("floor, ms")]
    steady_ms: Annotated[float, Title("steady, ms")]
    steady: Annotated[float, Title("steady / floor")]
    cold: Annotated[float, Title("cold / floor")]
    numpy: Annotated[Ratio | None, Title("numpy / floor")] = None
    numpy_by_steady: Annotated[float | None, Title("numpy / steady")] = None
    topk: Annotated[Ratio | None, Title("topk / floor")] = None
    topk_by_steady: Annotated[float | None, Title("topk / steady")] = None
    numba: Annotated[Ratio | None, Title("numba / floor")] = None
    numba_by_steady: Annotated[float | None, Title("numba / steady")] = None


def measure(
    backend: Backend,
    sizes: Sequence[str],
    densities: Sequence[float],
    threads: Sequence[int],
    steps: int,
) -> Iterator[SelectionRow]:
    """Yield a row for each size, density and number of threads."""
    for work in workloads(sizes, densities):
        for count in threads:
            set_threads(backend, count)
            yield _row(backend, work, count, _medians(backend, work, count, steps))


def _medians(backend: Backend, work: Workload, threads: int, steps: int) -> Mapping[str, float]:
    """The median seconds of each contender that is installed."""
    contenders: dict[str, TimedStep | None] = {
        "floor": floor(backend, work.n),
        "steady": Selector(backend, work).timed(),
        "cold": Selector(backend, work, hints=False).timed(),
        **_others(backend, work, threads),
    }
    present = {name: each.turn for name, each in contenders.items() if each is not None}
    gradients = (work.gradient(step) for step in turns.numbers(steps))
    return {name: turns.median(taken) for name, taken in turns.take(present, gradients).items()}


def _others(backend: Backend, work: Workload, threads: int) -> dict[str, TimedStep | None]:
    """Other programs that take turns; None for one that is not installed.

    Beside a GPU numba stands in for numpy, which would take too long.
    """
    if backend.on_host:
        plain = Selector(backends.load("numpy"), work).timed()
        return {"numpy": plain, "topk": pytorch.top_k(work, threads)}
    return {"topk": pytorch.pipeline_on_gpu(work), "numba": _numba(work, threads)}


def _numba(work: Workload, threads: int) -> TimedStep:
    """The numba backend on the CPU."""
    backend = backends.load("numba")
    set_threads(backend, threads)
    return Selector(backend, work).timed()


def _row(
    backend: Backend, work: Workload, threads: int, medians: Mapping[str, float]
) -> SelectionRow:
    least, steady = medians["floor"], medians["steady"]
    others = HOST_OTHERS if backend.on_host else DEVICE_OTHERS
    by_floor: dict[str, Ratio] = dict.fromkeys(others, NOT_INSTALLED)
    by_floor |= {name: medians[name] / least for name in others if name in medians}
    by_steady = {name: medians[name] / steady for name in others if name in medians}
    return SelectionRow(
        layers=work.name,
        density=work.density,
        threads=threads,
        floor_ms=1000 * least,
        steady_ms=1000 * steady,
        steady=steady / least,
        cold=medians["cold"] / least,
        numpy=by_floor.get("numpy"),
        numpy_by_steady=by_steady.get("numpy"),
        topk=by_floor.get("topk"),
        topk_by_steady=by_steady.get("topk"),
        numba=by_floor.get("numba"),
        numba_by_steady=by_steady.get("numba"),
    )
