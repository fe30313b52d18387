"""The exact choice of the k largest magnitudes on CPU threads: the kernels behind `gpu.numba_ops` and `gpu.numba_adjustment`.

The magnitude of a float32 is its bit pattern without the sign, an int32 here: it orders exactly as |v| does, zeros of both signs
are equal, denormals are not flushed, and whatever reaches 0x7f800000 is infinity or NaN. So the selection compares integers.

A step goes over the values once (`gpu.numba_sweep`), which leaves the candidates: the values whose magnitude reaches the layer's
cut. That lies a little below last step's threshold (the hint), or without one is guessed from a sample, so that somewhat more
than k candidates remain, among which the choice is exact. Where the cut was no good, the candidates are too few or too many, and
the layer is searched afresh: a small one by bisection, a large one with a cut from a sample, and where that fails too, from
histograms of all its magnitudes. Neither the hint nor the number of threads changes a result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numba
import numpy as np
from numba import prange
from numpy.typing import NDArray
from reference.ops import Head, Index, NonFiniteError, Selection, Vector

from gpu.numba_cache import njit
from gpu.numba_sweep import (
    COMMON,
    INFINITE,
    MAGNITUDE,
    SLACK,
    Bits,
    gather,
    plan,
    scratch,
    sweep,
    sweep_share,
    tile_marks,
)
from gpu.numba_words import LINE

BLOCK = 256
"""Values between two looks at the threshold."""
SHARE = 1 << 15
"""Fewest values worth a thread of their own: some ten microseconds of work, more than waking a thread takes."""
SMALL = 1 << 15
"""Layers up to here stay in a core's cache, so bisection over all their values is cheap."""
MARGIN, WIDE, SPREAD = 0.02, 0.04, 0.5
"""The cut lies MARGIN + SPREAD/√k below the hint, relatively: drift, and how much the k-th of random values varies. Where more
than what is chosen may be asked for later, WIDE + SPREAD/√k below: to find that afresh costs more than candidates do."""
ROOM = 3
"""Candidates a layer has room for: ROOM·k + SLACK. With more the hint was of no use."""
DENSE = 8
"""From k = n/DENSE on candidates save nothing: the histogram alone decides."""
MANY, BUCKETS = 1 << 16, 2048
"""Candidates from which on one histogram of so many buckets beats bisecting them all."""
LEVELS = ((20, 11), (10, 10), (0, 10))
"""The histograms of a search, coarse to fine: lowest bit looked at, and how many bits. Together the 31 bits of a magnitude."""

SAMPLE = 1 << 16
"""The fewest values of a sample."""

_NOTHING = np.empty(0, dtype=np.float32)

Places = NDArray[np.uint32]
"""Candidates' places in their layer."""


def threads_for(n: int) -> int:
    """How many threads n values are worth."""
    return int(max(1, min(numba.get_num_threads(), n // SHARE)))


def plain(*vectors: Vector) -> bool:
    """Whether all are contiguous float32 vectors that may be written to, the one type the kernels are compiled for."""
    return all(v.dtype == np.float32 and v.flags.c_contiguous and v.flags.writeable for v in vectors)


# The exact choice -----------------------------------------------------------------------------------------------------------


@njit(nogil=True)
def _count(bits, cut):
    """How many magnitudes reach the cut."""
    count = 0
    for first in range(0, bits.size, 1 << 30):
        here, part = bits[first : first + (1 << 30)], np.int32(0)  # a 32-bit sum keeps the vectors full
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
        count = _count(bits, middle)
        if count == k:
            return _least_from(bits, middle)
        if count > k:
            low = np.int64(middle)
        else:
            high = np.int64(middle)
    return np.int32(low)


@njit(nogil=True)
def _kth(bits, k, low, high):
    """The k-th largest magnitude, k >= 1, of magnitudes between low and high: by bisection, of many first to one bucket."""
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
def _emit(v, bits, k, threshold, above, origin, index, values):
    """Write the entries above the threshold, and of those equal to it the first k − above, from a whole layer.

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
def _emit_found(places, found, k, threshold, origin, index, values):
    """`_emit`, from a layer's candidates. Every one is written, and the next one over it unless it counts: no branch to guess."""
    ties, count = k - _count(found, threshold + np.int32(1)), 0
    floats = found.view(np.float32)
    for i in range(found.size):
        if count == k:
            break
        magnitude = found[i] & MAGNITUDE
        tied = magnitude == threshold
        index[count], values[count] = origin + np.int64(places[i]), floats[i]
        count += (magnitude > threshold) | (tied & (ties > 0))
        ties -= tied


# All layers of a call -------------------------------------------------------------------------------------------------------


@njit(nogil=True)
def _cuts(v, gradient, offsets, k, hints, margin):
    """Each layer's cut and its room for candidates, of which k are wanted; infinity and no room where there shall be none."""
    cuts, room = np.full(k.size, INFINITE, dtype=np.int32), np.zeros(k.size, dtype=np.int64)
    for layer in range(k.size):
        first, stop = offsets[layer], offsets[layer + 1]
        if not 0 <= k[layer] < max((stop - first) // DENSE, 1):
            continue
        guess = hints[layer] * (1 - min(0.9, margin + SPREAD / math.sqrt(max(k[layer], 1))))
        if 0 < guess < 3e38:
            cuts[layer] = np.float32(guess).view(np.int32)
        elif k[layer] > 0 and stop - first > SMALL:
            cuts[layer] = _guess(v[first:stop], gradient[first:stop], k[layer])
        else:
            continue
        room[layer] = min(stop - first, ROOM * k[layer] + SLACK)
    return cuts, room


@njit(nogil=True)
def _guess(v, gradient, k):
    """A cut that, by a sample of whole cache lines, somewhat more than k magnitudes reach once the gradient is added.

    At most INFINITE, whatever is in the sample; an empty gradient adds nothing.
    """
    lines = max(1, min(v.size // DENSE, max(SAMPLE, 128 * v.size // k)) // LINE)
    sample = np.empty(lines * LINE, dtype=np.float32)
    for line in range(lines):
        first = (v.size - LINE) * line // lines
        for i in range(first, first + LINE):
            sample[line * LINE + i - first] = v[i] + gradient[i] if gradient.size else v[i]
    expected = k * (sample.size / v.size)
    rank = min(sample.size, math.ceil(1.05 * expected + 4 * math.sqrt(expected)))
    return min(INFINITE, _kth(sample.view(np.int32), rank, np.int32(0), MAGNITUDE))


@njit(nogil=True)
def _choose_share(thread, threads, v, bits, offsets, ends, cuts, places, found, summary, index, values, thresholds):
    """One thread's layers: the exact choice. A layer that must be searched afresh keeps −1 as its threshold's magnitude."""
    for layer in range(thread, cuts.size, threads):
        first, stop, begin, end = offsets[layer], offsets[layer + 1], ends[layer], ends[layer + 1]
        k, place, last = end - begin, summary[layer, 0], summary[layer, 0] + summary[layer, 1]
        if k == 0:
            thresholds[layer] = INFINITE
        elif last - place >= k:
            own = found[place:last]
            thresholds[layer] = _kth(own, k, cuts[layer], largest_magnitude(own))
            _emit_found(places[place:last], own, k, thresholds[layer], first, index[begin:end], values[begin:end])
        elif stop - first <= SMALL:
            own = bits[first:stop]
            thresholds[layer] = _kth(own, k, 0, largest_magnitude(own))
            above = _count(own, thresholds[layer] + np.int32(1))
            _emit(v[first:stop], own, k, thresholds[layer], above, first, index[begin:end], values[begin:end])


@njit(nogil=True)
def _step(v, bits, gradient, offsets, ends, cuts, parts, starts, index, values, thresholds):
    """`_step_threads` on one thread, without waking any."""
    places, found, counts, finite = scratch(parts)
    sweep_share(0, v, bits, gradient, offsets, cuts, parts, starts, places, found, counts, finite)
    summary = gather(parts, counts, places, found, cuts.size)
    if finite.all():
        _choose_share(0, 1, v, bits, offsets, ends, cuts, places, found, summary, index, values, thresholds)
    return finite.all(), places, found, summary


@njit(nogil=True, parallel=True)
def _step_threads(v, bits, gradient, offsets, ends, cuts, parts, starts, index, values, thresholds):
    """Accumulate all layers and choose where one pass suffices, unless a value is not finite.

    Returns whether all are finite, the candidates' places and bits, and the summary of `gather` that says which are whose.
    """
    places, found, counts, finite = scratch(parts)
    threads = starts.size - 1
    for thread in prange(threads):
        sweep_share(thread, v, bits, gradient, offsets, cuts, parts, starts, places, found, counts, finite)
    summary = gather(parts, counts, places, found, cuts.size)
    if finite.all():
        for thread in prange(threads):
            _choose_share(thread, threads, v, bits, offsets, ends, cuts, places, found, summary, index, values, thresholds)
    return finite.all(), places, found, summary


# The search afresh, for a large layer ---------------------------------------------------------------------------------------


@njit(nogil=True)
def _histogram_share(bits, prefix, shift, width, counts):
    """Add to counts (2^width) the next `width` bits, from bit `shift` on, of each magnitude that begins with the prefix.

    Two tables take turns: counting the same bucket twice in a row would wait for memory.
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
    """`_histogram_share` of each thread's equal share: int64 (threads, 2^width)."""
    counts = np.zeros((threads, 1 << width), dtype=np.int64)
    for thread in prange(threads):
        first, stop = bits.size * thread // threads, bits.size * (thread + 1) // threads
        _histogram_share(bits[first:stop], prefix, shift, width, counts[thread])
    return counts


def _narrow(bits: Bits, k: int, enough: int, threads: int) -> tuple[int, NDArray[np.int64], bool]:
    """A cut that at least k magnitudes reach, and at most `enough` if possible: (cut, how many in each thread's share, exact).

    An exact cut is the k-th largest magnitude itself, which a higher one replaces as soon as few enough reach it.
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
    """How many magnitudes of each thread's equal share reach the cut: int64 (threads)."""
    counts = np.zeros(threads, dtype=np.int64)
    for thread in prange(threads):
        counts[thread] = _count(bits[bits.size * thread // threads : bits.size * (thread + 1) // threads], cut)
    return counts


@njit(nogil=True, parallel=True)
def _collect_threads(v, bits, cut, starts, places, found):
    """Collect what reaches the cut; starts (threads + 1) say where each thread's share goes, and COMMON more."""
    threads = starts.size - 1
    for thread in prange(threads):
        first, stop = bits.size * thread // threads, bits.size * (thread + 1) // threads
        mine = slice(starts[thread], starts[thread + 1])
        sweep(v, bits, v[:0], first, stop, cut, places[mine], found[mine], tile_marks())


def _reach(v: Vector, cut: int) -> NDArray[np.int64]:
    """How many values of each thread's equal share of v (n) reach the cut (threads)."""
    bits, threads = v.view(np.int32), threads_for(v.size)
    return np.array([_count(bits, np.int32(cut))]) if threads == 1 else _count_threads(bits, np.int32(cut), threads)


def _collect_exactly(v: Vector, cut: int, reach: NDArray[np.int64]) -> tuple[Places, Bits]:
    """Positions and bits of the values whose magnitude reaches the cut, `reach` (threads) being their number in each share."""
    starts = np.concatenate([[0], np.cumsum(reach + COMMON)])
    places, found = np.empty(starts[-1], dtype=np.uint32), np.empty(starts[-1], dtype=np.int32)
    _collect_threads(v, v.view(np.int32), np.int32(cut), starts, places, found)
    inside = [slice(start, start + count) for start, count in zip(starts[:-1], reach, strict=True)]
    return np.concatenate([places[part] for part in inside]), np.concatenate([found[part] for part in inside])


def _choose_by_histogram(v: Vector, k: int, origin: int, index: Index, values: Vector) -> int:
    """Top-k of a finite layer v (n), k >= 1, into index and values (k); returns the threshold's magnitude."""
    bits, threads = v.view(np.int32), threads_for(v.size)
    cut, reach, exact = _narrow(bits, k, ROOM * k + SMALL, threads)
    if exact:  # so many ties that collecting them all would fill the memory
        _emit(v, bits, k, np.int32(cut), int(reach.sum()), origin, index, values)
        return cut
    places, found = _collect_exactly(v, cut, reach)
    threshold = _kth(found, k, np.int32(cut), INFINITE)
    _emit_found(places, found, k, threshold, origin, index, values)
    return int(threshold)


# What the backend's modules call -------------------------------------------------------------------------------------------


def choose_layers(
    v: Vector,
    gradient: Vector,
    offsets: Index,
    k: Index,
    hints: NDArray[np.float64],
    expected: Index | None = None,
) -> tuple[Index, Vector, NDArray[np.float64], list[Head]]:
    """`select_layers` on checked arrays; an empty gradient accumulates nothing."""
    wanted, margin = (k, MARGIN) if expected is None else (np.maximum(k, expected), WIDE)
    sizes = np.diff(offsets)
    if wrong := np.flatnonzero((k < 0) | (k > sizes)).tolist():
        raise ValueError(f"k must lie in 0..{sizes[wrong[0]]}, not {k[wrong[0]]}")
    ends = np.concatenate([[0], np.cumsum(k)])
    index, values = np.empty(ends[-1], dtype=np.int64), np.empty(ends[-1], dtype=np.float32)
    thresholds = np.full(k.size, -1, dtype=np.int32)
    cuts, room = _cuts(v, gradient, offsets, wanted, hints, margin)
    finite, places, found, summary = _pass(v, gradient, offsets, ends, cuts, room, index, values, thresholds)
    if not finite:
        raise NonFiniteError("NaN or infinity in the accumulated gradient")
    heads = _heads(v, offsets, k, cuts, places, found, summary)
    for layer in np.flatnonzero(thresholds < 0):
        out, own = slice(ends[layer], ends[layer + 1]), v[offsets[layer] : offsets[layer + 1]]
        thresholds[layer], heads[layer] = _choose_large(own, int(k[layer]), int(wanted[layer]), index[out], values[out])
        index[out] += offsets[layer]
    exact = thresholds.view(np.float32).astype(np.float64)
    heads = [head._replace(threshold=t) for head, t in zip(heads, exact.tolist(), strict=True)]
    return index, values, exact, heads


def _heads(v, offsets, k, cuts, places, found, summary) -> list[Head]:
    """Each layer's candidates; of a small layer that has too few all there is. Thresholds are still to come."""
    heads, candidates = [], found.view(np.float32)
    below = np.where(cuts > 0, np.maximum(cuts - 1, 0).view(np.float32), np.float32(-1))
    floors = below.astype(np.float64).tolist()  # whatever reaches the cut is a candidate
    bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    for kl, floor, (start, stop), (at, count) in zip(k.tolist(), floors, bounds, summary.tolist(), strict=True):
        if count < max(kl, 1) and stop - start <= SMALL:
            heads.append(_whole(v[start:stop], kl))
        else:  # with fewer than k the layer is still to be searched afresh
            own = slice(at, at + max(count, 0))
            heads.append(Head(places[own], candidates[own], kl, math.nan, math.inf if count < 0 else floor))
    return heads


def _whole(v: Vector, k: int) -> Head:
    """All of a layer (n)."""
    return Head(np.arange(v.size, dtype=np.uint32), v, k, math.nan, -1.0)


def _pass(v, gradient, offsets, ends, cuts, room, index, values, thresholds) -> tuple[bool, Places, Bits, NDArray[np.int64]]:
    """`_step` on as many threads as the values are worth."""
    threads = threads_for(int(offsets[-1] - offsets[0]))
    parts, starts = plan(offsets, room, threads)
    step = _step if threads == 1 else _step_threads
    return step(v, v.view(np.int32), gradient, offsets, ends, cuts, parts, starts, index, values, thresholds)


def _choose_large(v: Vector, k: int, expected: int, index: Index, values: Vector) -> tuple[int, Head]:
    """Top-k of a finite layer v (n), k >= 1, into index and values (k), by a sampled cut that more than `expected` reach.

    Returns the threshold's magnitude and a head, whose threshold is still to come.
    """
    if expected < v.size // DENSE:
        cuts = np.array([_guess(v, _NOTHING, expected)], dtype=np.int32)
        room, exact = np.array([ROOM * expected + SLACK]), np.array([-1], dtype=np.int32)
        offsets, ends = np.array([0, v.size]), np.array([0, k])
        _, places, found, summary = _pass(v, _NOTHING, offsets, ends, cuts, room, index, values, exact)
        if exact[0] >= 0:
            return int(exact[0]), _heads(v, offsets, ends[1:], cuts, places, found, summary)[0]
    threshold = _choose_by_histogram(v, k, 0, index, values)
    return threshold, Head(index.copy(), values, k, math.nan, float(np.int32(threshold).view(np.float32)))


# The choice among what is left -----------------------------------------------------------------------------------------------


@njit(nogil=True)
def _unchosen(places, bits, chosen, threshold, origin, index, left):
    """Write a head's entries that were not chosen; the threshold is the chosen ones', as bits. Returns how many there are.

    Every entry is written, and the next one over it unless it counts: index and left hold one more than there may be.
    """
    ties, count = chosen - _count(bits, threshold + np.int32(1)), 0
    for i in range(bits.size):
        magnitude = bits[i] & MAGNITUDE
        tied = magnitude == threshold
        index[count], left[count] = origin + np.int64(places[i]), bits[i]
        count += (magnitude < threshold) | (tied & (ties <= 0))
        ties -= tied
    return count


def _rest_of(heads: Sequence[Head], offsets: Index) -> tuple[Index, Bits]:
    """What was not chosen of all heads: places in the whole, ascending, and bits."""
    room = sum(head.values.size - head.chosen for head in heads) + 1
    index, left, count = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.int32), 0
    for head, origin in zip(heads, offsets, strict=False):
        if head.values.size > head.chosen:
            threshold, bits = np.float32(head.threshold).view(np.int32), head.values.view(np.int32)
            count += _unchosen(head.places, bits, head.chosen, threshold, origin, index[count:], left[count:])
    return index[:count], left[:count]


def choose_rest(v: Vector, offsets: Index, heads: Sequence[Head], k: int) -> Selection | None:
    """`top_k_of_rest` from the heads, and from those layers anew whose head might not hold all; None where that is no way."""
    index, left = _rest_of(heads, offsets)
    if left.size < k or not (cut := int(_kth(left, k, np.int32(0), MAGNITUDE))):
        return None
    least = float(np.int32(cut).view(np.float32))  # with more entries the k-th largest is no smaller
    if any(head.floor >= least for head in heads):
        layers = (v[start:stop] for start, stop in pairwise(offsets))
        heads = [_down_to(head, layer, cut, least, k) for head, layer in zip(heads, layers, strict=True)]
        index, left = _rest_of(heads, offsets)
        cut = int(_kth(left, k, np.int32(0), MAGNITUDE))
    chosen, values = np.empty(k, dtype=np.int64), np.empty(k, dtype=np.float32)
    _emit_found(index, left, k, np.int32(cut), 0, chosen, values)
    return chosen, values


def _down_to(head: Head, v: Vector, cut: int, least: float, k: int) -> Head:
    """A head that holds all of v (n) whose magnitude reaches `least`, whose bits are the cut: k or fewer that were not chosen.

    The chosen ones are among them: a head's floor is below its threshold or equal.
    """
    if head.floor < least:
        return head
    if v.size <= SMALL:
        return _whole(v, head.chosen)._replace(threshold=head.threshold)
    places, found = _collect(v, cut, head.chosen + k)
    return Head(places, found.view(np.float32), head.chosen, head.threshold, least)


def _collect(v: Vector, cut: int, expected: int) -> tuple[Places, Bits]:
    """Places and bits of the values whose magnitude reaches the cut: in one pass, where there are not many more than expected."""
    offsets, ends, none = np.array([0, v.size]), np.zeros(2, dtype=np.int64), np.empty(0, dtype=np.int64)
    cuts, room = np.array([cut], dtype=np.int32), np.array([expected + SLACK])
    _, places, found, summary = _pass(v, _NOTHING, offsets, ends, cuts, room, none, _NOTHING, np.zeros(1, dtype=np.int32))
    at, count = summary[0].tolist()
    if count >= 0:
        return places[at : at + count], found[at : at + count]
    return _collect_exactly(v, cut, _reach(v, cut))


@njit(nogil=True, parallel=True)
def largest_magnitude_threads(bits, threads):
    """`largest_magnitude` on several threads."""
    largest = np.zeros(threads, dtype=np.int32)
    for thread in prange(threads):
        largest[thread] = largest_magnitude(bits[bits.size * thread // threads : bits.size * (thread + 1) // threads])
    return largest.max()


def kth_magnitude(v: Vector, k: int) -> int:
    """The bits of the k-th largest magnitude of v (n), 1 <= k <= n; NaN counts as larger than infinity."""
    bits, threads = v.view(np.int32), threads_for(v.size)
    if k == 1:
        return int(largest_magnitude(bits) if threads == 1 else largest_magnitude_threads(bits, threads))
    if v.size <= SMALL:
        return int(_kth(bits, k, np.int32(0), MAGNITUDE))
    return _narrow(bits, k, 0, threads)[0]


def values_from(v: Vector, cut: int, room: int) -> Vector | None:
    """The values of v (n) whose magnitude's bits reach the cut, in order; None where they exceed the room."""
    reach = _reach(v, cut)
    return None if reach.sum() > room else _collect_exactly(v, cut, reach)[1].view(np.float32)


def add_histogram(v: Vector, prefix: int, shift: int, width: int, counts: NDArray[np.int64]) -> None:
    """Add to counts (2^width) how often each `width` bits from bit `shift` on occur in magnitudes that begin with the prefix."""
    threads = threads_for(v.size)
    if threads == 1:
        _histogram_share(v.view(np.int32), np.int32(prefix), shift, width, counts)
    else:
        counts += _histogram(v.view(np.int32), np.int32(prefix), shift, width, threads).sum(axis=0)
