"""The exact selection among magnitudes: counting, ranks, and writing out what was selected.

A magnitude here is the bit pattern of a float32 without the sign, as int32. It is ordered exactly
like |v|, zeros of both signs are equal, denormals are not flushed, and values from 0x7f800000 on
are infinity or NaN. So the selection compares integers.
"""

from __future__ import annotations

import numba
import numpy as np

from gpu.numba.cache import njit
from gpu.numba.sweep import MAGNITUDE
from reference.ops import Vector

BLOCK = 256
"""Values that are compared with the threshold together."""
SHARE = 1 << 15
"""Fewest values worth a thread of their own: about ten microseconds, more than waking it takes."""
MANY = 1 << 16
"""Number of candidates above which one histogram is faster than bisecting them all."""
BUCKETS = 2048
"""Buckets of that histogram."""


def threads_for(n: int) -> int:
    """The number of threads to use for n values."""
    return int(max(1, min(numba.get_num_threads(), n // SHARE)))


def plain(*vectors: Vector) -> bool:
    """Whether all are contiguous, writable float32 vectors, for which the kernels are compiled."""
    return all(readable(v) and v.flags.writeable for v in vectors)


def readable(v: Vector) -> bool:
    """Whether it is a contiguous float32 vector."""
    return bool(v.dtype == np.float32 and v.flags.c_contiguous)


@njit(nogil=True)
def count_from(bits, cut):
    """How many magnitudes reach the cut."""
    count = 0
    for first in range(0, bits.size, 1 << 30):
        here = bits[first : first + (1 << 30)]
        part = np.int32(0)  # a 32-bit sum keeps the vector registers full
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
    """The k-th largest magnitude, k >= 1, of magnitudes between low and high.

    Found by bisection; if there are many, a histogram first reduces them to one bucket.
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
    """The bits of the largest magnitude; 0 for an empty vector."""
    largest = np.int32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & MAGNITUDE)
    return largest


@njit(nogil=True)
def emit(v, bits, k, threshold, above, origin, index, values):
    """Write a layer's entries above the threshold, and the first k − above of those equal to it.

    The layer's first value has the index `origin`.
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
def emit_candidates(positions, candidates, k, threshold, origin, index, values):
    """`emit` from a layer's candidates.

    Every candidate is written, and overwritten by the next one unless it is selected. So there is
    no branch to mispredict.
    """
    ties, count = k - count_from(candidates, threshold + np.int32(1)), 0
    floats = candidates.view(np.float32)
    for i in range(candidates.size):
        if count == k:
            break
        magnitude = candidates[i] & MAGNITUDE
        tied = magnitude == threshold
        index[count], values[count] = origin + np.int64(positions[i]), floats[i]
        count += (magnitude > threshold) | (tied & (ties > 0))
        ties -= tied
