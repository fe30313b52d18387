"""Global Top-k, Layer-wise Top-k and DLS in their plainest form: all layers at once, on one rank.

Shapes: v is a list of L vectors (n_l), k int64 (L). The method classes at the end are what
`reference.cluster` runs. The program's own methods (`dls.exchange.methods`) do the same layer by
layer, as gradients arrive, and are tested against these.
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
"""Density of the first step of a density warm-up, unless the final density is higher."""

Steps = int | Literal["optimal"]
"""s of DLS(s): how many adjustments follow a training step."""

Source = Literal["sent", "left", "ahead"]
"""What DLS uses as the next step's v: see `guess_v`."""

LARGEST = np.finfo(np.float32).max
"""The largest finite float32."""


Sent = Sequence[Sequence[Selection]]
"""What a rank sends in a step, each part with a selection from every layer.

The first part is sent layer by layer; the second, if there is one, with the last message.
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
    """The density of training step `step` (from 0) in a warm-up of `warmup` steps.

    It falls geometrically from 0.25 to `density`. In Deep Gradient Compression (Lin et al., 2018)
    it falls once an epoch; here it falls in every step [ours].
    """
    start = max(WARMUP_DENSITY, density)
    share = min(step / warmup, 1.0) if warmup else 1.0
    return float(start ** (1 - share) * density**share)


def largest_remainder(total: int, weights: Sequence[int]) -> list[int]:
    """Divide `total` in proportion to integer weights by the method of largest remainders.

    Each gets ⌊total·w/Σw⌋; the rest goes to the largest total·w mod Σw, the first one first among
    equals. Python integers, so nothing overflows.
    """
    whole = sum(weights)
    shares = [total * w // whole for w in weights]
    by_remainder = sorted(range(len(weights)), key=lambda i: (-(total * weights[i] % whole), i))
    for i in by_remainder[: total - sum(shares)]:
        shares[i] += 1
    return shares


def split_budget(total: int, sizes: Sequence[int]) -> Counts:
    """Layer-wise Top-k's k (L): the budget K divided among the layers in proportion to n_l.

    ValueError unless 0 <= K <= n.
    """
    weights = [int(n) for n in sizes]
    if not 0 <= total <= sum(weights):
        raise ValueError(f"a budget of {total} does not fit into {sum(weights)} values")
    return np.array(largest_remainder(total, weights), dtype=np.int64)


def rescale(k: Counts, sizes: Sequence[int], total: int) -> Counts:
    """k (L) for another budget, in proportion to the present k and never above n_l [ours].

    Density warm-up needs it. What exceeds a full layer goes to the others, again in proportion; if
    these have k = 0, in proportion to n_l.
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
    """One top-k over all layers of this rank, as a selection from each layer.

    "Global" refers to the layers, not to the ranks.
    """
    offsets = np.cumsum([0, *(layer.size for layer in v)])
    return split_selection(*ops.top_k(np.concatenate(v), total), offsets)


def split_selection(index: Index, values: Vector, offsets: Index) -> list[Selection]:
    """Split a selection from a flat buffer into those from its layers, at offsets (L + 1)."""
    cuts = np.searchsorted(index, offsets[1:-1])
    parts = zip(np.split(index, cuts), np.split(values, cuts), offsets, strict=False)
    return [(part - start, part_values) for part, part_values, start in parts]


def layerwise_topk(v: Sequence[Vector], k: Counts) -> list[Selection]:
    """One top-k in each layer."""
    return [ops.top_k(layer, int(kl)) for layer, kl in zip(v, k, strict=True)]


def own_k(k: Counts, reserve: float) -> Counts:
    """DLS: how many of its k_l values each layer selects by itself; k and the result are [..., L].

    The rest of the budget is the reserve. A layer selects k_l − ⌈reserve·√k_l⌉ values by itself, at
    least 0; layer 0, whose gradient comes last, selects none. If reserve is 0, the result is k. The
    number of values above a common threshold varies from step to step by about √k_l, so a reserve
    of 2 leaves room for two standard deviations [ours].
    """
    if not reserve:
        return k
    with np.errstate(over="ignore"):  # infinity is as good as k
        held = np.minimum(np.ceil(reserve * np.sqrt(k)), k).astype(np.int64)
    own: Counts = k - held
    own[..., 0] = 0
    return own


def dls_select(v: Sequence[Vector], k: Counts, reserve: float) -> Sent:
    """DLS: each layer's own selection, then the reserve: the largest values left in any layer."""
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
    """DLS: what the adjustment uses as the next step's v (L vectors) [ours].

    "sent": this step's v, including what was sent. "left": what was not sent. "ahead": what was not
    sent plus this step's gradient again; where float32 overflows, its largest number.
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
    """DLS(s): k for the next step, from fresh thresholds and s adjustments, or the optimum.

    v is used as that of the next step (`guess_v`); k is what each layer sent in this step.
    """
    if steps == "optimal":
        return adjustment.optimal_adjustment(v, k)
    return adjustment.adjust(v, k, adjustment.fresh_thresholds(v, k), steps)


class Method(Protocol):
    """What a sparse method decides: the selection of each step, and k of the next step."""

    def select(self, v: Sequence[Vector], k: Counts) -> Sent:
        """The entries to send; k (L) sums to the budget."""

    def next_k(
        self, v: Sequence[Vector], k: Counts, step: int, sent: Sent, gradients: Sequence[Vector]
    ) -> Counts:
        """k after training step number `step`, counted from 1.

        sent: what the step has sent of v; gradients: its fresh gradients, by layer.
        """


@dataclass(frozen=True)
class GlobalTopk:
    """Global Top-k: only the sum of k matters."""

    def select(self, v: Sequence[Vector], k: Counts) -> Sent:
        """See `global_topk`."""
        return [global_topk(v, int(k.sum()))]

    def next_k(self, v: Sequence[Vector], k: Counts, step: int, *_: Any) -> Counts:
        """k does not change."""
        return k


@dataclass(frozen=True)
class LayerwiseTopk:
    """Layer-wise Top-k: k does not change."""

    def select(self, v: Sequence[Vector], k: Counts) -> Sent:
        """See `layerwise_topk`."""
        return [layerwise_topk(v, k)]

    def next_k(self, v: Sequence[Vector], k: Counts, step: int, *_: Any) -> Counts:
        """k does not change."""
        return k


@dataclass(frozen=True)
class Dls:
    """DLS(steps), which adjusts k after training steps `every`, 2·`every`, …"""

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
