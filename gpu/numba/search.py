"""The search in a whole layer, when no cut is known: histograms of the bits, coarse to fine."""

from __future__ import annotations

import numpy as np
from numba import prange
from numpy.typing import NDArray

from gpu.numba.cache import njit
from gpu.numba.magnitudes import (
    count_from,
    emit,
    emit_candidates,
    kth,
    largest_magnitude,
    plain,
    threads_for,
)
from gpu.numba.sweep import COMMON, INFINITE, MAGNITUDE, Bits, sweep, tile_marks
from reference import ops as reference
from reference.ops import Index, Vector

SMALL = 1 << 15
"""Layers up to this size stay in a core's cache, so bisecting all their values is cheap."""
ROOM = 3
"""A layer has room for ROOM·k + SLACK candidates; with more of them the hint was useless."""
LEVELS = ((20, 11), (10, 10), (0, 10))
"""The histograms of a search, coarse to fine: the lowest bit and the number of bits of each.

Together they cover the 31 bits of a magnitude.
"""

Positions = NDArray[np.uint32]
"""Positions of candidates in their layer."""


@njit(nogil=True)
def _histogram_share(bits, prefix, shift, width, counts):
    """Count the values of `width` bits from bit `shift` on, among magnitudes with the prefix.

    The numbers are added to counts (2^width). Two tables are used in turn, since counting the same
    bucket twice in a row would wait for memory.
    """
    other, mask = np.zeros_like(counts), np.int32((1 << width) - 1)
    for i in range(0, bits.size - 1, 2):
        one, two = bits[i] & MAGNITUDE, bits[i + 1] & MAGNITUDE
        if one >> (shift + width) == prefix:
            counts[(one >> shift) & mask] += 1
        if two >> (shift + width) == prefix:
            other[(two >> shift) & mask] += 1
    if bits.size % 2 and (bits[-1] & MAGNITUDE) >> (shift + width) == prefix:
        other[((bits[-1] & MAGNITUDE) >> shift) & mask] += 1
    for i in range(counts.size):
        counts[i] += other[i]


@njit(nogil=True, parallel=True)
def _histogram(bits, prefix, shift, width, threads):
    """`_histogram_share` of equal shares, one for each thread: int64 (threads, 2^width)."""
    counts = np.zeros((threads, 1 << width), dtype=np.int64)
    for thread in prange(threads):
        first, stop = bits.size * thread // threads, bits.size * (thread + 1) // threads
        _histogram_share(bits[first:stop], prefix, shift, width, counts[thread])
    return counts


def narrow(bits: Bits, k: int, enough: int, threads: int) -> tuple[int, NDArray[np.int64], bool]:
    """A cut that at least k magnitudes reach and, if possible, at most `enough`.

    Returns the cut, how many magnitudes reach it in each thread's share, and whether it is exact,
    that is the k-th largest magnitude itself. In that case the numbers are of those above it.
    """
    cut, above = 0, np.zeros(threads, dtype=np.int64)
    reach = above
    for shift, width in LEVELS:
        counts = _histogram(bits, np.int32(cut >> (shift + width)), shift, width, threads)
        downwards = counts[:, ::-1].cumsum(axis=1)[:, ::-1] + above[:, None]
        bucket = int(np.flatnonzero(downwards.sum(axis=0) >= k)[-1])
        cut, reach = cut | bucket << shift, downwards[:, bucket]
        above = reach - counts[:, bucket]
        if shift and reach.sum() <= enough:
            return cut, reach, False
    return cut, above, True


@njit(nogil=True, parallel=True)
def _count_threads(bits, cut, threads):
    """How many magnitudes of each thread's share reach the cut: int64 (threads)."""
    counts = np.zeros(threads, dtype=np.int64)
    for thread in prange(threads):
        counts[thread] = count_from(
            bits[bits.size * thread // threads : bits.size * (thread + 1) // threads], cut
        )
    return counts


@njit(nogil=True, parallel=True)
def _collect_threads(v, bits, cut, starts, positions, candidates):
    """Collect what reaches the cut; starts (threads + 1): where each thread writes its share."""
    threads = starts.size - 1
    for thread in prange(threads):
        first, stop = bits.size * thread // threads, bits.size * (thread + 1) // threads
        mine = slice(starts[thread], starts[thread + 1])
        sweep(v, bits, v[:0], first, stop, cut, positions[mine], candidates[mine], tile_marks())


def reach_of(v: Vector, cut: int) -> NDArray[np.int64]:
    """How many values of each thread's share of v (n) reach the cut: int64 (threads)."""
    bits, threads = v.view(np.int32), threads_for(v.size)
    return (
        np.array([count_from(bits, np.int32(cut))])
        if threads == 1
        else _count_threads(bits, np.int32(cut), threads)
    )


def collect_exactly(v: Vector, cut: int, reach: NDArray[np.int64]) -> tuple[Positions, Bits]:
    """Positions and bits of the values that reach the cut; reach: their number in each share."""
    starts = np.concatenate([[0], np.cumsum(reach + COMMON)])
    positions, candidates = (
        np.empty(starts[-1], dtype=np.uint32),
        np.empty(starts[-1], dtype=np.int32),
    )
    _collect_threads(v, v.view(np.int32), np.int32(cut), starts, positions, candidates)
    inside = [slice(start, start + count) for start, count in zip(starts[:-1], reach, strict=True)]
    return np.concatenate([positions[part] for part in inside]), np.concatenate(
        [candidates[part] for part in inside]
    )


def choose_by_histogram(v: Vector, k: int, origin: int, index: Index, values: Vector) -> int:
    """Top-k of a finite layer v (n), k >= 1, into index and values (k); returns the threshold."""
    bits, threads = v.view(np.int32), threads_for(v.size)
    cut, reach, exact = narrow(bits, k, ROOM * k + SMALL, threads)
    if exact:  # too many ties to collect them all in memory
        emit(v, bits, k, np.int32(cut), int(reach.sum()), origin, index, values)
        return cut
    positions, candidates = collect_exactly(v, cut, reach)
    threshold = kth(candidates, k, np.int32(cut), INFINITE)
    emit_candidates(positions, candidates, k, threshold, origin, index, values)
    return int(threshold)


# What the backend's modules call ------------------------------------------------------------------


@njit(nogil=True, parallel=True)
def largest_magnitude_threads(bits, threads):
    """`largest_magnitude` on several threads."""
    largest = np.zeros(threads, dtype=np.int32)
    for thread in prange(threads):
        largest[thread] = largest_magnitude(
            bits[bits.size * thread // threads : bits.size * (thread + 1) // threads]
        )
    return largest.max()


def kth_magnitude(v: Vector, k: int) -> int:
    """The bits of the k-th largest magnitude of v (n), 1 <= k <= n; NaN exceeds infinity."""
    bits, threads = v.view(np.int32), threads_for(v.size)
    if k == 1:
        return int(
            largest_magnitude(bits) if threads == 1 else largest_magnitude_threads(bits, threads)
        )
    if v.size <= SMALL:
        return int(kth(bits, k, np.int32(0), MAGNITUDE))
    return narrow(bits, k, 0, threads)[0]


def kth_largest(v: Vector, k: int) -> float:
    """See `reference.ops.kth_largest`."""
    if not plain(v) or not 0 < k <= v.size:
        return reference.kth_largest(v, k)
    return float(np.int32(kth_magnitude(v, k)).view(np.float32))


def values_from(v: Vector, cut: int, room: int) -> Vector | None:
    """The values of v (n) that reach the cut, in order; None if there are more than `room`."""
    reach = reach_of(v, cut)
    return None if reach.sum() > room else collect_exactly(v, cut, reach)[1].view(np.float32)


def add_histogram(
    v: Vector, prefix: int, shift: int, width: int, counts: NDArray[np.int64]
) -> None:
    """`_histogram_share` of all of v, on several threads if it is large."""
    threads = threads_for(v.size)
    if threads == 1:
        _histogram_share(v.view(np.int32), np.int32(prefix), shift, width, counts)
    else:
        counts += _histogram(v.view(np.int32), np.int32(prefix), shift, width, threads).sum(axis=0)
