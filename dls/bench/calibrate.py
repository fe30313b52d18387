"""`mpirun … python -m dls.bench exchange --fit FILE`: the network between these ranks, as
`dls.predict --network FILE` reads it.

Pairs of ranks swap messages of growing sizes, all pairs at once. A gather and a sum are measured
beside them and not fitted: they show what the fit is good for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np

from dls.comm.base import PROGRAM, Waiting
from dls.comm.world import World
from dls.cost.clock import Clocks, Pattern
from dls.cost.fit import Fit, FitError, fit
from dls.cost.network import Network
from dls.cost.profiles import MPICH_DOUBLING
from dls.cost.store import save_network
from dls.tools.rows import Row, Title
from reference.collectives import Gather, Round, Sum, Swap

EXPONENTS = (4, 6, 8, 10, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22)
"""Powers of two."""
SIZES = tuple(2**exponent for exponent in EXPONENTS)
"""Bytes of the messages that are swapped: 16 bytes to 4 MiB."""
CHECKS = (2**10, 2**14, 2**18, 2**20)
"""Bytes of each rank's message in the gathers and sums."""
LIMIT = 1.0
"""Seconds that the turns of one size take at most, but for the first ones."""
FEWEST = 5
"""Turns of each size."""
COMPUTING = 0.03
"""Seconds that a rank computes while it looks how late messages are."""
SMALL = 64
"""Bytes of the messages whose lateness is measured."""
LARGE = 2**20
"""Bytes of the messages whose cost in computing is measured."""
WHAT = "the calibration's messages"
"""What an error says that a rank was waiting for."""


@dataclass(frozen=True)
class FitRow(Row):
    """A kind of round and a size: the time measured, that of the fit, and their difference."""

    kind: str
    ranks: int
    size: Annotated[str, Title("bytes")]
    measured_ms: Annotated[float, Title("measured, ms")]
    fitted_ms: Annotated[float, Title("by the fit, ms")]
    residual: Annotated[float, Title("residual, %")]
    used: Annotated[str, Title("used for")]


def measure(comm: World, path: Path, steps: int) -> Iterator[FitRow]:
    """Measure, fit and write the network; yield a row for each size, on every rank.

    FitError, on all ranks, where the fit does not describe its data.
    """
    if comm.size < 2:
        raise FitError("a network is measured between at least two ranks: mpirun -n 2 …")
    sizes = sorted(SIZES)
    seconds = _medians(comm, [_pair(comm, size) for size in sizes], steps)
    found = fit(sizes, seconds)
    checks = _checks(comm, steps)
    plain = Network(found.ranges, name="the measured network")
    usual = MPICH_DOUBLING if "MPICH" in comm.library else 0
    ways = (usual, MPICH_DOUBLING - usual)
    doubling = min(ways, key=lambda most: _error(plain, most, checks))
    network = Network(
        found.ranges,
        name=f"the network of {path.name}",
        doubling=doubling,
        poll=_poll(comm, found, steps),
        tax=_tax(comm, steps),
    )
    if comm.rank == 0:
        about = {"ranks": comm.size, "library": comm.library, "residuals": _listed(sizes, found)}
        save_network(network, path, **about)
    yield from _rows(comm.size, sizes, found)
    for pattern, measured in checks:
        yield _check_row(network, pattern, measured)


def _listed(sizes: Sequence[int], found: Fit) -> list[dict[str, float]]:
    values = zip(sizes, found.measured, found.fitted, strict=True)
    return [
        {"bytes": size, "measured_s": float(measured), "fitted_s": float(fitted)}
        for size, measured, fitted in values
    ]


def _rows(ranks: int, sizes: Sequence[int], found: Fit) -> Iterator[FitRow]:
    numbers = zip(sizes, found.measured, found.fitted, found.residuals, strict=True)
    for size, measured, fitted, residual in numbers:
        times = 1000 * float(measured), 1000 * float(fitted)
        yield FitRow("swap", ranks, str(size), *times, 100 * float(residual), "the fit")


def _check_row(network: Network, pattern: Pattern, measured: float) -> FitRow:
    fitted = _clocked(network, pattern)
    size, share = str(int(pattern.sizes[0])), 100 * (fitted / measured - 1)
    times = 1000 * measured, 1000 * fitted
    return FitRow(pattern.kind, pattern.ranks, size, *times, share, "a check")


def _clocked(network: Network, pattern: Pattern) -> float:
    clocks = Clocks(pattern.ranks, network)
    clocks.take(pattern)
    return float(clocks.now.max())


def _error(network: Network, doubling: int, checks: Sequence[tuple[Pattern, float]]) -> float:
    """How far the clock is from the checks where the library doubles up to so many bytes."""
    other = Network(network.ranges, doubling=doubling)
    return sum(abs(math.log(_clocked(other, pattern) / measured)) for pattern, measured in checks)


# Measuring ----------------------------------------------------------------------------------------


def _medians(comm: World, asked: Sequence[Round], steps: int) -> list[float]:
    """The median seconds of each round, that of the slowest rank each time; the same on all ranks.

    They take turns, so that whatever disturbs the machine for a while disturbs all of them alike.
    """
    taken: list[list[float]] = [[] for _ in asked]
    for _ in range(max(FEWEST, steps)):
        for each, own in zip(asked, taken, strict=True):
            if len(own) < FEWEST or sum(own) < LIMIT:
                own.append(_timed(comm, each))
    return [float(np.median(own)) for own in taken]


def _timed(comm: World, asked: Round) -> float:
    """The seconds of a round that all ranks begin together, on the slowest rank."""
    comm.together(lambda: None)
    begin = perf_counter()
    comm.ask(asked, WHAT)
    own = np.array(perf_counter() - begin)
    return float(comm.allgather(own, WHAT).wait().max())


def _partner(comm: World) -> int | None:
    """The rank that this one swaps with: the farther half of the ranks, so that they are on other
    hosts where each host has several.
    """
    half = comm.size // 2
    if comm.rank >= 2 * half:
        return None
    return comm.rank + half if comm.rank < half else comm.rank - half


def _pair(comm: World, size: int) -> Swap:
    partner = _partner(comm)
    payload = np.zeros(0 if partner is None else size, dtype=np.uint8)
    return Swap(partner, partner, payload, payload.size)


def _checks(comm: World, steps: int) -> list[tuple[Pattern, float]]:
    """Gathers and sums, with the seconds that they take."""
    asked: list[Round] = []
    for size in CHECKS:
        asked.append(Gather(np.zeros(size, dtype=np.uint8), [size] * comm.size))
        asked.append(Sum(np.zeros(size // 4, dtype=np.float32)))
    patterns = [Pattern.of([each] * comm.size) for each in asked]
    return list(zip(patterns, _medians(comm, asked, steps), strict=True))


def _poll(comm: World, found: Fit, steps: int) -> float:
    """By how much a small message is late while its ranks compute, in the median."""
    late = [_late(comm) for _ in range(max(FEWEST, steps))]
    every = comm.allgather(np.array(np.median(late)), WHAT).wait()
    return max(0.0, float(np.median(every)) - found.ranges[0].latency)


def _late(comm: World) -> float:
    """Seconds from the post of a small message to its end, while this rank computes."""
    comm.together(lambda: None)
    pending = comm.post(PROGRAM, _pair(comm, SMALL), WHAT)
    _compute(COMPUTING)
    Waiting(comm, pending, WHAT, lambda answer: answer).wait()
    return pending.finished - pending.posted


def _tax(comm: World, steps: int) -> float:
    """Seconds of computing that each byte costs which comes or goes meanwhile."""
    alone, beside = [], []
    turns = _turns(COMPUTING)
    for _ in range(max(FEWEST, min(steps, 2 * FEWEST))):
        comm.together(lambda: None)
        alone.append(_work(turns))
        comm.together(lambda: None)
        pending = comm.post(PROGRAM, _pair(comm, LARGE), WHAT)
        beside.append(_work(turns))
        Waiting(comm, pending, WHAT, lambda answer: answer).wait()
    own = float(np.median(beside)) - float(np.median(alone))
    every = comm.allgather(np.array(own), WHAT).wait()
    return max(0.0, float(np.median(every))) / (2 * LARGE)


_VALUES = np.ones(50_000, dtype=np.float32)
"""What is computed on: it stays in the cache."""


def _work(turns: int) -> float:
    """The seconds of so many turns."""
    begin = perf_counter()
    for _ in range(turns):
        np.multiply(_VALUES, np.float32(1.0), out=_VALUES)
    return perf_counter() - begin


def _turns(seconds: float) -> int:
    """Turns that take about so long."""
    few = 200
    return max(1, round(few * seconds / _work(few)))


def _compute(seconds: float) -> None:
    """Compute for so long."""
    end = perf_counter() + seconds
    while perf_counter() < end:
        _work(20)
