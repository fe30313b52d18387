"""Algorithm 2: budget moves between layers until all of them have the same threshold.

The paper proves Property 1 and Property 2 with distribution functions; here the same steps use
counts of the actual values, so that both hold exactly and no distribution is assumed [ours, after
the proof of Property 2]. Shapes: v is a list of L vectors (n_l), k int64 (L), t float64 (L). A
threshold of layer l is any number with #{|v_l| > t} <= k_l <= #{|v_l| >= t}.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference import ops
from reference.ops import Head, Vector

Counts = NDArray[np.int64]
"""k of each layer (L)."""
Thresholds = NDArray[np.float64]
"""t of each layer (L)."""


class _Pair(NamedTuple):
    """k and t of a pair of layers after one adjustment."""

    k_low: int
    k_high: int
    t_low: float
    t_high: float


def set_size(t: Thresholds) -> float:
    """max t_l - min t_l, which repeated adjustments reduce to 0 [paper, Property 1]."""
    return float(t.max() - t.min())


def lower_median(values: Sequence[float]) -> float:
    """The middle one of the sorted values; the lower one of two middle values."""
    return sorted(values)[(len(values) - 1) // 2]


def fresh_thresholds(v: Sequence[Vector], k: Counts) -> Thresholds:
    """The thresholds t (L) right after a top-k.

    t_l = a_{k_l}, the k_l-th largest magnitude, if 0 < k_l < n_l. If k_l is 0 or n_l, any value on
    one side is a valid threshold; we take the one closest to T, the lower median of the other
    layers' thresholds: max(a_1, T) for k_l = 0, min(a_n, T) for k_l = n_l, and a_1 or a_n if there
    are no other layers.
    """
    inner = [
        ops.kth_largest(layer, int(kl))
        for layer, kl in zip(v, k, strict=True)
        if 0 < kl < layer.size
    ]
    return complete_thresholds(v, k, inner)


def complete_thresholds(v: Sequence[Vector], k: Counts, inner: Sequence[float]) -> Thresholds:
    """`fresh_thresholds`, given `inner`: a_{k_l} of all layers with 0 < k_l < n_l, in order."""
    known = iter(inner)
    t = np.empty(len(v), dtype=np.float64)
    for layer, kl in enumerate(k):
        n = v[layer].size
        if 0 < kl < n:
            t[layer] = next(known)
        elif kl == 0:
            t[layer] = max(
                [ops.kth_largest(v[layer], 1), *([lower_median(inner)] if inner else [])]
            )
        else:
            t[layer] = min(
                [ops.kth_largest(v[layer], n), *([lower_median(inner)] if inner else [])]
            )
    return t


def pair_order(sizes: Sequence[int], k: Counts, t: Thresholds) -> list[int]:
    """The layers ordered by (t_l, c_l, l).

    c_l is 0 if the whole layer is selected (k_l = n_l), 2 if nothing is (k_l = 0), otherwise 1.
    """
    rank = [0 if kl == n else 2 if kl == 0 else 1 for n, kl in zip(sizes, k, strict=True)]
    return sorted(range(len(rank)), key=lambda layer: (t[layer], rank[layer], layer))


def one_step_adjustment(v: Sequence[Vector], k: Counts, t: Thresholds) -> tuple[Counts, Thresholds]:
    """One step of Algorithm 2 [paper's ONESTEPADJUSTMENT(), in finite-sample form]: new (k, t).

    The sum of k does not change. The layer with the lowest threshold is paired with the one with
    the highest, the second lowest with the second highest, and so on; with an odd number of layers
    the middle one stays as it is. In each pair the difference of the thresholds falls to half of
    what it was, or less [paper, Property 2].
    """
    k, t = k.copy(), t.copy()
    order = pair_order([layer.size for layer in v], k, t)
    for low, high in zip(order[: len(order) // 2], reversed(order), strict=False):
        step = _adjust_pair(
            v[low], v[high], int(k[low]), int(k[high]), float(t[low]), float(t[high])
        )
        if step is not None:
            k[low], k[high], t[low], t[high] = step
    return k, t


def _adjust_pair(
    low: Vector, high: Vector, k_low: int, k_high: int, t1: float, t2: float
) -> _Pair | None:
    """Move d entries of the budget from the layer with threshold t1 to the one with t2 > t1.

    None if no float64 lies between t1 and t2.
    """
    mid = (t1 + t2) / 2
    if not t1 < mid < t2:
        return None
    selected_below_t2 = k_low - ops.count_at_least(low, t2)
    unselected_from_t1 = ops.count_at_least(high, t1) - k_high
    if selected_below_t2 <= unselected_from_t1:
        d = k_low - ops.count_at_least(low, mid)
        return _Pair(k_low - d, k_high + d, mid, ops.kth_largest(high, k_high + d) if d > 0 else t2)
    d = ops.count_at_least(high, mid) - k_high
    return _Pair(k_low - d, k_high + d, ops.kth_largest(low, k_low - d) if d > 0 else t1, mid)


def adjust(
    v: Sequence[Vector],
    k: Counts,
    t: Thresholds,
    steps: int,
    heads: Sequence[Head] | None = None,  # noqa: ARG001
) -> Counts:
    """DLS(s): k (L) after `steps` one-step adjustments that start from the fresh thresholds t.

    `heads` (L) are those of `ops.select_layers` for the same v. They may save work, and never
    change the result.
    """
    for _ in range(steps):
        k, t = one_step_adjustment(v, k, t)
    return k


def optimal_adjustment(v: Sequence[Vector], k: Counts) -> Counts:
    """The limit of repeated steps [paper's OPTIMALADJUSTMENT()], computed directly.

    It is how many of the Global Top-k of v, K in all, lie in each layer. A layer's part of the
    Global Top-k is also part of that layer's own top min(K, n_l), so the search looks only at
    those. The lower flat index comes first among equals.
    """
    total = int(k.sum())
    candidates = [ops.top_k(layer, min(total, layer.size))[1] for layer in v]
    chosen, _ = ops.top_k(np.concatenate(candidates), total)
    ends = np.cumsum([c.size for c in candidates])
    return np.diff(np.searchsorted(chosen, ends), prepend=0).astype(np.int64)
