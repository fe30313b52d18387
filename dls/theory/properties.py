"""Property 1 and Property 2 on the accumulated gradients of a real run: how fast Algorithm 2 brings
all thresholds together.

A run of one worker with DLS(1) (`reference.cluster`) hands each step's accumulated gradient v to a
recorder. On a v that stays as it is, repeated adjustments start from Layer-wise Top-k's k; on the
run's changing v there is one adjustment a training step, as in the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from dls.tasks.batches import Batches
from dls.theory import networks
from dls.theory.rows import FixedRow, RunRow
from dls.theory.variance import Plan
from reference import adjustment, methods, ops
from reference.adjustment import Counts, Thresholds
from reference.cluster import Cluster
from reference.ops import Selection, Vector

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


# The gradients of a run ---------------------------------------------------------------------------


@dataclass(frozen=True)
class RunStep:
    """One training step of a run: set size and overlap with Global Top-k.

    They are those of the step's k, of the k after its adjustment, and of Layer-wise Top-k's k, all
    on the same v.
    """

    step: int
    set_size: float
    set_size_after: float
    set_size_layerwise: float
    overlap: float
    overlap_after: float
    overlap_layerwise: float
    pair_factor: float | None


@dataclass
class Recorder:
    """DLS(1) without a reserve, which notes what each step's adjustment does.

    uniform: Layer-wise Top-k's k (L). keep: the steps, from 1, whose v is kept as a copy, in
    `kept`.
    """

    uniform: Counts
    keep: frozenset[int]
    steps: list[RunStep] = field(default_factory=list)
    kept: dict[int, list[Vector]] = field(default_factory=dict)

    def select(self, v: Sequence[Vector], k: Counts) -> list[list[Selection]]:
        """Layer-wise, with the k of this step."""
        return [methods.layerwise_topk(v, k)]

    def next_k(self, v: Sequence[Vector], k: Counts, step: int, *_: object) -> Counts:
        """One adjustment of k (L) on v (L vectors)."""
        optimal = adjustment.optimal_adjustment(v, k)
        t = adjustment.fresh_thresholds(v, k)
        t_uniform = adjustment.fresh_thresholds(v, self.uniform)
        after, t_after = adjustment.one_step_adjustment(v, k, t)
        self.steps.append(
            RunStep(
                step=step,
                set_size=adjustment.set_size(t),
                set_size_after=adjustment.set_size(t_after),
                set_size_layerwise=adjustment.set_size(t_uniform),
                overlap=overlap(k, optimal),
                overlap_after=overlap(after, optimal),
                overlap_layerwise=overlap(self.uniform, optimal),
                pair_factor=pair_factor([layer.size for layer in v], k, t, t_after),
            )
        )
        if step in self.keep:
            self.kept[step] = [layer.copy() for layer in v]
        return after


def record(name: str, plan: Plan, density: float, steps: int) -> Recorder:
    """Train the network of seed 0 for so many steps with DLS(1), one worker and plain SGD.

    The first and the last v are kept.
    """
    model = networks.build(name, plan.dataset, 0)
    budget = methods.budget(model.parameters.size, density)
    uniform = methods.split_budget(budget, np.diff(model.offsets).tolist())
    recorder = Recorder(uniform, frozenset({1, steps}))
    cluster = Cluster([model], recorder, uniform)
    batches = Batches(plan.dataset, 0, plan.batch_size, 0, 1)
    for step in range(steps):
        images, labels = batches.batch(step)
        cluster.step([(networks.prepare(name, plan.dataset, images), labels)], plan.lr)
    return recorder


# Rows ---------------------------------------------------------------------------------------------


def measure(
    name: str, plan: Plan, density: float, steps: int, limit: int
) -> Iterator[FixedRow | RunRow]:
    """Yield a row for the first and for the last step's v, then one for the whole run."""
    recorder = record(name, plan, density, steps)
    about = {
        "network": name,
        "density": density,
        "layers": len(recorder.uniform),
        "budget": int(recorder.uniform.sum()),
    }
    for step, v in recorder.kept.items():
        yield _fixed_row(about, step, adjust_fixed(v, recorder.uniform, limit))
    yield _run_row(about, recorder.steps)


def _fixed_row(about: Mapping[str, Any], step: int, done: Adjustments) -> FixedRow:
    return FixedRow(
        **about,
        step=step,
        set_sizes=done.set_sizes,
        overlaps=done.overlaps,
        pair_factors=done.pair_factors,
        equal_from=done.equal_from,
        adjustments=done.count,
        largest_pair_factor=done.largest_pair_factor,
        grew=done.grew,
        slower_than_half=done.slower_than_half,
        mean_factor=done.mean_factor,
        reached_90=first_with(done.overlaps, 0.9),
        reached_99=first_with(done.overlaps, 0.99),
        reached_all=first_with(done.overlaps, 1.0),
    )


def _run_row(about: Mapping[str, Any], steps: Sequence[RunStep]) -> RunRow:
    return RunRow(
        **about,
        steps=[each.step for each in steps],
        set_sizes=[each.set_size for each in steps],
        set_sizes_after=[each.set_size_after for each in steps],
        set_sizes_layerwise=[each.set_size_layerwise for each in steps],
        overlaps=[each.overlap for each in steps],
        overlaps_after=[each.overlap_after for each in steps],
        overlaps_layerwise=[each.overlap_layerwise for each in steps],
        pair_factors=[each.pair_factor for each in steps],
        equal_at=first_with([each.overlap for each in steps], 1.0),
    )
