"""Selecting from what a selection has left: from its heads and, if these do not suffice, layers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from gpu.numba.cache import njit
from gpu.numba.magnitudes import count_from, emit_candidates, kth
from gpu.numba.search import SMALL, Positions, collect_exactly, reach_of
from gpu.numba.selection import NOTHING, sweep_layers, whole
from gpu.numba.sweep import MAGNITUDE, SLACK, Bits
from reference.ops import Head, Index, Selection, Vector


@njit(nogil=True)
def _unchosen(positions, bits, chosen, threshold, origin, index, left):
    """Write a head's entries that were not selected; returns their number.

    threshold: that of the selected entries, as bits. Every entry is written, and overwritten by the
    next one unless it counts; so index and left have room for one more.
    """
    ties, count = chosen - count_from(bits, threshold + np.int32(1)), 0
    for i in range(bits.size):
        magnitude = bits[i] & MAGNITUDE
        tied = magnitude == threshold
        index[count], left[count] = origin + np.int64(positions[i]), bits[i]
        count += (magnitude < threshold) | (tied & (ties <= 0))
        ties -= tied
    return count


def _rest_of(heads: Sequence[Head], offsets: Index) -> tuple[Index, Bits]:
    """The entries of all heads that were not selected: their index, ascending, and bits."""
    room = sum(head.values.size - head.chosen for head in heads) + 1
    index, left, count = np.empty(room, dtype=np.int64), np.empty(room, dtype=np.int32), 0
    for head, origin in zip(heads, offsets, strict=False):
        if head.values.size > head.chosen:
            threshold, bits = np.float32(head.threshold).view(np.int32), head.values.view(np.int32)
            count += _unchosen(
                head.positions, bits, head.chosen, threshold, origin, index[count:], left[count:]
            )
    return index[:count], left[:count]


def choose_rest(v: Vector, offsets: Index, heads: Sequence[Head], k: int) -> Selection | None:
    """`top_k_of_rest` from the heads; None if these hold too few entries or the cut is zero.

    A layer whose head might lack some of the k largest is searched again.
    """
    index, left = _rest_of(heads, offsets)
    if left.size < k or not (cut := int(kth(left, k, np.int32(0), MAGNITUDE))):
        return None
    # with more entries the k-th largest is no smaller
    least = float(np.int32(cut).view(np.float32))
    if any(head.floor >= least for head in heads):
        layers = (v[start:stop] for start, stop in pairwise(offsets))
        heads = [
            _down_to(head, layer, cut, least, k) for head, layer in zip(heads, layers, strict=True)
        ]
        index, left = _rest_of(heads, offsets)
        cut = int(kth(left, k, np.int32(0), MAGNITUDE))
    chosen, values = np.empty(k, dtype=np.int64), np.empty(k, dtype=np.float32)
    emit_candidates(index, left, k, np.int32(cut), 0, chosen, values)
    return chosen, values


def _down_to(head: Head, v: Vector, cut: int, least: float, k: int) -> Head:
    """A head of v (n) with all values whose magnitude reaches `least`, whose bits are the cut.

    Usually at most k of these were not selected. All selected values are among them, since a head's
    floor is at most its threshold.
    """
    if head.floor < least:
        return head
    if v.size <= SMALL:
        return whole(v, head.chosen)._replace(threshold=head.threshold)
    positions, candidates = _collect(v, cut, head.chosen + k)
    return Head(positions, candidates.view(np.float32), head.chosen, head.threshold, least)


def _collect(v: Vector, cut: int, expected: int) -> tuple[Positions, Bits]:
    """Positions and bits of the values that reach the cut.

    It takes one pass if there are not many more than expected.
    """
    offsets, ends, none = (
        np.array([0, v.size]),
        np.zeros(2, dtype=np.int64),
        np.empty(0, dtype=np.int64),
    )
    cuts, room = np.array([cut], dtype=np.int32), np.array([expected + SLACK])
    _, positions, candidates, summary = sweep_layers(
        v, (), offsets, ends, cuts, room, none, NOTHING, np.zeros(1, dtype=np.int32)
    )
    at, count = summary[0].tolist()
    if count >= 0:
        return positions[at : at + count], candidates[at : at + count]
    return collect_exactly(v, cut, reach_of(v, cut))
