"""Selecting the k largest values of each layer on the device.

The pass that accumulates collects candidates: the values that reach a cut a little below the hint.
If there are enough of them and they fit, the exact selection is made among them. If the hint was
bad, a radix search over the bits of the layer's magnitudes first finds the exact threshold.
Gradient, residual and selection stay on the device; the host only reads the numbers of candidates
and the thresholds.
"""

from __future__ import annotations

import math

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


def choose(
    v: Vector, gradient: Vector | None, offsets: Index, k: Index, hints: NDArray[np.float64]
) -> tuple[Index, Vector, NDArray[np.float64]]:
    """v += gradient, if there is one; then select the k largest of each layer.

    Returns index, values and thresholds.
    """
    if v.size > 1 << 32:
        raise ValueError(
            f"{v.size} values are too many: an index has 32 bits here, as in a message"
        )
    bounds, k = bounds_of(offsets), k.astype(np.int64)
    candidates = Candidates(v, bounds, k)
    candidates.collect(
        np.arange(k.size), device.from_host(_cuts(np.diff(offsets), k, hints)), gradient
    )
    missed = candidates.missed()
    if missed.size:
        exact, _ = kth_bits(neighbours(v, chunks_of(bounds[missed])), k[missed])
        candidates.collect(missed, exact)
    index, threshold = candidates.choose()
    return (
        index,
        v[index],
        np.where(k > 0, device.to_host(threshold).view(np.float32).astype(np.float64), math.inf),
    )


def _cuts(sizes: Index, k: Index, hints: NDArray[np.float64]) -> NDArray[np.uint32]:
    """Each layer's cut, as bits; NEVER if the hint is useless, so that the layer is searched."""
    guess = hints * (1 - np.minimum(0.9, MARGIN + SPREAD / np.sqrt(np.maximum(k, 1))))
    usable = (k > 0) & (guess > 0) & (guess < np.finfo(np.float32).max)
    cuts = np.where(usable, np.where(usable, guess, 0).astype(np.float32).view(np.uint32), NEVER)
    return np.where((k == sizes) & (k > 0), 0, cuts).astype(np.uint32)


class Candidates:
    """The candidates of each layer of v, one layer after another, and the selection among them.

    An entry holds the index in v and, in its lower 32 bits, the bits of the magnitude. Public
    attribute: `counts` (L), how many candidates each layer has, including those that did not fit.
    """

    def __init__(self, v: Vector, bounds: Index, k: Index) -> None:
        self.v, self.bounds, self.k = v, bounds, k
        size = np.minimum(ROOM * k + SLACK, bounds[:, 1] - bounds[:, 0])
        self.rooms = np.stack([np.cumsum(size) - size, size], axis=1)
        self.entries = device.current().xp.empty(int(size.sum()), dtype=np.uint64)
        self.counts = np.zeros(k.size, dtype=np.int64)

    def collect(
        self, layers: Index, cuts: NDArray[np.uint32], gradient: Vector | None = None
    ) -> None:
        """v += gradient, if there is one, in these layers; collect what reaches their cuts.

        cuts: bits, on the device. NonFiniteError if a value is not finite.
        """
        tally = device.current().xp.zeros(layers.size + 1, dtype=np.uint64)
        chunks = chunks_of(self.bounds[layers])
        args = [
            self.v,
            0 if gradient is None else gradient,
            chunks.table,
            cuts,
            device.from_host(self.rooms[layers]),
        ]
        device.current().launch(
            "collect", chunks.layer.size, [*args, tally[:-1], tally[-1:], self.entries]
        )
        *counts, bad = device.to_host(tally).tolist()
        if bad:
            raise NonFiniteError("NaN or infinity in the accumulated gradient")
        self.counts[layers] = counts

    def missed(self) -> Index:
        """The layers with too few candidates, or with more than fit."""
        return np.flatnonzero((self.counts < self.k) | (self.counts > self.rooms[:, 1]))

    def choose(self) -> tuple[Index, NDArray[np.uint32]]:
        """The index of each layer's k largest, ascending, and the bits of the k-th largest.

        The lower index comes first among equals.
        """
        xp = device.current().xp
        if not self.k.any():
            return xp.empty(0, dtype=np.int64), xp.zeros(self.k.size, dtype=np.uint32)
        stop = np.cumsum(np.minimum(self.counts, self.rooms[:, 1]))
        start = np.concatenate([[0], stop[:-1]])
        begin, end, shift = device.from_host(np.stack([start, stop, self.rooms[:, 0] - start]))
        position = xp.arange(int(stop[-1]))
        layer = xp.searchsorted(end, position, side="right")
        # sorted by index, so that each layer's entries stay together
        entries = xp.sort(self.entries[position + shift[layer]])
        index, bits = (entries >> 32).astype(np.int64), entries.astype(np.uint32)
        exact, equals = kth_bits(
            neighbours(bits, device.cut(np.stack([start, stop], axis=1))), self.k
        )
        tied = bits == exact[layer]
        chosen = index[
            (bits > exact[layer]) | (tied & (_ranks(tied, begin[layer]) <= equals[layer]))
        ]
        for crowded in np.flatnonzero(self.counts > self.rooms[:, 1]):
            self._many_equals(int(crowded), exact[crowded], chosen)
        return chosen, exact

    def _many_equals(self, layer: int, threshold: NDArray[np.uint32], chosen: Index) -> None:
        """Select in a layer in which more values equal the threshold than fit.

        All values above it are taken, then equal ones from the lowest index on.
        """
        start, stop = self.bounds[layer].tolist()
        k, first = int(self.k[layer]), int(self.k[:layer].sum())
        xp = device.current().xp
        bits = self.v[start:stop].view(np.uint32) & np.uint32(0x7FFFFFFF)
        above = xp.flatnonzero(bits > threshold)
        equal = xp.flatnonzero(bits == threshold)[: k - above.size]
        chosen[first : first + k] = start + xp.sort(xp.concatenate([above, equal]))


def _ranks(flags: NDArray[np.bool_], begin: Index) -> Index:
    """How many flags are set from begin[i] up to i (n)."""
    xp = device.current().xp
    count = xp.concatenate([xp.zeros(1, dtype=np.int64), xp.cumsum(flags, dtype=np.int64)])
    ranks: Index = count[1:] - count[begin]
    return ranks
