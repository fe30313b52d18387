"""What a study finds: differences between methods, seed by seed, with their intervals, and a
verdict on each.

A difference is that of two runs with the same seed, and so the same weights to begin with and the
same mini-batches; its interval is Student's over the seeds. All densities of a workload are
compared together too, each seed by its mean over them.

A workload's baselines are compared with those named before them, and all other methods with each
baseline. The last one is the goal: for it the report also says how far behind others may be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from dls.study.rows import ComparisonRow, StudyRow

CONFIDENCE = 0.95
"""The share of intervals that hold the true difference."""
BETTER = "better"
"""The verdict where the whole interval is above zero."""
WORSE = "worse"
"""The verdict where the whole interval is below zero."""
NEITHER = "no difference to be told from chance"
"""The verdict where the interval includes zero."""
FEW = "too few seeds to tell"
"""The verdict where there is no interval."""
LEAST = 2
"""The fewest seeds that have an interval."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean of a sample, and half the width of its confidence interval.

    The width of a single value's is infinite; of no value the mean is NaN, too.
    """
    if len(values) < LEAST:
        return (fmean(values) if values else math.nan), math.inf
    quantile = float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2))
    return fmean(values), quantile * stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True)
class Comparison:
    """A method beside a baseline, in percentage points of accuracy, seed by seed.

    density: None for all of them together. planned: how many seeds there will be. failed: for how
    many of them a run of either failed. goal: whether the baseline is the goal.
    """

    workload: str
    density: float | None
    method: str
    against: str
    values: tuple[float, ...]
    planned: int
    failed: int = 0
    goal: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether no seed is missing."""
        return len(self.values) == self.planned

    @property
    def mean(self) -> float:
        """The mean difference."""
        return interval(self.values)[0]

    @property
    def half(self) -> float:
        """Half the width of its interval; infinite where there are too few seeds."""
        return interval(self.values)[1]

    @property
    def verdict(self) -> str:
        """What the interval says."""
        return verdict(self.values)

    def row(self) -> ComparisonRow:
        """The comparison as the report's JSON has it."""
        return ComparisonRow(
            workload=self.workload,
            density=self.density,
            method=self.method,
            against=self.against,
            values=self.values,
            failed=self.failed,
            mean=self.mean,
            half=self.half,
            verdict=self.verdict,
        )


def verdict(values: Sequence[float]) -> str:
    """What the interval of the differences says."""
    mean, half = interval(values)
    if len(values) < LEAST:
        return FEW
    return BETTER if mean - half > 0 else WORSE if mean + half < 0 else NEITHER


def differences(row: StudyRow, other: StudyRow) -> dict[int, float]:
    """A row's accuracy less that of another, in percentage points, for each seed that both have."""
    theirs = dict(zip(other.seeds, other.accuracy, strict=True))
    own = zip(row.seeds, row.accuracy, strict=True)
    return {seed: 100 * (value - theirs[seed]) for seed, value in own if seed in theirs}


def split(row: StudyRow, other: StudyRow) -> list[float]:
    """How far two rows split the budget between the layers alike, for each seed that both have.

    It is the share of K that both give to the same layers, from means over the run: it asks about
    the split between the layers, not about which values were sent.
    """
    theirs = dict(zip(other.seeds, other.k, strict=True))
    own = zip(row.seeds, row.k, strict=True)
    pairs = [(k, theirs[seed]) for seed, k in own if seed in theirs]
    return [sum(map(min, k, of_other)) / sum(of_other) for k, of_other in pairs]


def comparisons(rows: Sequence[StudyRow]) -> list[Comparison]:
    """Every method beside each baseline of its workload: at each density, then all together."""
    compared: list[Comparison] = []
    for workload in dict.fromkeys(row.workload for row in rows):
        compared += _of_workload([row for row in rows if row.workload == workload])
    return compared


def _of_workload(rows: Sequence[StudyRow]) -> Iterator[Comparison]:
    """The comparisons of one workload."""
    with_density = [row for row in rows if row.density is not None]
    densities = list(dict.fromkeys(row.density for row in with_density))
    methods = list(dict.fromkeys(row.method for row in with_density))
    baselines = list(rows[0].baselines)
    cells = {(row.density, row.method): row for row in with_density}
    fixed = {row.method: row for row in rows if row.density is None and row.method in baselines}
    for name, row in fixed.items():  # a baseline without a density is the same at all of them
        cells |= {(density, name): row for density in densities}
    for method, against in _pairs([*fixed, *methods], baselines):
        pairs = {
            density: (cells[density, method], cells[density, against])
            for density in densities
            if (density, method) in cells and (density, against) in cells
        }
        planned = max((row.planned for row in rows if row.method == method), default=0)
        yield from _of_pair(pairs, method, against, planned)


def _of_pair(
    pairs: Mapping[float | None, tuple[StudyRow, StudyRow]],
    method: str,
    against: str,
    planned: int,
) -> Iterator[Comparison]:
    """The comparisons of a method with a baseline, from their rows at each density."""
    by_density = {density: differences(*rows) for density, rows in pairs.items()}
    failed = {density: _failed(*rows) for density, rows in pairs.items()}
    together = _together([*by_density.values()])
    if together is not None:
        by_density[None], failed[None] = together, max(failed.values())
    for density, by_seed in by_density.items():
        if by_seed or failed[density]:
            row, _ = next(iter(pairs.values()))
            yield Comparison(
                workload=row.workload,
                density=density,
                method=method,
                against=against,
                values=tuple(by_seed.values()),
                planned=planned,
                failed=failed[density],
                goal=against == row.goal,
            )


def _failed(row: StudyRow, other: StudyRow) -> int:
    """For how many seeds a run of either failed."""
    return len(row.failed.keys() | other.failed.keys())


def _pairs(methods: Sequence[str], baselines: Sequence[str]) -> list[tuple[str, str]]:
    """Which methods are compared with which.

    Each baseline with those before it, which shows what there is to win; the others with all.
    """
    others = [method for method in methods if method not in baselines]
    wanted = [(method, before) for i, method in enumerate(baselines) for before in baselines[:i]]
    wanted += [(method, against) for method in others for against in baselines]
    return [pair for pair in wanted if pair[0] in methods and pair[1] in methods]


def _together(by_density: Sequence[Mapping[int, float]]) -> dict[int, float] | None:
    """The mean over the densities, for each seed that is complete at all of them.

    None where there is one density alone.
    """
    if len(by_density) < 2:
        return None
    seeds = set.intersection(*(set(by_seed) for by_seed in by_density))
    return {seed: fmean(by_seed[seed] for by_seed in by_density) for seed in sorted(seeds)}
