"""The accumulated gradients of a real run with DLS(1), and what adjustments do to them.

A run of one worker (`reference.cluster`) hands each step's v to a recorder. On a v that stays as it
is, repeated adjustments start from Layer-wise Top-k's k; on the run's changing v there is one
adjustment for each training step, as in the run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dls.tasks.batches import Batches
from dls.theory import networks
from dls.theory.properties import Adjustments, adjust_fixed, first_with, overlap, pair_factor
from dls.theory.rows import FixedRow, RunRow
from dls.theory.variance import Plan
from reference import adjustment, methods
from reference.adjustment import Counts
from reference.cluster import Cluster
from reference.ops import Selection, Vector


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
