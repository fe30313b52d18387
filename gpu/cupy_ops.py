"""`reference.ops` on CuPy arrays: all layers of a model in a constant number of launches, the same bits.

A selection collects candidates, whatever reaches a cut a little below the hint, in the pass that accumulates; if they are enough
and fit, the exact choice is made among them. Where the hint was no good, a radix search over the bits of the layer's magnitudes
finds the exact threshold first. All decisions of a search are taken on the device, where gradient, residual and selection
stay; the host asks how many candidates there are, and what the thresholds were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from reference import ops as reference
from reference.ops import (
    Head,
    Index,
    NonFiniteError,
    Selection,
    Vector,
    float32_ceiling,
    is_compiled,
    notes,
)

from gpu import device
from gpu.device import Chunks
from gpu.numba_selection import MARGIN, ROOM, SPREAD

__all__ = ["Head", "Index", "NonFiniteError", "Selection", "Vector", "float32_ceiling", "is_compiled", "notes"]
# float32_ceiling is arithmetic on a single number: the reference's own.

SLACK = 1024
"""Candidates that a layer has room for beyond ROOM·k."""
LEVELS = ((20, device.DIGITS, 31), (9, device.DIGITS, 20), (0, 512, 9))
"""The radix search's levels: shift of the digit, how many digits, shift of the bits above it."""
NEVER = 0xFFFFFFFF


def set_threads(count: int) -> None:
    """See `reference.ops.set_threads`; a GPU has its own."""


def set_device(rank_on_node: int) -> None:
    """See `reference.ops.set_device`: the GPUs are dealt to the ranks in turn."""
    device.current().choose(rank_on_node)


def wait() -> None:
    """See `reference.ops.wait`: a GPU computes while the host goes on."""
    device.current().wait()


def zeros(n: int) -> Vector:
    """See `reference.ops.zeros`."""
    vector: Vector = device.current().xp.zeros(n, dtype=np.float32)
    return vector


def from_host(array: NDArray[Any]) -> NDArray[Any]:
    """See `reference.ops.from_host`."""
    moved: NDArray[Any] = device.current().xp.asarray(array, order="C")
    return moved


def to_host(array: NDArray[Any]) -> NDArray[Any]:
    """See `reference.ops.to_host`."""
    host: NDArray[Any] = array.get() if hasattr(array, "get") else array  # type: ignore[attr-defined]
    return host


def accumulate(residual: Vector, gradient: Vector) -> None:
    """See `reference.ops.accumulate`."""
    residual += gradient


def all_finite(v: Vector) -> bool:
    """See `reference.ops.all_finite`."""
    return count_at_least(v, math.inf) == 0


def top_k(v: Vector, k: int) -> Selection:
    """See `reference.ops.top_k`."""
    if not 0 <= k <= v.size:
        raise ValueError(f"k must lie in 0..{v.size}, not {k}")
    whole = np.array([0, v.size], dtype=np.int64)
    index, values, _ = _choose(v, None, whole, np.array([k]), np.array([math.nan]))
    return index, values


def select(residual: Vector, gradient: Vector, k: int, hint: float) -> tuple[Index, Vector, float]:
    """See `reference.ops.select`."""
    whole = np.array([0, residual.size], dtype=np.int64)
    index, values, thresholds, _ = select_layers(residual, gradient, whole, np.array([k]), np.array([hint]))
    return index, values, float(thresholds[0])


def select_layers(
    residual: Vector,
    gradient: Vector,
    offsets: Index,
    k: Index,
    hints: NDArray[np.float64],
    expected: Index | None = None,  # noqa: ARG001
) -> tuple[Index, Vector, NDArray[np.float64], list[Head]]:
    """See `reference.ops.select_layers`."""
    sizes = np.diff(offsets)
    if np.any(k < 0) or np.any(k > sizes):
        raise ValueError("every k must lie in 0..n of its layer")
    index, values, thresholds = _choose(residual, gradient, offsets, k, hints)
    ends = [0, *np.cumsum(k).tolist()]
    heads = [
        Head(index[begin:end] - int(start), values[begin:end], end - begin, float(t), float(t))
        for (begin, end), start, t in zip(pairwise(ends), offsets, thresholds, strict=False)
    ]
    return index, values, thresholds, heads


def top_k_of_rest(v: Vector, offsets: Index, heads: Sequence[Head], k: int) -> Selection:
    """See `reference.ops.top_k_of_rest`: zeros meanwhile stand for what was chosen, as long as no zero is chosen."""
    places = [_chosen(head) + int(start) for start, head in zip(offsets, heads, strict=False)]
    taken = device.current().xp.concatenate(places)
    before = v[taken]
    v[taken] = 0
    try:
        index, values = top_k(v, k)
    finally:
        v[taken] = before
    if bool(values.all()):
        return index, values
    on_host = [Head(to_host(head.places), to_host(head.values), head.chosen, *head[3:]) for head in heads]
    index, values = reference.top_k_of_rest(to_host(v), offsets, on_host, k)
    return from_host(index), from_host(values)


def _chosen(head: Head) -> Index:
    """The places of a head's chosen entries."""
    return head.places if head.values.size == head.chosen else head.places[top_k(head.values, head.chosen)[0]]


def _choose(
    v: Vector, gradient: Vector | None, offsets: Index, k: Index, hints: NDArray[np.float64]
) -> tuple[Index, Vector, NDArray[np.float64]]:
    """v += gradient, if there is one; then the k largest of each layer: index, values and thresholds."""
    if v.size > 1 << 32:
        raise ValueError(f"{v.size} values are too many: an index has 32 bits here, as in a message")
    bounds, k = _bounds(offsets), k.astype(np.int64)
    candidates = Candidates(v, bounds, k)
    candidates.collect(np.arange(k.size), from_host(_cuts(np.diff(offsets), k, hints)), gradient)
    missed = candidates.missed()
    if missed.size:
        exact, _ = kth_bits(neighbours(v, _chunks(bounds[missed])), k[missed])
        candidates.collect(missed, exact)
    index, threshold = candidates.choose()
    return index, v[index], np.where(k > 0, to_host(threshold).view(np.float32).astype(np.float64), math.inf)


def _cuts(sizes: Index, k: Index, hints: NDArray[np.float64]) -> NDArray[np.uint32]:
    """The bits from which on a value is a candidate; NEVER where the hint is useless, so that the layer is searched."""
    guess = hints * (1 - np.minimum(0.9, MARGIN + SPREAD / np.sqrt(np.maximum(k, 1))))
    usable = (k > 0) & (guess > 0) & (guess < np.finfo(np.float32).max)
    cuts = np.where(usable, np.where(usable, guess, 0).astype(np.float32).view(np.uint32), NEVER)
    return np.where((k == sizes) & (k > 0), 0, cuts).astype(np.uint32)


class Candidates:
    """Room for the candidates of each layer of v, one layer after another, and the exact choice among them.

    An entry holds the index in v and, in the lower 32 bits, the bits of the magnitude.
    """

    def __init__(self, v: Vector, bounds: Index, k: Index) -> None:
        self.v, self.bounds, self.k = v, bounds, k
        size = np.minimum(ROOM * k + SLACK, bounds[:, 1] - bounds[:, 0])
        self.rooms = np.stack([np.cumsum(size) - size, size], axis=1)
        self.entries = device.current().xp.empty(int(size.sum()), dtype=np.uint64)
        self.found = np.zeros(k.size, dtype=np.int64)

    def collect(self, layers: Index, cuts: NDArray[np.uint32], gradient: Vector | None = None) -> None:
        """v += gradient, if there is one, in these layers, and what reaches their cuts, bits on the device.

        NonFiniteError where something is not finite.
        """
        tally = device.current().xp.zeros(layers.size + 1, dtype=np.uint64)
        chunks = _chunks(self.bounds[layers])
        args = [self.v, 0 if gradient is None else gradient, chunks.table, cuts, from_host(self.rooms[layers])]
        device.current().launch("collect", chunks.layer.size, [*args, tally[:-1], tally[-1:], self.entries])
        *found, bad = to_host(tally).tolist()
        if bad:
            raise NonFiniteError("NaN or infinity in the accumulated gradient")
        self.found[layers] = found

    def missed(self) -> Index:
        """The layers whose candidates are too few or did not fit."""
        return np.flatnonzero((self.found < self.k) | (self.found > self.rooms[:, 1]))

    def choose(self) -> tuple[Index, NDArray[np.uint32]]:
        """The indices of each layer's k largest, ascending, lower ones first among equals; and the bits of the k-th largest."""
        xp = device.current().xp
        if not self.k.any():
            return xp.empty(0, dtype=np.int64), xp.zeros(self.k.size, dtype=np.uint32)
        stop = np.cumsum(np.minimum(self.found, self.rooms[:, 1]))
        start = np.concatenate([[0], stop[:-1]])
        begin, end, shift = from_host(np.stack([start, stop, self.rooms[:, 0] - start]))
        place = xp.arange(int(stop[-1]))
        layer = xp.searchsorted(end, place, side="right")
        entries = xp.sort(self.entries[place + shift[layer]])  # by index, so each layer's stay together
        index, bits = (entries >> 32).astype(np.int64), entries.astype(np.uint32)
        exact, equals = kth_bits(neighbours(bits, device.cut(np.stack([start, stop], axis=1))), self.k)
        tied = bits == exact[layer]
        chosen = index[(bits > exact[layer]) | (tied & (_ranks(tied, begin[layer]) <= equals[layer]))]
        for crowded in np.flatnonzero(self.found > self.rooms[:, 1]):
            self._many_equals(int(crowded), exact[crowded], chosen)
        return chosen, exact

    def _many_equals(self, layer: int, threshold: NDArray[np.uint32], chosen: Index) -> None:
        """More values equal the exact threshold than fit: take what lies above, then equals from the lowest index on."""
        start, stop = self.bounds[layer].tolist()
        k, first = int(self.k[layer]), int(self.k[:layer].sum())
        xp = device.current().xp
        bits = xp.abs(self.v[start:stop]).view(np.uint32)
        above = xp.flatnonzero(bits > threshold)
        equal = xp.flatnonzero(bits == threshold)[: k - above.size]
        chosen[first : first + k] = start + xp.sort(xp.concatenate([above, equal]))


def _ranks(flags: NDArray[np.bool_], begin: Index) -> Index:
    """How many flags are set from place begin[i] up to i (n)."""
    xp = device.current().xp
    count = xp.concatenate([xp.zeros(1, dtype=np.int64), xp.cumsum(flags, dtype=np.int64)])
    ranks: Index = count[1:] - count[begin]
    return ranks


class Layers(NamedTuple):
    """Layers as the kernels find them: where their value number 0 lies (an array on the device), and their chunks."""

    addresses: NDArray[np.uint64]
    chunks: Chunks


def apart(layers: Sequence[Vector]) -> Layers:
    """Vectors, wherever they lie."""
    return Layers(_addresses(layers), device.cut_once(tuple((0, layer.size) for layer in layers)))


def neighbours(v: NDArray[Any], chunks: Chunks) -> Layers:
    """The layers of v, of float32 or of bits, that are cut like this."""
    return Layers(_addresses([v] * chunks.layers), chunks)


def _addresses(layers: Sequence[Vector]) -> NDArray[np.uint64]:
    return from_host(np.array([device.current().address(layer) for layer in layers], dtype=np.uint64))


def _bounds(offsets: Index) -> Index:
    return np.stack([offsets[:-1], offsets[1:]], axis=1)


def _chunks(bounds: Index) -> Chunks:
    return device.cut_once(tuple(map(tuple, bounds.tolist())))


def kth_bits(layers: Layers, k: Index, together: bool = False) -> tuple[NDArray[np.uint32], Index]:
    """The bits of each layer's k-th largest magnitude, and how many of those equal to it are among the k; both on the device.

    A radix search from the highest digit down, all layers in two launches a level. Beyond all magnitudes where k is 0.
    `together`: of all layers as if one; k then has one value.
    """
    xp, launch = device.current().xp, device.current().launch
    prefix, left = xp.zeros(k.size, dtype=np.uint32), xp.array(k, dtype=np.int64)
    for shift, digits, higher in LEVELS:
        histogram = xp.zeros((k.size, digits), dtype=np.uint64)
        level = [layers.addresses, layers.chunks.table, prefix, shift, digits, higher, int(together), histogram]
        launch("digit_histogram", layers.chunks.layer.size, level)
        launch("next_digit", k.size, [histogram, digits, prefix, left])
    return prefix, left


def kth_largest(v: Vector, k: int) -> float:
    """See `reference.ops.kth_largest`."""
    if not 0 < k <= v.size:
        return reference.kth_largest(np.empty(v.size, dtype=np.float32), k)
    bits, _ = kth_bits(apart([v]), np.array([k]))
    return float(to_host(bits).view(np.float32)[0])


def counts_at_least(layers: Sequence[Vector], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """N_l(t) of each layer for each of its thresholds (layers × width), in one launch."""
    bits = np.array([float32_ceiling(float(t)) for t in thresholds.ravel()], dtype=np.float32).view(np.uint32)
    addresses, chunks = apart(layers)
    counts = device.current().xp.zeros(thresholds.shape, dtype=np.uint64)
    args = [addresses, chunks.table, from_host(bits), thresholds.shape[1], counts]
    device.current().launch("count_at_least", chunks.layer.size, args)
    return to_host(counts).astype(np.int64)


def count_at_least(v: Vector, t: float) -> int:
    """See `reference.ops.count_at_least`."""
    return int(counts_at_least([v], np.array([[t]]))[0, 0])


def scatter_add(target: Vector, index: Index, values: Vector) -> None:
    """See `reference.ops.scatter_add`."""
    target[from_host(index)] += from_host(values)


def scatter_subtract(target: Vector, index: Index, values: Vector) -> None:
    """See `reference.ops.scatter_subtract`."""
    target[from_host(index)] -= from_host(values)


def scale(v: Vector, factor: float) -> None:
    """See `reference.ops.scale`."""
    v *= np.float32(factor)


def l2_norm(v: Vector) -> float:
    """See `reference.ops.l2_norm`; the sum's order is the device's, so the last bits may differ."""
    return float(l2_norms(v, np.array([0, v.size]))[0])


def l2_norms(v: Vector, offsets: Index) -> NDArray[np.float64]:
    """See `reference.ops.l2_norms`: in one launch, always in the same order, which is not the reference's."""
    chunks = _chunks(_bounds(offsets))
    sums = device.current().xp.empty(chunks.layer.size, dtype=np.float64)
    device.current().launch("sum_of_squares", chunks.layer.size, [v, chunks.table, sums])
    return np.sqrt(np.bincount(chunks.layer, weights=to_host(sums), minlength=chunks.layers))


def clip_norm(gradient: Vector, limit: float) -> None:
    """See `reference.ops.clip_norm`."""
    norm = l2_norm(gradient)
    if norm > limit:
        scale(gradient, limit / norm)


def sgd_update(
    weights: Vector, momentum: Vector, update: Vector, lr: float, mu: float, weight_decay: float, nesterov: bool
) -> None:
    """See `reference.ops.sgd_update`: its operations, one after another, on the device's arrays."""
    reference.sgd_update(weights, momentum, update, lr, mu, weight_decay, nesterov)
