"""Property 1 and Property 2: how fast Algorithm 2 brings all thresholds together, on an accumulated
gradient v that stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from reference import adjustment, ops
from reference.adjustment import Counts, Thresholds
from reference.ops import Vector

HALF = 0.5
"""The largest share of the difference between two paired thresholds that Property 2 leaves."""


def overlap(k: Counts, optimal: Counts) -> float:
    """The share of Global Top-k's K entries that a top-k of each layer, with k (L), chooses too.

    optimal: how many of Global Top-k's entries lie in each layer (L). Either chooses the larger
    values of a layer, so the smaller of the two choices is part of the other.
    """
    return float(np.minimum(k, optimal).sum() / optimal.sum())


def pair_factor(sizes: Sequence[int], k: Counts, t: Thresholds, after: Thresholds) -> float | None:
    """The largest |t_lo' − t_hi'| / (t_hi − t_lo) of the pairs of one adjustment from (k, t).

    None where no pair could move. One float64 spacing is taken off above the line, as the middle of
    two thresholds is rounded: Property 2 says 1/2 at most.
    """
    order = adjustment.pair_order(sizes, k, t)
    paired = zip(order[: len(order) // 2], reversed(order), strict=False)
    factors = []
    for low, high in paired:
        if _moves(t[low], t[high]):
            left = abs(after[low] - after[high]) - np.spacing(t[high])
            factors.append(max(0.0, left) / (t[high] - t[low]))
    return float(max(factors)) if factors else None


def _moves(low: float, high: float) -> bool:
    """Whether a float64 lies between two thresholds, so that an adjustment moves them."""
    return bool(low < (low + high) / 2 < high)


# A gradient that stays ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Adjustments:
    """Repeated adjustments of one gradient; lists are over the adjustments, the start first.

    set_sizes: the difference between the largest and the smallest threshold. overlaps: `overlap`
    with Global Top-k. pair_factors: `pair_factor` of each adjustment, so one shorter. equal_from:
    after how many adjustments the overlap is 1 for good, None where that was not reached (it may
    never be where values tie at the global threshold: then one choice is as good as another).
    """

    set_sizes: Sequence[float]
    overlaps: Sequence[float]
    pair_factors: Sequence[float | None]
    equal_from: int | None

    @property
    def count(self) -> int:
        """How many adjustments there were."""
        return len(self.pair_factors)

    @property
    def factors(self) -> list[float]:
        """The set size after each adjustment, as a share of that before it."""
        return [after / before for before, after in pairwise(self.set_sizes)]

    @property
    def largest_pair_factor(self) -> float | None:
        """Property 2 holds where it is at most 1/2; None where no pair could move."""
        return max((each for each in self.pair_factors if each is not None), default=None)

    @property
    def grew(self) -> int:
        """Adjustments after which the set size was larger; Property 1 allows none."""
        return sum(factor > 1 for factor in self.factors)

    @property
    def slower_than_half(self) -> int:
        """Adjustments that left more than half of the set size.

        No property forbids them where there are more than two layers.
        """
        return sum(factor > HALF for factor in self.factors)

    @property
    def mean_factor(self) -> float | None:
        """The geometric mean of the factors; None without an adjustment."""
        if not self.count:
            return None
        left: float = self.set_sizes[-1] / self.set_sizes[0]
        factor: float = left ** (1 / self.count)
        return factor


def adjust_fixed(v: Sequence[Vector], k: Counts, limit: int) -> Adjustments:
    """Repeat `one_step_adjustment` on v (L vectors) from k (L), `limit` times at most, until
    nothing can change any more.
    """
    sizes, optimal = [layer.size for layer in v], adjustment.optimal_adjustment(v, k)
    t = adjustment.fresh_thresholds(v, k)
    set_sizes, overlaps = [adjustment.set_size(t)], [overlap(k, optimal)]
    factors: list[float | None] = []
    while len(factors) < limit and not _is_over(v, k, t):
        k_after, after = adjustment.one_step_adjustment(v, k, t)
        factors.append(pair_factor(sizes, k, t, after))
        k, t = k_after, after
        set_sizes.append(adjustment.set_size(t))
        overlaps.append(overlap(k, optimal))
    is_equal = overlaps[-1] == 1 and _is_over(v, k, t)
    return Adjustments(set_sizes, overlaps, factors, _equal_from(overlaps) if is_equal else None)


def _is_over(v: Sequence[Vector], k: Counts, t: Thresholds) -> bool:
    """Whether no adjustment can change anything any more."""
    return is_settled(v, k, t) or not _moves(t.min(), t.max())


def is_settled(v: Sequence[Vector], k: Counts, t: Thresholds) -> bool:
    """Whether no adjustment of v (L vectors) from thresholds t (L) will ever change k (L) again.

    The choice is Global Top-k's then. Either every value from the lowest threshold up is chosen, so
    that m_hi is never above 0 (docs/algorithm.md, section 4), or no value below the highest one is,
    so that m_lo is 0. Nothing moves then but thresholds, towards each other.
    """
    counts = [
        [ops.count_at_least(layer, end) for layer in v] for end in (float(t.min()), float(t.max()))
    ]
    return any(np.array_equal(count, k) for count in counts)


def _equal_from(overlaps: Sequence[float]) -> int:
    """The first adjustment from which on all are 1."""
    return max((i + 1 for i, share in enumerate(overlaps) if share < 1), default=0)


def first_with(overlaps: Sequence[float], least: float) -> int | None:
    """After how many adjustments the overlap is at least `least` for the first time."""
    return next((i for i, share in enumerate(overlaps) if share >= least), None)
