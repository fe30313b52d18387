"""Global Top-k, Layer-wise Top-k and DLS in their plainest form: all layers at once, on one rank.

Shapes: v is a list of L vectors (n_l), k int64 (L). The method classes at the end are what
`reference.cluster` runs; the program's own methods (`dls.exchange.methods`) mean the same, layer by
layer as gradients arrive, and are tested against these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from reference import adjustment, ops
from reference.adjustment import Counts
from reference.ops import Head, Index, Selection, Vector

WARMUP_DENSITY = 0.25
"""Density of the first step of a density warm-up."""

Steps = int | Literal["optimal"]
"""s of DLS(s): how many adjustments follow a training step."""

Source = Literal["sent", "left", "ahead"]
"""What DLS takes the next step's v to be: see `guess_v`."""

LARGEST = np.finfo(np.float32).max

Sent = Sequence[Sequence[Selection]]
"""What a rank sends in a step: what leaves first, and what leaves later, if anything, each as
selections from all layers.
"""


def budget(n: int, density: float) -> int:
    """K = round(density · n), half to even. ValueError unless 0 < density <= 1 and K >= 1."""
    if not 0 < density <= 1:
        raise ValueError(f"density must lie in (0, 1], not {density}")
    total = round(density * n)
    if total < 1:
        raise ValueError(f"density {density} of {n} values rounds to no value at all")
    return total


def warmup_density(density: float, step: int, warmup: int) -> float:
    """The density of training step `step` (from 0) under a warm-up of `warmup` steps: geometric
    from 0.25 down to `density`.

    Deep Gradient Compression (Lin et al., 2018) steps through such a series by epochs; here it
    falls at every step [ours].
    """
    start = max(WARMUP_DENSITY, density)
    share = min(step / warmup, 1.0) if warmup else 1.0
    return float(start ** (1 - share) * density**share)


def largest_remainder(total: int, weights: Sequence[int]) -> list[int]:
    """Split `total` in proportion to integer weights: ⌊total·w/Σw⌋ each, the rest to the largest
    total·w mod Σw.

    The first comes first among equal remainders. Python integers, so nothing overflows.
    """
    whole = sum(weights)
    shares = [total * w // whole for w in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def split_budget(total: int, sizes: Sequence[int]) -> Counts:
    """Layer-wise Top-k's k (L): the budget K split over the layers in proportion to n_l.

    ValueError unless 0 <= K <= n.
    """
    weights = [int(n) for n in sizes]
    if not 0 <= total <= sum(weights):
        raise ValueError(f"a budget of {total} does not fit into {sum(weights)} values")
    return np.array(largest_remainder(total, weights), dtype=np.int64)


def rescale(k: Counts, sizes: Sequence[int], total: int) -> Counts:
    """k (L) moved to another budget, in proportion to the present k, never above n_l (for density
    warm-up) [ours].

    What exceeds a full layer goes to the others, again in proportion; where these have k = 0, in
    proportion to n_l.
    """
    shares: dict[int, int] = {}
    while len(shares) < len(sizes):
        open_layers = [i for i in range(len(sizes)) if i not in shares]
        weights = [int(k[i]) for i in open_layers]
        weights = weights if sum(weights) else [int(sizes[i]) for i in open_layers]
        split = dict(
            zip(open_layers, largest_remainder(total - sum(shares.values()), weights), strict=True)
        )
        shares |= {i: int(sizes[i]) for i, share in split.items() if share > sizes[i]} or split
    return np.array([shares[i] for i in range(len(sizes))], dtype=np.int64)


def global_topk(v: Sequence[Vector], total: int) -> list[Selection]:
    """One top-k over this rank's whole gradient (global over layers, not over ranks), as selections
    per layer.
    """
    offsets = np.cumsum([0, *(layer.size for layer in v)])
    return split_selection(*ops.top_k(np.concatenate(v), total), offsets)


def split_selection(index: Index, values: Vector, offsets: Index) -> list[Selection]:
    """A selection from a flat buffer as selections from its layers, which begin at offsets (L +
    1).
    """
    cuts = np.searchsorted(index, offsets[1:-1])
    parts = zip(np.split(index, cuts), np.split(values, cuts), offsets, strict=False)
    return [(part - start, part_values) for part, part_values, start in parts]


def layerwise_topk(v: Sequence[Vector], k: Counts) -> list[Selection]:
    """One top-k in each layer."""
    return [ops.top_k(layer, int(kl)) for layer, kl in zip(v, k, strict=True)]


def own_k(k: Counts, reserve: float) -> Counts:
    """DLS: how many of its k_l values each layer chooses by itself, k [..., L]; the rest of the
    budget is the reserve.

    k_l − ⌈reserve·√k_l⌉, at least 0, and nothing for the layer whose gradient comes last, 0; all of
    k where reserve is 0. The next count of values above a common threshold varies by about √k_l, so
    a reserve of 2 leaves room for two standard deviations of it [ours].
    """
    if not reserve:
        return k
    with np.errstate(over="ignore"):  # infinity is as good as k
        held = np.minimum(np.ceil(reserve * np.sqrt(k)), k).astype(np.int64)
    own: Counts = k - held
    own[..., 0] = 0
    return own


def dls_select(v: Sequence[Vector], k: Counts, reserve: float) -> Sent:
    """DLS: what each layer chooses by itself, then what the reserve brings: the largest of all that
    is left, over all layers.
    """
    own = layerwise_topk(v, own_k(k, reserve))
    if not reserve:
        return [own]
    offsets = np.cumsum([0, *(layer.size for layer in v)])
    thresholds = [ops.kth_largest(values, values.size) for _, values in own]
    heads = [
        Head(index, values, index.size, t, t)
        for (index, values), t in zip(own, thresholds, strict=True)
    ]
    room = int(k.sum()) - sum(head.chosen for head in heads)
    return [
        own,
        split_selection(*ops.top_k_of_rest(np.concatenate(v), offsets, heads, room), offsets),
    ]


def guess_v(
    v: Sequence[Vector], sent: Sent, gradients: Sequence[Vector], source: Source
) -> list[Vector]:
    """DLS: the next step's v (L vectors), as the adjustment takes it to be [ours].

    "sent": as this step's v, with what was sent; "left": what was not sent; "ahead": that, and this
    step's gradient once more, where float32 overflows its largest number.
    """
    if source == "sent":
        return list(v)
    left = [layer.copy() for layer in v]
    for selections in sent:
        for layer, (index, _) in zip(left, selections, strict=True):
            layer[index] = 0
    if source == "ahead":
        for layer, gradient in zip(left, gradients, strict=True):
            with np.errstate(over="ignore"):
                ops.accumulate(layer, gradient)
            np.clip(layer, -LARGEST, LARGEST, out=layer)
    return left


def dls_next_k(v: Sequence[Vector], k: Counts, steps: Steps) -> Counts:
    """DLS(s): k for the next training step, from fresh thresholds and s one-step adjustments, or
    the optimum.

    v is what the next one is taken to be (`guess_v`), k what each layer sent in this step.
    """
    if steps == "optimal":
        return adjustment.optimal_adjustment(v, k)
    return adjustment.adjust(v, k, adjustment.fresh_thresholds(v, k), steps)


class Method(Protocol):
    """What a sparse method decides: k of the first step, the selection of each step, k of the
    next.
    """

    def select(self, v: Sequence[Vector], k: Counts) -> Sent:
        """The entries to upload; k (L) sums to the budget."""

    def next_k(
        self, v: Sequence[Vector], k: Counts, step: int, sent: Sent, gradients: Sequence[Vector]
    ) -> Counts:
        """k after training step number `step`, from 1, which sent those entries of v; gradients:
        the step's fresh ones.
        """


@dataclass(frozen=True)
class GlobalTopk:
    """Global Top-k: only the sum of k matters."""

    def select(self, v: Sequence[Vector], k: Counts) -> Sent:
        """See `global_topk`."""
        return [global_topk(v, int(k.sum()))]

    def next_k(self, v: Sequence[Vector], k: Counts, step: int, *_: Any) -> Counts:
        """The budget stays."""
        return k


@dataclass(frozen=True)
class LayerwiseTopk:
    """Layer-wise Top-k: k stays as it is."""

    def select(self, v: Sequence[Vector], k: Counts) -> Sent:
        """See `layerwise_topk`."""
        return [layerwise_topk(v, k)]

    def next_k(self, v: Sequence[Vector], k: Counts, step: int, *_: Any) -> Counts:
        """Every layer keeps its k."""
        return k


@dataclass(frozen=True)
class Dls:
    """DLS(steps), adjusting after the training steps `every`, 2·`every`, …"""

    steps: Steps = 1
    every: int = 1
    source: Source = "sent"
    reserve: float = 2.0

    def select(self, v: Sequence[Vector], k: Counts) -> Sent:
        """See `dls_select`."""
        return dls_select(v, k, self.reserve)

    def next_k(
        self, v: Sequence[Vector], k: Counts, step: int, sent: Sent, gradients: Sequence[Vector]
    ) -> Counts:
        """See `guess_v` and `dls_next_k`."""
        if step % self.every:
            return k
        counts: Counts = np.array(
            [[index.size for index, _ in selections] for selections in sent], dtype=np.int64
        ).sum(axis=0)
        return dls_next_k(guess_v(v, sent, gradients, self.source), counts, self.steps)
