"""Ranks and counts of many layers in a constant number of launches, by radix search.

It works on the bits of the magnitudes; all decisions of a search are made on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu.cupy import device
from gpu.cupy.device import Chunks
from reference import ops as reference
from reference.ops import Index, Vector, float32_ceiling

LEVELS = ((20, device.DIGITS, 31), (9, device.DIGITS, 20), (0, 512, 9))
"""The levels of the radix search: shift of the digit, number of digits, shift of the bits above."""


class Layers(NamedTuple):
    """Layers as the kernels take them: chunks, and addresses of first values, on the device."""

    addresses: NDArray[np.uint64]
    chunks: Chunks


def apart(layers: Sequence[Vector]) -> Layers:
    """Layers that are separate vectors."""
    return Layers(_addresses(layers), chunks_of(np.array([(0, layer.size) for layer in layers])))


def neighbours(v: NDArray[Any], chunks: Chunks) -> Layers:
    """The layers of v that these chunks describe."""
    return Layers(_addresses([v] * chunks.layers), chunks)


def _addresses(layers: Sequence[Vector]) -> NDArray[np.uint64]:
    return device.from_host(
        np.array([device.current().address(layer) for layer in layers], dtype=np.uint64)
    )


def bounds_of(offsets: Index) -> Index:
    """Start and end of each of m layers (m, 2), from offsets (m + 1)."""
    return np.stack([offsets[:-1], offsets[1:]], axis=1)


def chunks_of(bounds: Index) -> Chunks:
    """The chunks of the layers with these bounds (m, 2)."""
    return device.cut_once(bounds.astype(np.int64, copy=False).tobytes())


def kth_bits(layers: Layers, k: Index, together: bool = False) -> NDArray[np.uint32]:
    """The bits of each layer's k-th largest magnitude, on the device.

    A radix search from the highest digit down takes two launches a level for all layers. If k is 0,
    the bits exceed all magnitudes. together: treat all layers as one; k then has one value.
    """
    xp, launch = device.current().xp, device.current().launch
    prefix: NDArray[np.uint32] = xp.zeros(k.size, dtype=np.uint32)
    left = xp.array(k, dtype=np.int64)
    for shift, digits, higher in LEVELS:
        histogram = xp.zeros((k.size, digits), dtype=np.uint64)
        level = [
            layers.addresses,
            layers.chunks.table,
            prefix,
            shift,
            digits,
            higher,
            int(together),
            histogram,
        ]
        launch("digit_histogram", layers.chunks.layer.size, level)
        launch("next_digit", k.size, [histogram, digits, prefix, left])
    return prefix


def kth_largest(v: Vector, k: int) -> float:
    """See `reference.ops.kth_largest`."""
    if not 0 < k <= v.size:
        return reference.kth_largest(np.empty(v.size, dtype=np.float32), k)
    bits = kth_bits(apart([v]), np.array([k]))
    return float(device.to_host(bits).view(np.float32)[0])


def counts_at_least(layers: Sequence[Vector], thresholds: NDArray[np.float64]) -> NDArray[np.int64]:
    """N_l(t) of each layer for each of its thresholds (layers × width), in one launch."""
    bits = np.array([float32_ceiling(float(t)) for t in thresholds.ravel()], dtype=np.float32).view(
        np.uint32
    )
    addresses, chunks = apart(layers)
    counts = device.current().xp.zeros(thresholds.shape, dtype=np.uint64)
    args = [addresses, chunks.table, device.from_host(bits), thresholds.shape[1], counts]
    device.current().launch("count_at_least", chunks.layer.size, args)
    return device.to_host(counts).astype(np.int64)
