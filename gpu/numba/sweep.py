"""The one pass over all values: accumulate, and collect the candidates of each layer.

Candidates are the values whose magnitude reaches their layer's cut. Each thread takes an equal
share of the values, tile by tile. First the tile's gradient is added, and each 64 sums are compared
with the cut while they are in registers: that gives a word of marks, and words with a mark are
listed. Then, the tile still being in the fastest cache, the marked values are written out. Neither
part has a branch that depends on the values and is often guessed wrong.

NaN and infinity reach every cut, as none is above infinity. So they are found among the candidates,
and no value need be looked at for them alone.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gpu.numba.cache import njit
from gpu.numba.words import WORD, add_and_mark, lowest, mark, ones

Bits = NDArray[np.int32]
"""float32 values as integers. Without the sign they are magnitudes, and order as those do."""

MAGNITUDE = np.int32(0x7FFFFFFF)
"""All bits but the sign."""
INFINITE = np.int32(0x7F800000)
"""Infinity's magnitude; NaN's are above it."""
TILE = 64 * WORD
"""Values of a tile: with their gradient few enough for the fastest cache."""
COMMON = 4
"""So many marks a word are written whether they are there or not; places hold as many more than
they may be asked to.
"""
SLACK = 256
"""Candidates that a part has room for beyond its share of its layer's."""


@njit(nogil=True)
def sweep(v, bits, gradient, start, stop, cut, places, found, marks):
    """Accumulate v[start:stop] and collect what reaches the cut, which is at most INFINITE.

    `gradient` is as long as v, or empty to accumulate nothing; `bits` are v's; `marks` is what
    `tile_marks` gives. Positions go to `places` and bits to `found`, of equal length and COMMON
    longer than what they may hold. Returns how many reach the cut, or one more than there is room
    for, and whether all of v[start:stop] is finite.
    """
    count, room, over, finite = 0, max(0, places.size - COMMON), False, True
    for first in range(start, stop, TILE):
        last = min(first + TILE, stop)
        listed = _mark_tile(v, bits, gradient, first, last, cut, marks)
        if not over and _total(marks[0][:listed]) <= room - count:
            count = _write(bits, marks, listed, places, found, count)
        elif not over:  # from here on only what is not finite is looked for
            over, cut = True, INFINITE
            listed = _mark_tile(v, bits, gradient[:0], first, last, cut, marks)
        finite &= not (over and listed)
    return room + 1 if over else count, finite and _all_finite(found[:count])


@njit(nogil=True)
def tile_marks():
    """Memory for a tile's listed words, and for the places of their first values: two uint64 (words
    of a tile).
    """
    return np.empty(TILE // WORD, dtype=np.uint64), np.empty(TILE // WORD, dtype=np.uint64)


@njit(nogil=True, forceinline=True)
def _mark_tile(v, bits, gradient, first, last, cut, marks):
    """Accumulate v[first:last]; list in `marks` which values reach the cut.

    Returns how many words have any.
    """
    words, places = marks
    listed, rest = np.uint64(0), last - (last - first) % WORD
    if gradient.size:
        for at in range(first, rest, WORD):
            word = add_and_mark(v, gradient, at, cut)
            words[listed], places[listed] = word, at
            listed += np.uint64(word != 0)
    else:
        for at in range(first, rest, WORD):
            word = mark(v, at, cut)
            words[listed], places[listed] = word, at
            listed += np.uint64(word != 0)
    if rest < last:
        word = _mark_rest(v, bits, gradient, rest, last, cut)
        words[listed], places[listed] = word, rest
        listed += np.uint64(word != 0)
    return np.int64(listed)


@njit(nogil=True)
def _mark_rest(v, bits, gradient, first, last, cut):
    """The word of fewer than 64 values."""
    word = np.uint64(0)
    for at in range(first, last):
        if gradient.size:
            v[at] += gradient[at]
        word |= np.uint64((bits[at] & MAGNITUDE) >= cut) << np.uint64(at - first)
    return word


@njit(nogil=True, forceinline=True)
def _total(words):
    """How many marks all words have."""
    total = np.uint64(0)
    for word in words:
        total += ones(word)
    return np.int64(total)


@njit(nogil=True, forceinline=True)
def _write(bits, marks, listed, places, found, count):
    """Append the listed words' values to places and found, which hold `count` entries.

    Returns the new count.

    The common number of marks is always written; the next word's go over what was too much.
    Unsigned positions, as numba tests signed ones for counting from the end.
    """
    at, (words, firsts) = np.uint64(count), marks
    for one in range(np.uint64(listed)):
        word, first = words[one], firsts[one]
        total = ones(word)
        for i in range(np.uint64(COMMON)):
            word = _write_lowest(bits, word, first, places, found, at + i)
        for i in range(np.uint64(COMMON), total):
            word = _write_lowest(bits, word, first, places, found, at + i)
        at += total
    return np.int64(at)


@njit(nogil=True, forceinline=True)
def _write_lowest(bits, word, first, places, found, at):
    """Write the word's lowest mark, whatever where there is none. Returns the others."""
    place = first + (lowest(word) & np.uint64(WORD - 1))
    places[at], found[at] = place, bits[place]
    return word & (word - np.uint64(1))


@njit(nogil=True)
def _all_finite(bits):
    largest = np.int32(0)
    for i in range(bits.size):
        largest = max(largest, bits[i] & MAGNITUDE)
    return largest < INFINITE


# All layers of a call -----------------------------------------------------------------------------


@njit(nogil=True)
def plan(offsets, room, threads):
    """Equal shares of the values for all threads, cut at layers: what each part is, and where each
    thread's parts begin.

    Returns parts int64 (p, 5): layer, first value, last value + 1, first place for candidates,
    number of places; p <= layers + threads. Then starts int64 (threads + 1).
    """
    parts, starts = (
        np.zeros((room.size + threads, 5), dtype=np.int64),
        np.zeros(threads + 1, dtype=np.int64),
    )
    begin, total = offsets[0], offsets[-1] - offsets[0]
    count, layer, place = 0, 0, 0
    for thread in range(threads):
        end, first = begin + total * (thread + 1) // threads, begin + total * thread // threads
        starts[thread] = count
        while first < end:
            while offsets[layer + 1] <= first:
                layer += 1
            stop, n = min(end, offsets[layer + 1]), offsets[layer + 1] - offsets[layer]
            share = math.ceil(room[layer] * ((stop - first) / n))
            places = min(stop - first, share + SLACK) + COMMON if room[layer] else 0
            parts[count] = (layer, first, stop, place, places)
            count, place, first = count + 1, place + places, stop
    starts[threads] = count
    return parts[:count], starts


@njit(nogil=True)
def scratch(parts):
    """Places and bits of candidates, and per part their count and whether its values are finite."""
    size = parts[-1, 3] + parts[-1, 4] if len(parts) else 0
    counts, finite = np.zeros(len(parts), dtype=np.int64), np.ones(len(parts), dtype=np.bool_)
    return np.empty(size, dtype=np.uint32), np.empty(size, dtype=np.int32), counts, finite


@njit(nogil=True)
def sweep_share(
    thread, v, bits, gradient, offsets, cuts, parts, starts, places, found, counts, finite
):
    """One thread's parts: `sweep` each, positions counted within the layer."""
    marks = tile_marks()
    for part in range(starts[thread], starts[thread + 1]):
        layer, first, stop, place, size = parts[part]
        origin, end = offsets[layer], place + size
        counts[part], finite[part] = sweep(
            v[origin:stop],
            bits[origin:stop],
            gradient[origin:stop],
            first - origin,
            stop - origin,
            cuts[layer],
            places[place:end],
            found[place:end],
            marks,
        )


@njit(nogil=True)
def gather(parts, counts, places, found, layers):
    """Move each layer's candidates together. Returns summary int64 (layers, 2): first place, count.

    The count is −1 where a part had more candidates than room.
    """
    summary = np.zeros((layers, 2), dtype=np.int64)
    for part in range(len(parts)):
        layer, place, size = parts[part, 0], parts[part, 3], parts[part, 4]
        here = summary[layer]
        if part == 0 or parts[part - 1, 0] != layer:
            here[0] = place
        if counts[part] > max(0, size - COMMON) or here[1] < 0:
            here[1] = -1
            continue
        target = here[0] + here[1]
        if target != place:
            for i in range(counts[part]):
                places[target + i], found[target + i] = places[place + i], found[place + i]
        here[1] += counts[part]
    return summary
