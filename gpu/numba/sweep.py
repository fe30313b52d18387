"""The one pass over all values: accumulate, and collect the candidates of each layer.

Candidates are the values whose magnitude reaches their layer's cut. Each thread takes an equal
share of the values and goes through it tile by tile. First the gradient of the tile is added. While
64 sums are in registers, they are compared with the cut; this gives a word, whose 64 bits mark the
sums that reach it. Words with a mark are listed. Then, while the tile is still in the fastest
cache, the marked values are written out. Neither part has a branch that depends on the values and
is often mispredicted.

NaN and infinity reach every cut, since no cut is above infinity. So they are among the candidates,
and no further pass looks for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numba import carray
from numpy.typing import NDArray

from gpu.numba.cache import njit
from gpu.numba.words import WORD, add_and_mark, lowest, mark, ones, pointer_to
from reference.ops import Index, Vector

Bits = NDArray[np.int32]
"""Bit patterns of float32 values. Without the sign they are ordered like the magnitudes."""

MAGNITUDE = np.int32(0x7FFFFFFF)
"""Mask of all bits except the sign."""
INFINITE = np.int32(0x7F800000)
"""The magnitude bits of infinity; those of NaN are larger."""
TILE = 64 * WORD
"""Values in a tile: few enough that they and their gradient fit into the fastest cache."""
VALUE_BYTES = 4
"""Bytes of a value."""
COMMON = 4
"""Marks of a word that are always written, whether it has as many or not.

Arrays of candidates are longer than their room by this number.
"""
SLACK = 256
"""Candidates for which a part has room beyond its share of its layer's room."""


@njit(nogil=True)
def sweep(v, bits, gradient, start, stop, cut, positions, candidates, marks):
    """Accumulate v[start:stop] and collect what reaches the cut, which is at most INFINITE.

    `gradient` is as long as v, or empty to accumulate nothing; `bits` is a view of v; `marks` comes
    from `tile_marks`. The positions of the candidates are written to `positions`, their bits to
    `candidates`; both have the same length, COMMON more than there is room for. Returns how many
    values reach the cut, or room + 1 if they do not fit, and whether all of v[start:stop] is
    finite.
    """
    count, room, over, finite = 0, max(0, positions.size - COMMON), False, True
    for first in range(start, stop, TILE):
        last = min(first + TILE, stop)
        listed = _mark_tile(v, bits, gradient, first, last, cut, marks)
        if not over and _total(marks[0][:listed]) <= room - count:
            count = _write(bits, marks, listed, positions, candidates, count)
        elif not over:  # from here on look only for values that are not finite
            over, cut = True, INFINITE
            listed = _mark_tile(v, bits, gradient[:0], first, last, cut, marks)
        finite &= not (over and listed)
    return room + 1 if over else count, finite and _all_finite(candidates[:count])


@njit(nogil=True)
def tile_marks():
    """Memory for a tile's listed words and the positions of their first values, both uint64."""
    return np.empty(TILE // WORD, dtype=np.uint64), np.empty(TILE // WORD, dtype=np.uint64)


@njit(nogil=True, forceinline=True)
def _mark_tile(v, bits, gradient, first, last, cut, marks):
    """Accumulate v[first:last] and list the words with marks in `marks`; returns their number."""
    words, firsts = marks
    listed, rest = np.uint64(0), last - (last - first) % WORD
    if gradient.size:
        for at in range(first, rest, WORD):
            word = add_and_mark(v, gradient, at, cut)
            words[listed], firsts[listed] = word, at
            listed += np.uint64(word != 0)
    else:
        for at in range(first, rest, WORD):
            word = mark(v, at, cut)
            words[listed], firsts[listed] = word, at
            listed += np.uint64(word != 0)
    if rest < last:
        word = _mark_rest(v, bits, gradient, rest, last, cut)
        words[listed], firsts[listed] = word, rest
        listed += np.uint64(word != 0)
    return np.int64(listed)


@njit(nogil=True)
def _mark_rest(v, bits, gradient, first, last, cut):
    """The word for the last values of a tile, fewer than 64."""
    word = np.uint64(0)
    for at in range(first, last):
        if gradient.size:
            v[at] += gradient[at]
        word |= np.uint64((bits[at] & MAGNITUDE) >= cut) << np.uint64(at - first)
    return word


@njit(nogil=True, forceinline=True)
def _total(words):
    """The number of marks in all words."""
    total = np.uint64(0)
    for word in words:
        total += ones(word)
    return np.int64(total)


@njit(nogil=True, forceinline=True)
def _write(bits, marks, listed, positions, candidates, count):
    """Append the listed words' values to positions and candidates; returns the new count.

    COMMON marks are always written; those of the next word overwrite what was in excess. Positions
    are unsigned, since numba checks signed ones for negative values, which count from the end.
    """
    at, (words, firsts) = np.uint64(count), marks
    for one in range(np.uint64(listed)):
        word, first = words[one], firsts[one]
        total = ones(word)
        for i in range(np.uint64(COMMON)):
            word = _write_lowest(bits, word, first, positions, candidates, at + i)
        for i in range(np.uint64(COMMON), total):
            word = _write_lowest(bits, word, first, positions, candidates, at + i)
        at += total
    return np.int64(at)


@njit(nogil=True, forceinline=True)
def _write_lowest(bits, word, first, positions, candidates, at):
    """Write the word's lowest mark, or anything if it has none; returns the other marks."""
    position = first + (lowest(word) & np.uint64(WORD - 1))
    positions[at], candidates[at] = position, bits[position]
    return word & (word - np.uint64(1))


@njit(nogil=True)
def _all_finite(bits):
    largest = np.int32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & MAGNITUDE)
    return largest < INFINITE


# All layers of a call -----------------------------------------------------------------------------


def pieces_of(gradient: Sequence[Vector], start: int, stop: int) -> tuple[Index, Index]:
    """For `plan`: where the pieces of v's gradient lie in memory (p), and where in v each begins,
    and the last ends (p + 1).

    gradient: the pieces, from v's first value on; none, or empty ones: nothing is to be added to
    v[start:stop]. They must not be freed before the sweep is over.
    """
    some = [piece for piece in gradient if piece.size]
    if not some:
        return np.zeros(1, dtype=np.int64), np.array([start, stop])
    addresses = [piece.__array_interface__["data"][0] for piece in some]
    sizes = [piece.size for piece in some]
    return np.array(addresses, dtype=np.int64), np.cumsum([0, *sizes], dtype=np.int64)


@njit(nogil=True)
def plan(offsets, room, threads, addresses, bounds):
    """Divide the values into equal shares for the threads, and these into parts at the ends of
    layers, and of the pieces that `pieces_of` has given.

    Returns parts int64 (p, 6), p <= layers + threads + pieces: layer, first value, last value + 1,
    the start and length of the part's memory for candidates, and the address at which the layer's
    gradient would begin if all of it lay as this part's does, 0 without one; and starts int64
    (threads + 1): where each thread's parts start.
    """
    parts, starts = (
        np.zeros((room.size + threads + addresses.size, 6), dtype=np.int64),
        np.zeros(threads + 1, dtype=np.int64),
    )
    begin, total = offsets[0], offsets[-1] - offsets[0]
    count, layer, piece, at = 0, 0, 0, 0
    for thread in range(threads):
        end, first = begin + total * (thread + 1) // threads, begin + total * thread // threads
        starts[thread] = count
        while first < end:
            while offsets[layer + 1] <= first:
                layer += 1
            while bounds[piece + 1] <= first:
                piece += 1
            stop = min(end, offsets[layer + 1], bounds[piece + 1])
            n = offsets[layer + 1] - offsets[layer]
            share = math.ceil(room[layer] * ((stop - first) / n))
            size = min(stop - first, share + SLACK) + COMMON if room[layer] else 0
            address = addresses[piece]
            if address:
                address += VALUE_BYTES * (offsets[layer] - bounds[piece])
            parts[count] = (layer, first, stop, at, size, address)
            count, at, first = count + 1, at + size, stop
    starts[threads] = count
    return parts[:count], starts


@njit(nogil=True)
def scratch(parts):
    """Memory for candidates' positions and bits; per part their count and whether it is finite."""
    size = parts[-1, 3] + parts[-1, 4] if len(parts) else 0
    counts, finite = np.zeros(len(parts), dtype=np.int64), np.ones(len(parts), dtype=np.bool_)
    return np.empty(size, dtype=np.uint32), np.empty(size, dtype=np.int32), counts, finite


@njit(nogil=True)
def sweep_share(
    thread, v, bits, offsets, cuts, parts, starts, positions, candidates, counts, finite
):
    """`sweep` the parts of one thread; positions count from the start of the layer."""
    marks = tile_marks()
    for part in range(starts[thread], starts[thread + 1]):
        layer, first, stop, begin, size, address = parts[part]
        origin, end = offsets[layer], begin + size
        gradient = carray(pointer_to(address), (stop - origin if address else 0,), np.float32)
        counts[part], finite[part] = sweep(
            v[origin:stop],
            bits[origin:stop],
            gradient,
            first - origin,
            stop - origin,
            cuts[layer],
            positions[begin:end],
            candidates[begin:end],
            marks,
        )


@njit(nogil=True)
def gather(parts, counts, positions, candidates, layers):
    """Move each layer's candidates together; returns summary int64 (layers, 2): start, count.

    The count is −1 if a part had more candidates than room.
    """
    summary = np.zeros((layers, 2), dtype=np.int64)
    for part in range(len(parts)):
        layer, begin, size = parts[part, 0], parts[part, 3], parts[part, 4]
        here = summary[layer]
        if part == 0 or parts[part - 1, 0] != layer:
            here[0] = begin
        if counts[part] > max(0, size - COMMON) or here[1] < 0:
            here[1] = -1
            continue
        target = here[0] + here[1]
        if target != begin:
            for i in range(counts[part]):
                positions[target + i] = positions[begin + i]
                candidates[target + i] = candidates[begin + i]
        here[1] += counts[part]
    return summary
