"""`python -m dls.bench adjust`: what DLS(1)'s adjustment adds to a training step's selection."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dls import backends
from dls.backends import Backend
from dls.bench.floor import floor
from dls.bench.selector import Selector
from dls.bench.timing import set_threads
from dls.bench.workload import Workload, workloads
from dls.program import config
from dls.tools import turns
from dls.tools.rows import Row, Title
from reference.ops import Vector

T = TypeVar("T")

RESERVE = float(config.build({}).dls_reserve)
"""DLS's reserve, as it is by default."""
Seconds = tuple[float, ...]
"""The seconds of the parts of one turn."""


@dataclass(frozen=True)
class AdjustmentRow(Row):
    """Times of the parts of DLS's step, some as shares of Layer-wise Top-k's selection.

    select: Layer-wise Top-k's selection; in_dls: DLS's own; reserve: choosing the reserve; adjust:
    the adjustment; numpy_by_adjust: the same adjustment by the reference, as a multiple.
    """

    layers: str
    density: float
    threads: int
    floor_ms: Annotated[float, Title("floor, ms")]
    select_ms: Annotated[float, Title("select, ms")]
    in_dls_ms: Annotated[float, Title("select in dls, ms")]
    reserve_ms: Annotated[float, Title("reserve, ms")]
    adjust_ms: Annotated[float, Title("adjust, ms")]
    reserve_share: Annotated[float, Title("reserve / select")]
    adjust_share: Annotated[float, Title("adjust / select")]
    numpy_by_adjust: Annotated[float, Title("numpy / adjust")]


def measure(
    backend: Backend,
    sizes: Sequence[str],
    densities: Sequence[float],
    threads: Sequence[int],
    steps: int,
) -> Iterator[AdjustmentRow]:
    """Yield a row for each size, density and number of threads."""
    for work in workloads(sizes, densities):
        for count in threads:
            set_threads(backend, count)
            yield _row(backend, work, count, steps)


def _row(backend: Backend, work: Workload, threads: int, steps: int) -> AdjustmentRow:
    least, layerwise = floor(backend, work.n), Selector(backend, work).timed()
    dls = DlsStep(Selector(backend, work, reserve=RESERVE))
    contenders: dict[str, Callable[[Vector], Seconds]] = {
        "floor": lambda gradient: (least.turn(gradient),),
        "layerwise": lambda gradient: (layerwise.turn(gradient),),
        "dls": dls.turn,
    }
    taken = turns.take(contenders, (work.gradient(step) for step in turns.numbers(steps)))
    (bare,) = _medians(taken["floor"])
    (select,) = _medians(taken["layerwise"])
    in_dls, reserve, adjust, by_numpy = _medians(taken["dls"])
    return AdjustmentRow(
        layers=work.name,
        density=work.density,
        threads=threads,
        floor_ms=1000 * bare,
        select_ms=1000 * select,
        in_dls_ms=1000 * in_dls,
        reserve_ms=1000 * reserve,
        adjust_ms=1000 * adjust,
        reserve_share=reserve / select,
        adjust_share=adjust / select,
        numpy_by_adjust=by_numpy / adjust,
    )


def _medians(taken: Sequence[Seconds]) -> list[float]:
    """The median of each part over the turns."""
    medians: NDArray[Any] = np.median(taken, axis=0)
    return [float(each) for each in medians]


class DlsStep:
    """DLS's selection and adjustment as a contender, with the reference's adjustment beside it."""

    def __init__(self, selector: Selector) -> None:
        self._selector = selector
        self._reference = backends.load("numpy")

    def turn(self, gradient: Vector) -> Seconds:
        """Seconds of: the selection, the reserve, the adjustment, the reference's adjustment."""
        dls = self._selector
        ready = dls.backend.ops.from_host(gradient)
        dls.wait()
        choosing, chosen = _timed(dls, dls.choose, ready)
        bringing, more = _timed(dls, dls.bring)
        adjusting, k = _timed(dls, dls.adjust)
        twin = dls.on(self._reference)
        by_reference, _ = _timed(twin, twin.adjust)
        clearing, _ = _timed(dls, dls.clear, chosen)
        dls.clear(more)
        dls.k = k
        return choosing + clearing, bringing, adjusting, by_reference


def _timed(selector: Selector, call: Callable[..., T], *args: Any) -> tuple[float, T]:
    """The seconds of the call, and what it returns."""
    start = time.perf_counter()
    result = call(*args)
    selector.wait()
    return time.perf_counter() - start, result
