"""Selecting the k largest values of each layer on the device.

The pass that accumulates collects candidates: the values that reach a cut a little below the hint.
If there are enough of them and they fit, the exact selection is made among them, by a block of
threads for each layer. If the hint was bad, a radix search over the bits of the layer's magnitudes
first finds the exact threshold. Gradient, residual and selection stay on the device; the host only
reads the numbers of candidates and the thresholds, in one copy unless a hint was bad.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu.cupy import device
from gpu.cupy.search import bounds_of, chunks_of, kth_bits, neighbours
from gpu.numba.search import ROOM
from gpu.numba.selection import MARGIN, SPREAD
from reference.ops import Index, NonFiniteError, Vector

SLACK = 1024
"""Candidates for which a layer has room beyond ROOM·k."""
NEVER = 0xFFFFFFFF
"""A cut that no value reaches."""


@dataclass(frozen=True, eq=False)
class Selected:
    """The K entries that were chosen of all L layers, ascending by index, on the device.

    index: where they are in v (K). positions: where they are in their layers (K). values (K).
    thresholds: each layer's, on the host (L).
    """

    index: Index
    positions: Index
    values: Vector
    thresholds: NDArray[np.float64]


def choose(
    v: Vector, gradient: Vector | None, offsets: Index, k: Index, hints: NDArray[np.float64]
) -> Selected:
    """v += gradient, if there is one; then select the k largest of each layer.

    NonFiniteError if a value is not finite.
    """
    if v.size > 1 << 32:
        raise ValueError(
            f"{v.size} values are too many: an index has 32 bits here, as in a message"
        )
    k = k.astype(np.int64)
    candidates = Candidates(v, bounds_of(offsets), k)
    cuts = device.from_host(_cuts(np.diff(offsets), k, hints))
    candidates.collect_and_pick(np.arange(k.size), cuts, gradient)
    missed = candidates.missed()
    if missed.size:
        exact = kth_bits(neighbours(v, chunks_of(candidates.bounds[missed])), k[missed])
        candidates.collect_and_pick(missed, exact)
        for layer in candidates.missed():  # more values equal the threshold than fit
            candidates.take_equals(int(layer), exact[int(np.searchsorted(missed, layer))])
    return candidates.selected()


def _cuts(sizes: Index, k: Index, hints: NDArray[np.float64]) -> NDArray[np.uint32]:
    """Each layer's cut, as bits; NEVER if the hint is useless, so that the layer is searched."""
    guess = hints * (1 - np.minimum(0.9, MARGIN + SPREAD / np.sqrt(np.maximum(k, 1))))
    usable = (k > 0) & (guess > 0) & (guess < np.finfo(np.float32).max)
    cuts = np.where(usable, np.where(usable, guess, 0).astype(np.float32).view(np.uint32), NEVER)
    return np.where((k == sizes) & (k > 0), 0, cuts).astype(np.uint32)


class Candidates:
    """The candidates of each layer of v, one layer after another, and those chosen among them.

    An entry holds the index in v and, in its lower 32 bits, the bits of the magnitude. Public
    attribute: `bounds` (L, 2), where each layer starts and ends.
    """

    def __init__(self, v: Vector, bounds: Index, k: Index) -> None:
        self.bounds, self._v, self._k = bounds, v, k
        size = np.minimum(ROOM * k + SLACK, bounds[:, 1] - bounds[:, 0])
        parts = [np.cumsum(size) - size, size, np.cumsum(k) - k, k, bounds[:, 0]]
        self._rooms = np.stack(parts, axis=1)
        xp = device.current().xp
        self._entries = xp.empty(int(size.sum()), dtype=np.uint64)
        self._chosen = xp.empty(int(k.sum()), dtype=np.uint64)
        self._counts = np.zeros(k.size, dtype=np.int64)
        self._bits = np.zeros(k.size, dtype=np.uint32)

    def collect_and_pick(
        self, layers: Index, cuts: NDArray[np.uint32], gradient: Vector | None = None
    ) -> None:
        """v += gradient, if there is one, in these layers; collect what reaches their cuts, and
        choose among it.

        cuts: bits, on the device. NonFiniteError if a value is not finite.
        """
        tally = device.current().xp.zeros(2 * layers.size + 1, dtype=np.uint64)
        counts, bits, bad = tally[: layers.size], tally[layers.size : -1], tally[-1:]
        chunks, rooms = chunks_of(self.bounds[layers]), device.from_host(self._rooms[layers])
        added: Any = 0 if gradient is None else gradient
        args = [self._v, added, chunks.table, cuts, rooms, counts, bad, self._entries]
        device.current().launch("collect", chunks.layer.size, args)
        args = [self._entries, rooms, counts, self._chosen, bits]
        device.current().launch("pick", layers.size, args, threads=device.WIDE)
        on_host = device.to_host(tally)
        if on_host[-1]:
            raise NonFiniteError("NaN or infinity in the accumulated gradient")
        self._counts[layers] = on_host[: layers.size]
        self._bits[layers] = on_host[layers.size : -1]

    def missed(self) -> Index:
        """The layers with too few candidates, or with more than fit: nothing is chosen there."""
        return np.flatnonzero((self._counts < self._k) | (self._counts > self._rooms[:, 1]))

    def take_equals(self, layer: int, threshold: NDArray[np.uint32]) -> None:
        """Choose in a layer in which more values equal the threshold than there is room for.

        All values above it are taken, then equal ones from the lowest index on. threshold: bits, on
        the device, without an axis.
        """
        start, stop = self.bounds[layer].tolist()
        k, first = int(self._k[layer]), int(self._rooms[layer, 2])
        xp = device.current().xp
        bits = self._v[start:stop].view(np.uint32) & np.uint32(0x7FFFFFFF)
        above = xp.flatnonzero(bits > threshold)
        equal = xp.flatnonzero(bits == threshold)[: k - above.size]
        index = (start + xp.concatenate([above, equal])).astype(np.uint64)
        self._chosen[first : first + k] = index << np.uint64(32)
        self._bits[layer] = int(threshold)

    def selected(self) -> Selected:
        """What was chosen, once all layers are searched."""
        self._chosen.sort()  # by index, so that each layer's entries stay together
        xp, total, layers = device.current().xp, self._chosen.size, len(self._k)
        index, positions = xp.empty((2, total), dtype=np.int64)
        values = xp.empty(total, dtype=np.float32)
        args = [self._chosen, total, device.from_host(self._rooms), layers, self._v]
        device.launch_over(total, "unpack", [*args, index, positions, values])
        thresholds = np.where(self._k > 0, self._bits.view(np.float32), np.float32(math.inf))
        return Selected(index, positions, values, thresholds.astype(np.float64))
