"""What a study says: differences between methods, seed by seed, with their intervals, and a plain
verdict on each.

A difference is that of two runs with the same seed, and so the same weights to begin with and the
same mini-batches; its interval is Student's over the seeds. All densities of a workload are
compared together too, each seed by its mean over them.

A workload's baselines are compared with those named before them, and all other methods with each
baseline. The last one is the goal: it is also told how far behind it the others may be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from dls.study.experiments import BASELINES
from dls.study.results import Row, baselines

CONFIDENCE = 0.95
BETTER, WORSE, NEITHER, FEW = (
    "better",
    "worse",
    "no difference to be told from chance",
    "too few seeds to tell",
)
LEAST = 2
"""Seeds without which there is no interval."""


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of the confidence interval of a sample: infinite of a single value; of
    none the mean is NaN, too.
    """
    if len(values) < LEAST:
        return (fmean(values) if values else math.nan), math.inf
    return fmean(values), float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * stdev(
        values
    ) / math.sqrt(len(values))


@dataclass(frozen=True)
class Comparison:
    """A method beside a baseline, in percentage points of accuracy, seed by seed. density is None
    for all of them together.

    planned: the seeds that there will be; failed: those of which a run of either failed; goal:
    whether the baseline is one.
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


def verdict(values: Sequence[float]) -> str:
    """What the interval of the differences says."""
    mean, half = interval(values)
    if len(values) < LEAST:
        return FEW
    return BETTER if mean - half > 0 else WORSE if mean + half < 0 else NEITHER


def differences(row: Row, other: Row) -> dict[int, float]:
    """Accuracy of a row less that of another, in percentage points, for each seed that both
    have.
    """
    theirs = dict(zip(other["seeds"], other["accuracy"], strict=True))
    return {
        seed: 100 * (own - theirs[seed])
        for seed, own in zip(row["seeds"], row["accuracy"], strict=True)
        if seed in theirs
    }


def split(row: Row, other: Row) -> list[float]:
    """How far a row gives the layers the k that another does: the share of K that lies alike, for
    each seed that both have.

    Of means over the run: it asks about the split between the layers, not about which values were
    sent.
    """
    theirs = dict(zip(other["seeds"], other["k"], strict=True))
    both = [
        (own, theirs[seed])
        for seed, own in zip(row["seeds"], row["k"], strict=True)
        if seed in theirs
    ]
    return [sum(map(min, own, their)) / sum(their) for own, their in both]


def comparisons(rows: Sequence[Row]) -> list[Comparison]:
    """Of each workload: every method beside each baseline, density by density, then all densities
    together.
    """
    found = []
    for workload in dict.fromkeys(row["workload"] for row in rows):
        every = [row for row in rows if row["workload"] == workload]
        own, named = [row for row in every if row["density"] is not None], baselines(every)
        densities, methods = (
            list(dict.fromkeys(row[name] for row in own)) for name in ("density", "method")
        )
        cells = {(row["density"], row["method"]): row for row in own}
        fixed = {
            row["method"]: row for row in every if row["density"] is None and row["method"] in named
        }
        cells |= {
            (density, name): row for name, row in fixed.items() for density in densities
        }  # the same at all densities
        for method, against in _pairs([*fixed, *methods], named):
            apart = {
                density: differences(cells[density, method], cells[density, against])
                for density in densities
                if (density, method) in cells and (density, against) in cells
            }
            planned = max((row["planned"] for row in every if row["method"] == method), default=0)
            failed = {
                density: _failed(cells[density, method], cells[density, against])
                for density in apart
            }
            failed[None] = max(failed.values(), default=0)
            for density, by_seed in (*apart.items(), *_together(apart)):
                if by_seed or failed[density]:
                    values = tuple(by_seed.values())
                    goal = against == named[-1]
                    found.append(
                        Comparison(
                            workload,
                            density,
                            method,
                            against,
                            values,
                            planned,
                            failed[density],
                            goal,
                        )
                    )
    return found


def _failed(row: Row, other: Row) -> int:
    return len(row["failed"].keys() | other["failed"].keys())


def _pairs(methods: Sequence[str], named: Sequence[str]) -> list[tuple[str, str]]:
    """Each baseline beside those before it, that is what there is to win, and the other methods
    beside all.
    """
    others = [method for method in methods if method not in named]
    wanted = [(method, against) for i, method in enumerate(named) for against in named[:i]]
    wanted += [(method, against) for method in others for against in named]
    return [
        (method, against) for method, against in wanted if method in methods and against in methods
    ]


def _together(
    apart: Mapping[float, Mapping[int, float]],
) -> Iterator[tuple[None, dict[int, float]]]:
    """The mean over the densities, for each seed that is complete at all of them; nothing where
    there is one density alone.
    """
    if len(apart) > 1:
        seeds = set.intersection(*(set(by_seed) for by_seed in apart.values()))
        yield (
            None,
            {seed: fmean(by_seed[seed] for by_seed in apart.values()) for seed in sorted(seeds)},
        )


# --- in words -------------------------------------------------------------------------------------


def sentences(found: Sequence[Comparison], named: Sequence[str] = BASELINES) -> Iterator[str]:
    """Whether each method beats the baselines, and how close it comes to the goal.

    A cell that lacks a seed is not judged.

    Where it lacks one because a run failed, that is said: a method that fails must not look better
    for it. named: the baselines.
    """
    whole = [each for each in found if each.is_whole]
    failed = [each for each in found if each.failed and each.density is not None]
    for method, against in dict.fromkeys((each.method, each.against) for each in (*whole, *failed)):
        own, lost = (
            [each for each in some if (each.method, each.against) == (method, against)]
            for some in (whole, failed)
        )
        cells, together = (
            [each for each in own if (each.density is None) is pooled] for pooled in (False, True)
        )
        words = [*_tally(cells), *_together_words(together), *_closeness(cells), *_lost(lost)]
        yield f"- **{method} against {against}**: " + " ".join(words)
    intervals = sum(each.verdict != FEW for each in whole)
    if intervals:
        yield (
            f"- Of these {intervals} intervals chance alone makes about"
            f" {(1 - CONFIDENCE) * intervals:.1f} miss the truth."
        )
    elif whole:
        yield "One seed of each tells nothing of what chance does."
    else:
        nothing = f"Nothing stands beside {' or '.join(named)} at a density that both have."
        yield "No comparison has all its seeds." if found else nothing


def _lost(failed: Sequence[Comparison]) -> Iterator[str]:
    if failed:
        cells = "; ".join(
            f"{each.workload}, {each.density:g}: {each.failed} of {each.planned} seeds"
            for each in failed
        )
        yield f"Not counted, as runs failed: {cells}."


def _tally(cells: Sequence[Comparison]) -> Iterator[str]:
    """How often it is better or worse, and where; the mean difference, and its ends."""
    if not cells:
        return
    better, worse = ([each for each in cells if each.verdict == word] for word in (BETTER, WORSE))
    named = [
        f"{word} in {len(some)}{_names(some)}" for word, some in ((BETTER, better), (WORSE, worse))
    ]
    least, most = min(cells, key=_mean), max(cells, key=_mean)
    yield (
        f"{', '.join(named)} of {len(cells)} cells (workload and density) with all seeds, in the"
        " others not to be told apart."
    )
    ends = " to ".join(f"{each.mean:+.2f}{_names([each])}" for each in (least, most))
    yield f"{fmean(map(_mean, cells)):+.2f} points on average, from {ends}."


def _mean(each: Comparison) -> float:
    return each.mean


def _names(cells: Sequence[Comparison]) -> str:
    return (
        f" ({'; '.join(f'{each.workload}, {each.density:g}' for each in cells)})" if cells else ""
    )


def _together_words(together: Sequence[Comparison]) -> Iterator[str]:
    words = [
        f"{each.workload} {each.mean:+.2f} ± {each.half:.2f}, {each.verdict}"
        for each in together
        if each.half < math.inf
    ]
    if words:
        yield f"All densities together: {'; '.join(words)}."


def _closeness(cells: Sequence[Comparison]) -> Iterator[str]:
    """The largest shortfall behind the goal that the intervals leave room for; what cannot be told
    apart need not be equal.
    """
    bounded = [each for each in cells if each.half < math.inf]
    if bounded and cells[0].goal:
        worst = min(bounded, key=lambda each: each.mean - each.half)
        short = max(0.0, worst.half - worst.mean)
        yield (
            f"The intervals leave room for a shortfall behind {worst.against} of up to {short:.2f}"
            f" points{_names([worst])}."
        )
