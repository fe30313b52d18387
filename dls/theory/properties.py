"""Property 1 and Property 2 on the accumulated gradients of a real run: how fast Algorithm 2 makes
all thresholds one.

A run of one worker with DLS(1) (`reference.cluster`) hands each step's v to a recorder. On a v that
stays as it is, repeated adjustments start from Layer-wise Top-k's k; on the run's changing v there
is one adjustment a training step, as in the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from dls.tasks.batches import Batches
from dls.theory import networks
from dls.theory.variance import Plan
from reference import adjustment, methods, ops
from reference.adjustment import Counts, Thresholds
from reference.cluster import Cluster
from reference.ops import Selection, Vector

Row = dict[str, Any]

HALF = 0.5
"""The most that Property 2 leaves of the difference between two paired thresholds."""


def overlap(k: Counts, optimal: Counts) -> float:
    """The share of Global Top-k's K entries that one top-k per layer, k (L), chooses too; `optimal`
    (L): how many lie in each.

    What either chooses of a layer is the larger values, so the smaller of the two choices is part
    of the other.
    """
    return float(np.minimum(k, optimal).sum() / optimal.sum())


def pair_factor(sizes: Sequence[int], k: Counts, t: Thresholds, after: Thresholds) -> float | None:
    """The largest |t_lo' − t_hi'| / (t_hi − t_lo) of the pairs of one adjustment from (k, t); None
    where no pair could move.

    One float64 spacing is taken off above the line, as the middle of two thresholds is rounded:
    Property 2 says 1/2 at most.
    """
    order = adjustment.pair_order(sizes, k, t)
    paired = zip(order[: len(order) // 2], reversed(order), strict=False)
    moved = [
        (t[low], t[high], abs(after[low] - after[high]))
        for low, high in paired
        if _moves(t[low], t[high])
    ]
    factors = [max(0.0, left - np.spacing(high)) / (high - low) for low, high, left in moved]
    return float(max(factors)) if factors else None


def _moves(low: float, high: float) -> bool:
    """Whether a float64 lies between two thresholds, so that an adjustment moves them."""
    return bool(low < (low + high) / 2 < high)


# A gradient that stays ----------------------------------------------------------------------------


def adjust_fixed(v: Sequence[Vector], k: Counts, limit: int) -> Row:
    """Repeat `one_step_adjustment` on v (L vectors) from k (L) until nothing can change any more,
    `limit` times at most.

    Returns lists over the adjustments, the start first: `set size`, `overlap` with Global Top-k and
    `pair factor` (see there; one shorter); and `equal from`: after how many adjustments the overlap
    is 1 for good, None where that was not reached (it may never be where values tie at the global
    threshold: then one choice is as good as another).
    """
    sizes, optimal = [layer.size for layer in v], adjustment.optimal_adjustment(v, k)
    t = adjustment.fresh_thresholds(v, k)
    set_sizes, overlaps = [adjustment.set_size(t)], [overlap(k, optimal)]
    factors: list[float | None] = []
    while len(factors) < limit and not is_settled(v, k, t) and _moves(t.min(), t.max()):
        k_after, after = adjustment.one_step_adjustment(v, k, t)
        factors.append(pair_factor(sizes, k, t, after))
        k, t = k_after, after
        set_sizes.append(adjustment.set_size(t))
        overlaps.append(overlap(k, optimal))
    start = (
        _equal_from(overlaps)
        if overlaps[-1] == 1 and (is_settled(v, k, t) or not _moves(t.min(), t.max()))
        else None
    )
    return {"set size": set_sizes, "overlap": overlaps, "pair factor": factors, "equal from": start}


def is_settled(v: Sequence[Vector], k: Counts, t: Thresholds) -> bool:
    """Whether no adjustment from thresholds t (L) of v (L vectors) will ever change k (L) again:
    the choice is Global Top-k's.

    Either every value from the lowest threshold up is chosen, so that m_hi is never above 0
    (docs/algorithm.md, section 4), or no value below the highest one is, so that m_lo is 0. Nothing
    moves then but thresholds, towards each other.
    """
    counts = [
        [ops.count_at_least(layer, end) for layer in v] for end in (float(t.min()), float(t.max()))
    ]
    return any(np.array_equal(count, k) for count in counts)


def _equal_from(overlaps: Sequence[float]) -> int:
    """The first place from which on all are 1."""
    return max((i + 1 for i, share in enumerate(overlaps) if share < 1), default=0)


def first_with(overlaps: Sequence[float], least: float) -> int | None:
    """After how many adjustments the overlap is at least `least` for the first time."""
    return next((i for i, share in enumerate(overlaps) if share >= least), None)


# The gradients of a run ---------------------------------------------------------------------------


@dataclass
class Recorder:
    """DLS(1) without a reserve; notes, at each step, set size and overlap of its k and of
    Layer-wise Top-k's on the same v.

    `keep`: the steps, from 1, whose v is kept as a copy, in `kept`.
    """

    uniform: Counts
    keep: frozenset[int]
    rows: list[Row] = field(default_factory=list)
    kept: dict[int, list[Vector]] = field(default_factory=dict)

    def select(self, v: Sequence[Vector], k: Counts) -> list[list[Selection]]:
        """Layer-wise, with the k of this step."""
        return [methods.layerwise_topk(v, k)]

    def next_k(self, v: Sequence[Vector], k: Counts, step: int, *_: object) -> Counts:
        """One adjustment; the row says how k stood before it, and after it on the same v."""
        optimal = adjustment.optimal_adjustment(v, k)
        t, t_uniform = (
            adjustment.fresh_thresholds(v, k),
            adjustment.fresh_thresholds(v, self.uniform),
        )
        after, t_after = adjustment.one_step_adjustment(v, k, t)
        self.rows.append(
            {
                "step": step,
                "set size": adjustment.set_size(t),
                "set size after": adjustment.set_size(t_after),
                "set size, layer-wise": adjustment.set_size(t_uniform),
                "overlap": overlap(k, optimal),
                "overlap after": overlap(after, optimal),
                "overlap, layer-wise": overlap(self.uniform, optimal),
                "pair factor": pair_factor([layer.size for layer in v], k, t, t_after),
            }
        )
        if step in self.keep:
            self.kept[step] = [layer.copy() for layer in v]
        return after


def record(name: str, plan: Plan, density: float, steps: int) -> Recorder:
    """Train the network of seed 0 for so many steps with DLS(1), one worker, plain SGD; the first
    and last v are kept.
    """
    model = networks.build(name, plan.dataset, 0)
    uniform = methods.split_budget(
        methods.budget(model.parameters.size, density), np.diff(model.offsets).tolist()
    )
    recorder = Recorder(uniform, frozenset({1, steps}))
    cluster = Cluster([model], recorder, uniform)
    batches = Batches(plan.dataset, 0, plan.batch_size, 0, 1)
    for step in range(steps):
        images, labels = batches.batch(step)
        cluster.step([(networks.prepare(name, plan.dataset, images), labels)], plan.lr)
    return recorder


def measure(name: str, plan: Plan, density: float, steps: int, limit: int) -> Iterator[Row]:
    """Yield a row `fixed` of the first and of the last step's v (see `adjust_fixed`), and one
    `run`: lists over the steps.
    """
    recorder = record(name, plan, density, steps)
    head = {
        "network": name,
        "density": density,
        "layers": len(recorder.uniform),
        "K": int(recorder.uniform.sum()),
    }
    for step, v in recorder.kept.items():
        yield (
            {"table": "fixed"}
            | head
            | {"step": step}
            | judge(adjust_fixed(v, recorder.uniform, limit))
        )
    columns = {column: [row[column] for row in recorder.rows] for column in recorder.rows[0]}
    yield {"table": "run"} | head | columns | {"equal at": first_with(columns["overlap"], 1.0)}


def judge(fixed: Row) -> Row:
    """The row of `adjust_fixed` with what the properties say of it.

    `largest pair factor`: Property 2 holds where it is at most 1/2. `grew`: adjustments after which
    the set size was larger; Property 1 allows none. `mean factor` (geometric) of the set size over
    all adjustments, and `slower than half`: adjustments that left more than half of the set size,
    which no property forbids where there are more than two layers.
    """
    sizes, pairs = (
        fixed["set size"],
        [factor for factor in fixed["pair factor"] if factor is not None],
    )
    moved = [after / before for before, after in pairwise(sizes)]
    shrunk = sizes[-1] / sizes[0] if moved else 0.0
    return fixed | {
        "adjustments": len(moved),
        "largest pair factor": max(pairs, default=None),
        "grew": sum(factor > 1 for factor in moved),
        "slower than half": sum(factor > HALF for factor in moved),
        "mean factor": shrunk ** (1 / len(moved)) if moved else None,
        "90 %": first_with(fixed["overlap"], 0.9),
        "99 %": first_with(fixed["overlap"], 0.99),
        "equal first": first_with(fixed["overlap"], 1.0),
    }
