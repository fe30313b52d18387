"""The exact choice among magnitudes: counting, ranks, and writing out what was chosen.

The magnitude of a float32 is its bit pattern without the sign, an int32 here: it orders exactly as
|v| does, zeros of both signs are equal, denormals are not flushed, and whatever reaches 0x7f800000
is infinity or NaN. So the selection compares integers.
"""

from __future__ import annotations

import numba
import numpy as np

from gpu.numba.cache import njit
from gpu.numba.sweep import MAGNITUDE
from reference.ops import Vector

BLOCK = 256
"""Values between two looks at the threshold."""
SHARE = 1 << 15
"""Fewest values worth a thread of their own: some ten microseconds of work, more than waking a
thread takes.
"""
MANY, BUCKETS = 1 << 16, 2048
"""Candidates from which on one histogram of so many buckets beats bisecting them all."""


def threads_for(n: int) -> int:
    """How many threads n values are worth."""
    return int(max(1, min(numba.get_num_threads(), n // SHARE)))


def plain(*vectors: Vector) -> bool:
    """Whether all are contiguous float32 vectors that may be written to, the one type the kernels
    are compiled for.
    """
    return all(
        v.dtype == np.float32 and v.flags.c_contiguous and v.flags.writeable for v in vectors
    )


@njit(nogil=True)
def count_from(bits, cut):
    """How many magnitudes reach the cut."""
    count = 0
    for first in range(0, bits.size, 1 << 30):
        here, part = (
            bits[first : first + (1 << 30)],
            np.int32(0),
        )  # a 32-bit sum keeps the vectors full
        for i in range(here.size):
            part += np.int32((here[i] & MAGNITUDE) >= cut)
        count += part
    return count


@njit(nogil=True)
def _least_from(bits, cut):
    """The smallest magnitude that reaches the cut."""
    least = MAGNITUDE
    for i in range(bits.size):
        magnitude = bits[i] & MAGNITUDE
        if magnitude >= cut:
            least = min(least, magnitude)
    return least


@njit(nogil=True)
def _bisect(bits, k, low, high):
    """The k-th largest magnitude, k >= 1, which lies between low and high."""
    low, high = np.int64(low), np.int64(high) + 1
    while high - low > 1:
        middle = np.int32((low + high) >> 1)
        count = count_from(bits, middle)
        if count == k:
            return _least_from(bits, middle)
        if count > k:
            low = np.int64(middle)
        else:
            high = np.int64(middle)
    return np.int32(low)


@njit(nogil=True)
def kth(bits, k, low, high):
    """The k-th largest magnitude, k >= 1, of magnitudes between low and high: by bisection, of many
    first to one bucket.
    """
    if bits.size <= MANY:
        return _bisect(bits, k, low, high)
    shift = 0
    while (np.int64(high) - low) >> shift >= BUCKETS:
        shift += 1
    counts = np.zeros(BUCKETS, dtype=np.int64)
    for i in range(bits.size):
        counts[((bits[i] & MAGNITUDE) - low) >> shift] += 1
    bucket, above = BUCKETS - 1, 0
    while above + counts[bucket] < k:
        above += counts[bucket]
        bucket -= 1
    inside, count = np.empty(counts[bucket] + 1, dtype=np.int32), 0
    for i in range(bits.size):
        magnitude = bits[i] & MAGNITUDE
        inside[count] = magnitude
        count += (magnitude - low) >> shift == bucket
    first = low + (np.int64(bucket) << shift)
    return _bisect(inside[:count], k - above, first, min(np.int64(high), first + (1 << shift) - 1))


@njit(nogil=True)
def largest_magnitude(bits):
    """The largest magnitude, as bits; 0 of an empty vector."""
    largest = np.int32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & MAGNITUDE)
    return largest


@njit(nogil=True)
def emit(v, bits, k, threshold, above, origin, index, values):
    """Write the entries above the threshold, and of those equal to it the first k − above, from a
    whole layer.

    The layer's first value is number `origin` of the index space.
    """
    ties, count = k - above, 0
    for first in range(0, bits.size, BLOCK):
        here = bits[first : first + BLOCK]
        if count == k or largest_magnitude(here) < threshold:
            continue
        for i in range(here.size):
            magnitude = here[i] & MAGNITUDE
            if magnitude > threshold or (magnitude == threshold and ties > 0):
                ties -= magnitude == threshold
                index[count], values[count] = origin + first + i, v[first + i]
                count += 1


@njit(nogil=True)
def emit_found(places, found, k, threshold, origin, index, values):
    """`emit`, from a layer's candidates.

    Every one is written, and the next one over it unless it counts: no branch to guess.
    """
    ties, count = k - count_from(found, threshold + np.int32(1)), 0
    floats = found.view(np.float32)
    for i in range(found.size):
        if count == k:
            break
        magnitude = found[i] & MAGNITUDE
        tied = magnitude == threshold
        index[count], values[count] = origin + np.int64(places[i]), floats[i]
        count += (magnitude > threshold) | (tied & (ties > 0))
        ties -= tied
