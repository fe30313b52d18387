"""Selecting the k largest values of each layer on CPU threads, for `select_layers`.

A step passes over the values once (`gpu.numba.sweep`) and collects the candidates: the values whose
magnitude reaches the layer's cut. The cut lies a little below the last step's threshold (the hint),
or is estimated from a sample if there is no hint, so that there are somewhat more than k
candidates. The exact selection is made among them (`gpu.numba.magnitudes`). If the cut was bad, so
that there are too few or too many candidates, the layer is searched again: a small one by
bisection, a large one with a cut from a sample, and if that fails too, with histograms of all its
magnitudes (`gpu.numba.search`). Neither the hint nor the number of threads changes a result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    threads_for,
)
from gpu.numba.search import ROOM, SMALL, Positions, choose_by_histogram
from gpu.numba.sweep import (
    INFINITE,
    MAGNITUDE,
    SLACK,
    Bits,
    gather,
    pieces_of,
    plan,
    scratch,
    sweep_share,
)
from gpu.numba.words import LINE
from reference.ops import Head, Index, NonFiniteError, Vector

MARGIN = 0.02
"""The cut lies MARGIN + SPREAD/√k below the hint, relatively; this part is for drift."""
WIDE = 0.04
"""In place of MARGIN if more than the selection may be needed later.

Searching the layer again would cost more than further candidates.
"""
SPREAD = 0.5
"""For the variation of the k-th largest of random values."""
DENSE = 8
"""From k = n/DENSE on candidates save no time, and only histograms are used."""
SAMPLE = 1 << 16
"""Fewest values in a sample."""
GREAT = 3e38
"""A hint from which on there is none."""
NOTHING = np.empty(0, dtype=np.float32)
"""In place of a gradient: nothing is accumulated."""

Counts = NDArray[np.int64]
"""Numbers of values."""
Swept = tuple[bool, Positions, Bits, Counts]
"""Whether all is finite, the candidates' positions and bits, and the summary of `gather`."""


# Compiled -----------------------------------------------------------------------------------------


@njit(nogil=True)
def cuts_of(v, gradient, offsets, k, hints, margin):
    """Each layer's cut and its room for candidates; infinity and 0 if it shall have none."""
    cuts, room = np.full(k.size, INFINITE, dtype=np.int32), np.zeros(k.size, dtype=np.int64)
    for layer in range(k.size):
        first, stop = offsets[layer], offsets[layer + 1]
        if not 0 <= k[layer] < max((stop - first) // DENSE, 1):
            continue
        guess = hints[layer] * (1 - min(0.9, margin + SPREAD / math.sqrt(max(k[layer], 1))))
        if 0 < guess < GREAT:
            cuts[layer] = np.float32(guess).view(np.int32)
        elif k[layer] > 0 and stop - first > SMALL:
            cuts[layer] = guess_cut(v[first:stop], gradient[first:stop], k[layer])
        else:
            continue
        room[layer] = min(stop - first, ROOM * k[layer] + SLACK)
    return cuts, room


@njit(nogil=True)
def guess_cut(v, gradient, k):
    """A cut, estimated from a sample of cache lines, that somewhat more than k magnitudes reach.

    The magnitudes are those after the gradient is added; an empty gradient adds nothing. The cut is
    at most INFINITE, whatever the sample holds.
    """
    lines = max(1, min(v.size // DENSE, max(SAMPLE, 128 * v.size // k)) // LINE)
    sample = np.empty(lines * LINE, dtype=np.float32)
    for line in range(lines):
        first = (v.size - LINE) * line // lines
        for i in range(first, first + LINE):
            sample[line * LINE + i - first] = v[i] + gradient[i] if gradient.size else v[i]
    expected = k * (sample.size / v.size)
    rank = min(sample.size, math.ceil(1.05 * expected + 4 * math.sqrt(expected)))
    return min(INFINITE, kth(sample.view(np.int32), rank, np.int32(0), MAGNITUDE))


@njit(nogil=True)
def _choose_share(
    thread,
    threads,
    v,
    bits,
    offsets,
    ends,
    cuts,
    positions,
    candidates,
    summary,
    index,
    values,
    thresholds,
):
    """The exact selection in the layers of one thread.

    A layer that must be searched again keeps −1 as its threshold.
    """
    for layer in range(thread, cuts.size, threads):
        first, stop, begin, end = offsets[layer], offsets[layer + 1], ends[layer], ends[layer + 1]
        k, own_start = end - begin, summary[layer, 0]
        own_stop = own_start + summary[layer, 1]
        if k == 0:
            thresholds[layer] = INFINITE
        elif own_stop - own_start >= k:
            own = candidates[own_start:own_stop]
            thresholds[layer] = kth(own, k, cuts[layer], largest_magnitude(own))
            emit_candidates(
                positions[own_start:own_stop],
                own,
                k,
                thresholds[layer],
                first,
                index[begin:end],
                values[begin:end],
            )
        elif stop - first <= SMALL:
            own = bits[first:stop]
            thresholds[layer] = kth(own, k, 0, largest_magnitude(own))
            above = count_from(own, thresholds[layer] + np.int32(1))
            emit(
                v[first:stop],
                own,
                k,
                thresholds[layer],
                above,
                first,
                index[begin:end],
                values[begin:end],
            )


@njit(nogil=True)
def _step(v, bits, offsets, ends, cuts, parts, starts, index, values, thresholds):
    """`_step_threads` on this thread alone, without waking others."""
    positions, candidates, counts, finite = scratch(parts)
    sweep_share(0, v, bits, offsets, cuts, parts, starts, positions, candidates, counts, finite)
    summary = gather(parts, counts, positions, candidates, cuts.size)
    if finite.all():
        _choose_share(
            0,
            1,
            v,
            bits,
            offsets,
            ends,
            cuts,
            positions,
            candidates,
            summary,
            index,
            values,
            thresholds,
        )
    return finite.all(), positions, candidates, summary


@njit(nogil=True, parallel=True)
def _step_threads(v, bits, offsets, ends, cuts, parts, starts, index, values, thresholds):
    """Accumulate all layers, and select where one pass suffices, unless a value is not finite.

    Returns whether all values are finite, the candidates' positions and bits, and the summary of
    `gather`, which says where each layer's candidates are.
    """
    positions, candidates, counts, finite = scratch(parts)
    threads = starts.size - 1
    for thread in prange(threads):
        sweep_share(
            thread,
            v,
            bits,
            offsets,
            cuts,
            parts,
            starts,
            positions,
            candidates,
            counts,
            finite,
        )
    summary = gather(parts, counts, positions, candidates, cuts.size)
    if finite.all():
        for thread in prange(threads):
            _choose_share(
                thread,
                threads,
                v,
                bits,
                offsets,
                ends,
                cuts,
                positions,
                candidates,
                summary,
                index,
                values,
                thresholds,
            )
    return finite.all(), positions, candidates, summary


# Called -------------------------------------------------------------------------------------------


def choose_layers(
    v: Vector,
    gradient: Sequence[Vector],
    offsets: Index,
    k: Index,
    hints: NDArray[np.float64],
    expected: Index | None = None,
) -> tuple[Index, Vector, NDArray[np.float64], list[Head]]:
    """`select_layers` on checked arrays.

    gradient: its pieces from v's first value on; without one, nothing is accumulated.
    """
    wanted, margin = (k, MARGIN) if expected is None else (np.maximum(k, expected), WIDE)
    sizes = np.diff(offsets)
    if wrong := np.flatnonzero((k < 0) | (k > sizes)).tolist():
        raise ValueError(f"k must lie in 0..{sizes[wrong[0]]}, not {k[wrong[0]]}")
    ends = np.concatenate([[0], np.cumsum(k)])
    index, values = np.empty(ends[-1], dtype=np.int64), np.empty(ends[-1], dtype=np.float32)
    thresholds = np.full(k.size, -1, dtype=np.int32)
    if len(gradient) > 1 and _samples(sizes, wanted, hints):
        gradient = _accumulated(v, gradient)
    sampled = gradient[0] if len(gradient) == 1 else NOTHING
    cuts, room = cuts_of(v, sampled, offsets, wanted, hints, margin)
    finite, positions, candidates, summary = sweep_layers(
        v, gradient, offsets, ends, cuts, room, index, values, thresholds
    )
    if not finite:
        raise NonFiniteError("NaN or infinity in the accumulated gradient")
    heads = _heads(v, offsets, k, cuts, positions, candidates, summary)
    for layer in np.flatnonzero(thresholds < 0):
        out, own = slice(ends[layer], ends[layer + 1]), v[offsets[layer] : offsets[layer + 1]]
        thresholds[layer], heads[layer] = _choose_large(
            own, int(k[layer]), int(wanted[layer]), index[out], values[out]
        )
        index[out] += offsets[layer]
    exact = thresholds.view(np.float32).astype(np.float64)
    heads = [head._replace(threshold=t) for head, t in zip(heads, exact.tolist(), strict=True)]
    return index, values, exact, heads


def _samples(sizes: Index, k: Index, hints: NDArray[np.float64]) -> bool:
    """Whether any layer's cut is estimated from a sample, for want of a hint."""
    useless = ~((hints > 0) & (hints < GREAT))
    return bool((useless & (k > 0) & (sizes > SMALL)).any())


def _accumulated(v: Vector, gradient: Sequence[Vector]) -> Sequence[Vector]:
    """What is left of a gradient once it is added to v: nothing."""
    start = 0
    for piece in gradient:
        v[start : start + piece.size] += piece
        start += piece.size
    return ()


def _heads(
    v: Vector,
    offsets: Index,
    k: Index,
    cuts: Bits,
    positions: Positions,
    candidates: Bits,
    summary: Counts,
) -> list[Head]:
    """Each layer's candidates; for a small layer with too few of them, all its values.

    The thresholds are filled in later.
    """
    heads, candidate_values = [], candidates.view(np.float32)
    below = np.where(cuts > 0, np.maximum(cuts - 1, 0).view(np.float32), np.float32(-1))
    floors = below.astype(np.float64).tolist()  # all values that reach the cut are candidates
    bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    for kl, floor, (start, stop), (at, count) in zip(
        k.tolist(), floors, bounds, summary.tolist(), strict=True
    ):
        if count < max(kl, 1) and stop - start <= SMALL:
            heads.append(whole(v[start:stop], kl))
        else:  # with fewer than k the layer will be searched again
            own = slice(at, at + max(count, 0))
            heads.append(
                Head(
                    positions[own],
                    candidate_values[own],
                    kl,
                    math.nan,
                    math.inf if count < 0 else floor,
                )
            )
    return heads


def whole(v: Vector, k: int) -> Head:
    """A head that holds the whole layer v (n)."""
    return Head(np.arange(v.size, dtype=np.uint32), v, k, math.nan, -1.0)


def sweep_layers(
    v: Vector,
    gradient: Sequence[Vector],
    offsets: Index,
    ends: Index,
    cuts: Bits,
    room: Counts,
    index: Index,
    values: Vector,
    thresholds: Bits,
) -> Swept:
    """`_step` on the number of threads that suits the number of values."""
    threads = threads_for(int(offsets[-1] - offsets[0]))
    pieces = pieces_of(gradient, int(offsets[0]), int(offsets[-1]))
    parts, starts = plan(offsets, room, threads, *pieces)
    step = _step if threads == 1 else _step_threads
    return step(v, v.view(np.int32), offsets, ends, cuts, parts, starts, index, values, thresholds)


def _choose_large(
    v: Vector, k: int, expected: int, index: Index, values: Vector
) -> tuple[int, Head]:
    """Top-k of a finite layer v (n), k >= 1, into index and values (k), with a sampled cut.

    More than `expected` values should reach the cut. Returns the threshold and a head, whose
    threshold is filled in later.
    """
    if expected < v.size // DENSE:
        cuts = np.array([guess_cut(v, NOTHING, expected)], dtype=np.int32)
        room, exact = np.array([ROOM * expected + SLACK]), np.array([-1], dtype=np.int32)
        offsets, ends = np.array([0, v.size]), np.array([0, k])
        _, positions, candidates, summary = sweep_layers(
            v, (), offsets, ends, cuts, room, index, values, exact
        )
        if exact[0] >= 0:
            return int(exact[0]), _heads(
                v, offsets, ends[1:], cuts, positions, candidates, summary
            )[0]
    threshold = choose_by_histogram(v, k, 0, index, values)
    return threshold, Head(
        index.copy(), values, k, math.nan, float(np.int32(threshold).view(np.float32))
    )
