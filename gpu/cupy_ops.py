"""`reference.ops` on CuPy arrays: all layers of a model in a constant number of launches, the same bits.

A selection collects candidates, whatever reaches a cut a little below the hint, in the pass that accumulates; if they are enough
and fit, the exact choice is made among them. Where the hint was no good, a radix search over the bits of the magnitudes finds the
exact threshold first. Gradient, residual and selection stay on the device; what is sent crosses to the host.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference import ops as reference
from reference.ops import (
    Index,
    NonFiniteError,
    Selection,
    Vector,
    float32_ceiling,
)

from gpu import device

__all__ = ["Index", "NonFiniteError", "Selection", "Vector", "float32_ceiling"]
# float32_ceiling is arithmetic on a single number: the reference's own.

MARGIN = 0.9
"""The cut is so much of the hint: thresholds drift from step to step."""
SLACK = 1024
"""Candidates that fit beyond twice k."""
LEVELS = ((20, 2048, 31), (9, 2048, 20), (0, 512, 9))
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
    moved: NDArray[Any] = device.current().xp.asarray(array)
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
    return bool(device.current().xp.isfinite(v).all())


def top_k(v: Vector, k: int) -> Selection:
    """See `reference.ops.top_k`."""
    if not 0 <= k <= v.size:
        raise ValueError(f"k must lie in 0..{v.size}, not {k}")
    index, values, _ = select(v.copy(), zeros(v.size), k, math.nan)
    return index, v[index] if k else values


def select(residual: Vector, gradient: Vector, k: int, hint: float) -> tuple[Index, Vector, float]:
    """See `reference.ops.select`."""
    whole = np.array([0, residual.size], dtype=np.int64)
    index, values, thresholds, _ = select_layers(residual, gradient, whole, np.array([k]), np.array([hint]))
    return index, values, float(thresholds[0])


def select_layers(
    residual: Vector, gradient: Vector, offsets: Index, k: Index, hints: NDArray[np.float64]
) -> tuple[Index, Vector, NDArray[np.float64], list[Vector]]:
    """See `reference.ops.select_layers`."""
    sizes = np.diff(offsets)
    if np.any(k < 0) or np.any(k > sizes):
        raise ValueError("every k must lie in 0..n of its layer")
    found = Candidates(offsets, k)
    if not found.accumulate(residual, gradient, _cuts(sizes, k, hints)):
        raise NonFiniteError("NaN or infinity in the accumulated gradient")
    missed = found.missed()
    if missed.any():
        layers = [residual[start:stop] for start, stop in pairwise(offsets)]
        exact = kth_bits(layers, np.where(missed, k, 0), np.zeros(k.size, dtype=np.uint32))
        found.collect(layers, np.where(missed, exact, NEVER).astype(np.uint32), missed)
    flat = found.choose(residual)
    values = residual[flat]
    ends = np.cumsum(k).tolist()
    heads = [values[start:stop] for start, stop in pairwise([0, *ends])]
    return flat, values, _thresholds(values, k), heads


def _cuts(sizes: Index, k: Index, hints: NDArray[np.float64]) -> NDArray[np.uint32]:
    """The bits from which on a value is a candidate; NEVER where the hint is useless, so that the layer is searched."""
    usable = np.isfinite(hints) & (hints > 0) & (hints < np.finfo(np.float32).max)
    cuts = (MARGIN * np.where(usable, hints, 0)).astype(np.float32).view(np.uint32)
    cuts = np.where(usable & (k > 0), cuts, NEVER)
    return np.where((k == sizes) & (k > 0), 0, cuts).astype(np.uint32)


def _thresholds(values: Vector, k: Index) -> NDArray[np.float64]:
    """a_k of each layer from what was chosen, k of each layer one after another; infinity where k is 0."""
    magnitude = np.abs(to_host(values)).astype(np.float64)
    starts = np.cumsum(k) - k
    thresholds = np.full(k.size, math.inf)
    if magnitude.size:
        some = k > 0
        thresholds[some] = np.minimum.reduceat(magnitude, starts[some])
    return thresholds


class Candidates:
    """Room for each layer's candidates, one layer after another, and the exact choice among them."""

    def __init__(self, offsets: Index, k: Index) -> None:
        self.offsets, self.k = offsets, k
        self.capacity = np.minimum(2 * k + SLACK, np.diff(offsets)).astype(np.uint64)
        ends = np.cumsum(self.capacity.astype(np.int64))
        self.slot, room = ends - self.capacity.astype(np.int64), int(ends[-1])
        xp = device.current().xp
        self.index = xp.full(room, -1, dtype=np.int64)
        self.bits = xp.zeros(room, dtype=np.uint32)
        self.found = xp.zeros(k.size, dtype=np.uint64)
        self.layer = from_host(np.repeat(np.arange(k.size), self.capacity.astype(np.int64)))

    def accumulate(self, residual: Vector, gradient: Vector, cuts: NDArray[np.uint32]) -> bool:
        """residual += gradient, and what reaches the cuts; False where something is not finite."""
        bounds = tuple(zip(self.offsets[:-1].tolist(), self.offsets[1:].tolist(), strict=True))
        table = device.chunks(bounds)
        bad = device.current().xp.zeros(1, dtype=np.uint64)
        args = [residual, gradient, *map(from_host, (*table, cuts, self.slot, self.capacity)), self.found]
        device.current().launch("accumulate_and_collect", table[0].size, [*args, self.index, self.bits, bad])
        return int(to_host(bad)[0]) == 0

    def missed(self) -> NDArray[np.bool_]:
        """The layers whose candidates are too few or did not fit."""
        found = to_host(self.found)
        return (found < self.k.astype(np.uint64)) | (found > self.capacity)

    def collect(self, layers: Sequence[Vector], cuts: NDArray[np.uint32], which: NDArray[np.bool_]) -> None:
        """Start afresh with these layers of v, whose exact thresholds are known now."""
        again = from_host(which)
        self.found[again] = 0
        self.index[again[self.layer]] = -1
        table = chunk_table(layers)
        begin = from_host(self.offsets[:-1].astype(np.int64))
        args = [pointers(layers), begin, *map(from_host, (*table, cuts, self.slot, self.capacity)), self.found]
        device.current().launch("collect", table[0].size, [*args, self.index, self.bits])

    def choose(self, residual: Vector) -> Index:
        """The flat indices of each layer's k largest, ascending within the layer; lower indices first among equals."""
        xp = device.current().xp
        index, bits = self.index, self.bits
        largest_first = xp.where(index < 0, NEVER, xp.uint32(NEVER >> 1) - bits).astype(np.int64)
        order = xp.lexsort(xp.stack([index, largest_first, self.layer]))
        first = from_host(np.repeat(self.slot, self.k) + _ranks(self.k))
        chosen = index[order[first]]
        for layer in np.flatnonzero(to_host(self.found) > self.capacity):
            self._many_equals(int(layer), residual, chosen)
        flat: Index = xp.sort(chosen)
        return flat

    def _many_equals(self, layer: int, residual: Vector, chosen: Index) -> None:
        """More values equal the exact threshold than fit: take what lies above, then equals from the lowest index on."""
        start, stop = int(self.offsets[layer]), int(self.offsets[layer + 1])
        k, first = int(self.k[layer]), int(self.k[:layer].sum())
        xp = device.current().xp
        bits = xp.abs(residual[start:stop]).view(np.uint32)
        threshold = np.uint32(kth_bits([residual[start:stop]], np.array([k]), np.zeros(1, dtype=np.uint32))[0])
        above = xp.flatnonzero(bits > threshold)
        equal = xp.flatnonzero(bits == threshold)[: k - above.size]
        chosen[first : first + k] = start + xp.concatenate([above, equal])


def _ranks(k: Index) -> Index:
    """0 … k_l − 1 for each layer, one after another."""
    return np.arange(int(k.sum()), dtype=np.int64) - np.repeat(np.cumsum(k) - k, k)


def pointers(layers: Sequence[Vector]) -> NDArray[np.uint64]:
    """Where the layers lie on the device, as an array on the device."""
    return from_host(np.array([device.current().address(layer) for layer in layers], dtype=np.uint64))


def chunk_table(layers: Sequence[Vector]) -> tuple[NDArray[np.int64], ...]:
    """The chunks of vectors that begin at 0 each."""
    return device.chunks(tuple((0, layer.size) for layer in layers))


def kth_bits(
    layers: Sequence[Vector], k: Index, least: NDArray[np.uint32], together: bool = False
) -> NDArray[np.uint32]:
    """The bits of each layer's k-th largest magnitude, which is known to be `least` or more; 0 where k is 0.

    A radix search from the highest digit down, all layers in one launch a level. `together`: of all layers as if one.
    """
    table = chunk_table(layers)
    where = [pointers(layers), *map(from_host, (*table, least.astype(np.uint32)))]
    prefix, left = np.zeros(k.size, dtype=np.uint32), k.astype(np.int64)
    for shift, digits, higher in LEVELS:
        histogram = device.current().xp.zeros((k.size, digits), dtype=np.uint64)
        device.current().launch("digit_histogram", table[0].size, [*where, from_host(prefix), shift, digits, higher, histogram])
        counts = to_host(histogram).astype(np.int64)
        counts = np.broadcast_to(counts.sum(axis=0), counts.shape) if together else counts
        from_top = np.cumsum(counts[:, ::-1], axis=1)
        reached = np.argmax(from_top >= left[:, None], axis=1)
        above = np.where(reached > 0, np.take_along_axis(from_top, np.maximum(reached - 1, 0)[:, None], axis=1)[:, 0], 0)
        left = left - above
        prefix = (prefix * np.uint32(digits) + (digits - 1 - reached).astype(np.uint32)).astype(np.uint32)
    return np.where(k > 0, prefix, 0).astype(np.uint32)


def kth_largest(v: Vector, k: int) -> float:
    """See `reference.ops.kth_largest`."""
    if not 0 < k <= v.size:
        return reference.kth_largest(np.empty(v.size, dtype=np.float32), k)
    return float(kth_bits([v], np.array([k]), np.zeros(1, dtype=np.uint32)).view(np.float32)[0])


def counts_at_least(layers: Sequence[Vector], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """N_l(t) of each layer for each of its thresholds (layers × width), in one launch."""
    bits = np.array([float32_ceiling(float(t)) for t in thresholds.ravel()], dtype=np.float32).view(np.uint32)
    table = chunk_table(layers)
    counts = device.current().xp.zeros(thresholds.shape, dtype=np.uint64)
    args = [pointers(layers), *map(from_host, table), from_host(bits), thresholds.shape[1], counts]
    device.current().launch("count_at_least", table[0].size, args)
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
    xp = device.current().xp
    return math.sqrt(float(xp.sum(xp.square(v.astype(np.float64)))))


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
