"""`reference.adjustment` on CuPy arrays.

A step counts for all pairs in one launch and finds the new thresholds in one search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gpu import base
from gpu.cupy import device
from gpu.cupy.search import apart, counts_at_least, kth_bits
from reference.adjustment import Counts, Thresholds, lower_median, pair_order
from reference.ops import Head, NonFiniteError, Vector


class Adjustment(base.Adjustment):
    """Algorithm 2 with a few launches a step, whatever the number of layers."""

    def fresh_thresholds(self, v: Sequence[Vector], k: Counts) -> Thresholds:
        """See `reference.adjustment.fresh_thresholds`."""
        sizes = np.array([layer.size for layer in v])
        between = (k > 0) & (k < sizes)
        inner = _kth([v[layer] for layer in np.flatnonzero(between).tolist()], k[between])
        return self.complete_thresholds(v, k, inner.tolist())

    def complete_thresholds(
        self, v: Sequence[Vector], k: Counts, inner: Sequence[float]
    ) -> Thresholds:
        """See `reference.adjustment.complete_thresholds`."""
        sizes = np.array([layer.size for layer in v])
        between, empty = (k > 0) & (k < sizes), k == 0
        t = np.empty(k.size)
        t[between] = inner
        if not between.all():
            end = _kth(
                [v[layer] for layer in np.flatnonzero(~between).tolist()],
                np.where(empty, 1, sizes)[~between],
            )
            middle = lower_median(inner) if len(inner) else end
            t[~between] = np.where(
                empty[~between], np.maximum(end, middle), np.minimum(end, middle)
            )
        return t

    def one_step_adjustment(
        self, v: Sequence[Vector], k: Counts, t: Thresholds
    ) -> tuple[Counts, Thresholds]:
        """See `reference.adjustment.one_step_adjustment`."""
        return _step(v, k, t, with_thresholds=True)

    def adjust(
        self,
        v: Sequence[Vector],
        k: Counts,
        t: Thresholds,
        steps: int,
        heads: Sequence[Head] | None = None,
    ) -> Counts:
        """See `reference.adjustment.adjust`.

        A pass over v takes a GPU hardly longer than one over the heads, which are not used.
        """
        for step in range(steps):
            k, t = _step(v, k, t, with_thresholds=step < steps - 1)
        return k

    def optimal_adjustment(self, v: Sequence[Vector], k: Counts) -> Counts:
        """See `reference.adjustment.optimal_adjustment`: from counts at the global threshold.

        Equal values are given to the lower layers.
        """
        total, threshold = int(k.sum()), np.inf
        if total:
            bits = kth_bits(apart(v), np.array([total]), together=True)
            threshold = float(device.to_host(bits).view(np.float32)[0])
        of_interest = [threshold, np.nextafter(threshold, np.inf), np.inf]
        above_or_equal, above, infinite = counts_at_least(v, np.tile(of_interest, (len(v), 1))).T
        if infinite.any():
            raise NonFiniteError("NaN or infinity in the accumulated gradient")
        equal = above_or_equal - above
        before = np.cumsum(equal) - equal
        k = above + np.clip(total - above.sum() - before, 0, equal)
        return k.astype(np.int64, copy=False)


def _kth(v: Sequence[Vector], k: NDArray[np.int64]) -> NDArray[np.float64]:
    """The k-th largest magnitude of each vector."""
    bits = kth_bits(apart(v), k)
    return device.to_host(bits).view(np.float32).astype(np.float64)


def _step(
    v: Sequence[Vector], k: Counts, t: Thresholds, with_thresholds: bool
) -> tuple[Counts, Thresholds]:
    """One step. Without with_thresholds, the returned thresholds must not be used.

    Finding them takes longer than everything else.
    """
    k, t = k.copy(), t.copy()
    order = np.array(pair_order([layer.size for layer in v], k, t))
    low, high = order[: order.size // 2], order[::-1][: order.size // 2]
    mid = (t[low] + t[high]) / 2
    moving = (t[low] < mid) & (mid < t[high])
    low, high, mid = low[moving], high[moving], mid[moving]
    if not low.size:
        return k, t
    t1, t2 = t[low], t[high]
    asked = np.full((len(v), 2), np.inf)
    asked[low], asked[high] = np.stack([t2, mid], axis=1), np.stack([t1, mid], axis=1)
    counts = counts_at_least(v, asked)  # for all layers, since their chunks are known
    of_low, of_high = counts[low], counts[high]
    raise_low = k[low] - of_low[:, 0] <= of_high[:, 0] - k[high]
    d = np.where(raise_low, k[low] - of_low[:, 1], of_high[:, 1] - k[high])
    k[low], k[high] = k[low] - d, k[high] + d
    t[low], t[high] = np.where(raise_low, mid, t1), np.where(raise_low, t2, mid)
    other = np.where(raise_low, high, low)[d > 0]
    if with_thresholds and other.size:
        t[other] = _kth([v[i] for i in other], k[other])
    return k, t
