"""`reference.adjustment` for CPU threads, compiled by numba: the same names, signatures, results.

A step needs to know of each layer how many of its values reach two thresholds. Mostly the layer's
head suffices, which holds its largest values from the selection; otherwise it takes a pass over the
whole layer. To make several steps, or to find the optimum, every layer is first reduced to those
values that can matter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import prange

from gpu import base
from gpu.numba.cache import njit
from gpu.numba.magnitudes import plain, threads_for
from gpu.numba.search import LEVELS, ROOM, SMALL, add_histogram, kth_largest, values_from
from gpu.numba.sweep import INFINITE
from reference.adjustment import Counts, Thresholds, lower_median, pair_order
from reference.ops import Head, NonFiniteError, Vector, float32_ceiling

PIECE = 1 << 16
"""Values counted in 32 bits, which keeps the vector registers full; sums are 64 bits."""


# Counting -----------------------------------------------------------------------------------------


@njit(nogil=True)
def _ceiling(t):
    """`reference.ops.float32_ceiling`."""
    nearest = np.float32(t)
    return np.nextafter(nearest, np.float32(np.inf)) if nearest < t else nearest


@njit(nogil=True)
def _count_two(v, t, other):
    """N(t) and N(other) of v (n), for float64 thresholds, in one pass."""
    low, high = _ceiling(t), _ceiling(other)
    total_low, total_high = 0, 0
    for first in range(0, v.size, PIECE):
        here, at_low, at_high = v[first : first + PIECE], np.int32(0), np.int32(0)
        for i in range(here.size):
            magnitude = abs(here[i])
            at_low += np.int32(magnitude >= low)
            at_high += np.int32(magnitude >= high)
        total_low, total_high = total_low + at_low, total_high + at_high
    return total_low, total_high


@njit(nogil=True, parallel=True)
def _count_two_threads(v, t, other, threads):
    counts = np.zeros((threads, 2), dtype=np.int64)
    for thread in prange(threads):
        mine = v[v.size * thread // threads : v.size * (thread + 1) // threads]
        counts[thread, 0], counts[thread, 1] = _count_two(mine, t, other)
    return counts[:, 0].sum(), counts[:, 1].sum()


class _Layer(NamedTuple):
    """A layer's values v (n), and its head: all values whose magnitude is above `floor`."""

    v: Vector
    head: Vector
    floor: float

    def counts(self, t: float, other: float) -> tuple[int, int]:
        """N(t) and N(other)."""
        return _counts(self.head if min(t, other) > self.floor else self.v, t, other)

    def has(self, t: float, many: int) -> bool:
        """Whether the head alone shows that N(t) >= many."""
        return self.head.size >= many and self.floor >= t

    def kth_largest(self, k: int) -> float:
        """a_k, k >= 1."""
        return kth_largest(self.head if k <= self.head.size else self.v, k)


def _with_head(v: Vector, head: Head | None) -> _Layer:
    v = v if plain(v) else np.array(v, dtype=np.float32)
    if head is None or not plain(head.values):
        return _Layer(v, v[:0], math.inf)
    return _Layer(v, head.values, -1.0 if head.values.size == v.size else head.floor)


def _counts(v: Vector, t: float, other: float) -> tuple[int, int]:
    """N(t) and N(other) of v (n)."""
    threads = threads_for(v.size)
    if threads == 1:
        return _count_two(v, t, other)
    return _count_two_threads(v, t, other, threads)


class Adjustment(base.Adjustment):
    """Algorithm 2 with counts in one pass, and with heads where there are any."""

    def fresh_thresholds(self, v: Sequence[Vector], k: Counts) -> Thresholds:
        """See `reference.adjustment.fresh_thresholds`."""
        inner = [
            kth_largest(layer, int(kl))
            for layer, kl in zip(v, k, strict=True)
            if 0 < kl < layer.size
        ]
        return self.complete_thresholds(v, k, inner)

    def complete_thresholds(
        self, v: Sequence[Vector], k: Counts, inner: Sequence[float]
    ) -> Thresholds:
        """See `reference.adjustment.complete_thresholds`."""
        known, middle = iter(inner), [lower_median(inner)] if inner else []
        t = np.empty(len(v), dtype=np.float64)
        for layer, kl in enumerate(k.tolist()):
            n = v[layer].size
            if 0 < kl < n:
                t[layer] = next(known)
            elif kl == 0:
                t[layer] = max([kth_largest(v[layer], 1), *middle])
            else:
                t[layer] = min([kth_largest(v[layer], n), *middle])
        return t

    def one_step_adjustment(
        self, v: Sequence[Vector], k: Counts, t: Thresholds
    ) -> tuple[Counts, Thresholds]:
        """See `reference.adjustment.one_step_adjustment`."""
        return _step(
            [_with_head(layer, None) for layer in v], [layer.size for layer in v], k, t, True
        )

    def adjust(
        self,
        v: Sequence[Vector],
        k: Counts,
        t: Thresholds,
        steps: int,
        heads: Sequence[Head] | None = None,
    ) -> Counts:
        """See `reference.adjustment.adjust`."""
        sizes = [layer.size for layer in v]
        layers = list(map(_with_head, v, [None] * len(v) if heads is None else heads))
        if steps > 1:
            layers = [
                _reduced(layer, float(t.min()), int(kl))
                for layer, kl in zip(layers, k, strict=True)
            ]
        for step in range(steps):
            k, t = _step(layers, sizes, k, t, with_thresholds=step < steps - 1)
        return k

    def optimal_adjustment(self, v: Sequence[Vector], k: Counts) -> Counts:
        """See `reference.adjustment.optimal_adjustment`.

        Histograms find the K-th largest magnitude of all layers.
        """
        total, layers = int(k.sum()), _contiguous(v)
        cut = above = 0
        for shift, width in LEVELS:
            counts = _histogram(layers, cut >> (shift + width), shift, width)
            if shift == LEVELS[0][0] and counts[INFINITE >> shift :].any():
                raise NonFiniteError("NaN or infinity in the accumulated gradient")
            if total == 0:
                return np.zeros_like(k)
            reach = above + counts[::-1].cumsum()[::-1]
            bucket = int(np.flatnonzero(reach >= total)[-1])
            cut, above = cut | bucket << shift, int(reach[bucket] - counts[bucket])
            if reach[bucket] <= ROOM * total + SMALL:
                layers = [_reduce(layer, cut, layer.size) for layer in layers]
        return _divide(layers, cut, total)


def _contiguous(v: Sequence[Vector]) -> list[Vector]:
    return [layer if plain(layer) else np.array(layer, dtype=np.float32) for layer in v]


def _reduced(layer: _Layer, lowest: float, k: int) -> _Layer:
    """The layer without the values below the lowest threshold.

    No step needs those, since all new thresholds lie between the lowest and the highest.
    """
    if layer.floor < lowest:
        return layer
    bits = int(float32_ceiling(lowest).view(np.int32))
    top = _reduce(layer.v, bits, ROOM * k + SMALL)
    return _Layer(top, layer.head, layer.floor) if top is layer.v else _Layer(top, top, -1.0)


def _reduce(v: Vector, cut: int, room: int) -> Vector:
    """The values of v that reach the cut, which is given as bits; v itself if they exceed room."""
    largest = values_from(v, cut, room) if cut > 0 else None
    return v if largest is None else largest


def _step(
    layers: Sequence[_Layer], sizes: Sequence[int], k: Counts, t: Thresholds, with_thresholds: bool
) -> tuple[Counts, Thresholds]:
    """One step; layers may lack values below the lowest of t.

    Without with_thresholds, the returned thresholds must not be used.
    """
    k, t = k.copy(), t.copy()
    order = pair_order(sizes, k, t)
    for low, high in zip(order[: len(order) // 2], reversed(order), strict=False):
        t1, t2 = float(t[low]), float(t[high])
        mid = (t1 + t2) / 2
        if not t1 < mid < t2:
            continue
        k_low, k_high = int(k[low]), int(k[high])
        low_at_t2, low_at_mid = layers[low].counts(t2, mid)
        enough = k_high + k_low - low_at_t2
        high_at_t1, high_at_mid = (
            (enough, 0) if layers[high].has(t1, enough) else layers[high].counts(t1, mid)
        )
        if high_at_t1 >= enough:
            d = k_low - low_at_mid
            t[low] = mid
            if with_thresholds and d > 0:
                t[high] = layers[high].kth_largest(k_high + d)
        else:
            d = high_at_mid - k_high
            t[high] = mid
            if with_thresholds and d > 0:
                t[low] = layers[low].kth_largest(k_low - d)
        k[low], k[high] = k_low - d, k_high + d
    return k, t


def _histogram(layers: Sequence[Vector], prefix: int, shift: int, width: int) -> Counts:
    """The sum of the layers' histograms; see `gpu.numba.search`."""
    counts = np.zeros(1 << width, dtype=np.int64)
    for layer in layers:
        add_histogram(layer, prefix, shift, width, counts)
    return counts


def _divide(layers: Sequence[Vector], cut: int, total: int) -> Counts:
    """How many of the `total` largest values lie in each layer (L).

    cut: the bits of the smallest of them. Equal values are given to the first layers.
    """
    threshold = float(np.int32(cut).view(np.float32))
    beyond = np.nextafter(
        threshold, np.inf
    )  # of float64: beyond the largest float32 is no infinity yet
    reach = np.array(
        [_counts(layer, threshold, float(beyond)) for layer in layers], dtype=np.int64
    ).reshape(-1, 2)
    ties, chosen = total - int(reach[:, 1].sum()), reach[:, 1].copy()
    for layer, (at, above) in enumerate(reach.tolist()):
        share = min(at - above, ties)
        chosen[layer] += share
        ties -= share
    return chosen
