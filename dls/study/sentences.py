"""What a study finds, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from dls.study.experiments import BASELINES
from dls.study.findings import BETTER, CONFIDENCE, FEW, WORSE, Comparison


def sentences(
    compared: Sequence[Comparison], baselines: Sequence[str] = BASELINES
) -> Iterator[str]:
    """Whether each method beats the baselines, and how close it comes to the goal.

    A cell that lacks a seed is not judged. Where it lacks one because a run failed, that is said: a
    method that fails must not look better for it.
    """
    whole = [each for each in compared if each.is_whole]
    failed = [each for each in compared if each.failed and each.density is not None]
    for method, against in dict.fromkeys((each.method, each.against) for each in (*whole, *failed)):
        own = [each for each in whole if (each.method, each.against) == (method, against)]
        lost = [each for each in failed if (each.method, each.against) == (method, against)]
        cells = [each for each in own if each.density is not None]
        together = [each for each in own if each.density is None]
        words = [*_tally(cells), *_together_words(together), *_closeness(cells), *_lost(lost)]
        yield f"- **{method} against {against}**: " + " ".join(words)
    yield _last_sentence(compared, baselines)


def _last_sentence(compared: Sequence[Comparison], baselines: Sequence[str]) -> str:
    """What chance does to the intervals, or why there are none."""
    whole = [each for each in compared if each.is_whole]
    intervals = sum(each.verdict != FEW for each in whole)
    if intervals:
        missed = (1 - CONFIDENCE) * intervals
        return (
            f"- Of these {intervals} intervals about {missed:.1f} are expected to miss the true"
            " difference by chance alone."
        )
    if whole:
        return "With one seed of each there is no interval."
    if compared:
        return "No comparison has all its seeds."
    return f"No method was run at a density of {' or '.join(baselines)}."


def _lost(failed: Sequence[Comparison]) -> Iterator[str]:
    if failed:
        cells = "; ".join(
            f"{each.workload}, {each.density:g}: {each.failed} of {each.planned} seeds"
            for each in failed
        )
        yield f"Not counted, as runs failed: {cells}."


def _tally(cells: Sequence[Comparison]) -> Iterator[str]:
    """How often it is better or worse, and where; the mean difference, and the extremes."""
    if not cells:
        return
    better = [each for each in cells if each.verdict == BETTER]
    worse = [each for each in cells if each.verdict == WORSE]
    yield (
        f"better in {len(better)}{_names(better)}, worse in {len(worse)}{_names(worse)} of"
        f" {len(cells)} cells (workload and density) with all seeds; the interval includes zero in"
        " the others."
    )
    least, most = min(cells, key=_mean), max(cells, key=_mean)
    ends = " to ".join(f"{each.mean:+.2f}{_names([each])}" for each in (least, most))
    yield f"{fmean(map(_mean, cells)):+.2f} points on average, from {ends}."


def _mean(each: Comparison) -> float:
    return each.mean


def _names(cells: Sequence[Comparison]) -> str:
    names = "; ".join(f"{each.workload}, {each.density:g}" for each in cells)
    return f" ({names})" if cells else ""


def _together_words(together: Sequence[Comparison]) -> Iterator[str]:
    words = [
        f"{each.workload} {each.mean:+.2f} ± {each.half:.2f}, {each.verdict}"
        for each in together
        if each.half < math.inf
    ]
    if words:
        yield f"All densities together: {'; '.join(words)}."


def _closeness(cells: Sequence[Comparison]) -> Iterator[str]:
    """The largest shortfall behind the goal that the intervals do not exclude.

    An interval that includes zero does not mean that two methods are equal.
    """
    bounded = [each for each in cells if each.half < math.inf]
    if bounded and cells[0].goal:
        worst = min(bounded, key=lambda each: each.mean - each.half)
        short = max(0.0, worst.half - worst.mean)
        yield (
            f"The intervals leave room for a shortfall behind {worst.against} of up to {short:.2f}"
            f" points{_names([worst])}."
        )
