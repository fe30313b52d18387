"""`reference.ops` on CuPy arrays, to the same bits.

The number of launches does not depend on the number of layers, unless many values of a layer are
equal to its threshold.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu import base
from gpu.cupy import device
from gpu.cupy.search import bounds_of, chunks_of, counts_at_least, kth_largest
from gpu.cupy.selection import choose
from reference import ops as reference
from reference.ops import Gradient, Head, Index, Selection, Vector


class Ops(base.Ops):
    """The primitives on a GPU."""

    def zeros(self, n: int) -> Vector:
        """See `reference.ops.zeros`."""
        vector: Vector = device.current().xp.zeros(n, dtype=np.float32)
        return vector

    def accumulate(self, residual: Vector, gradient: Vector) -> None:
        """See `reference.ops.accumulate`."""
        _add(residual, None, gradient)

    def all_finite(self, v: Vector) -> bool:
        """See `reference.ops.all_finite`."""
        return self.count_at_least(v, math.inf) == 0

    def top_k(self, v: Vector, k: int) -> Selection:
        """See `reference.ops.top_k`."""
        if not 0 <= k <= v.size:
            raise ValueError(f"k must lie in 0..{v.size}, not {k}")
        whole = np.array([0, v.size], dtype=np.int64)
        selected = choose(v, None, whole, np.array([k]), np.array([math.nan]))
        return selected.index, selected.values

    def select(
        self, residual: Vector, gradient: Vector, k: int, hint: float
    ) -> tuple[Index, Vector, float]:
        """See `reference.ops.select`."""
        whole = np.array([0, residual.size], dtype=np.int64)
        index, values, thresholds, _ = self.select_layers(
            residual, gradient, whole, np.array([k]), np.array([hint])
        )
        return index, values, float(thresholds[0])

    def select_layers(
        self,
        residual: Vector,
        gradient: Gradient,
        offsets: Index,
        k: Index,
        hints: NDArray[np.float64],
        expected: Index | None = None,
    ) -> tuple[Index, Vector, NDArray[np.float64], list[Head]]:
        """See `reference.ops.select_layers`."""
        sizes = np.diff(offsets)
        if np.any(k < 0) or np.any(k > sizes):
            raise ValueError("every k must lie in 0..n of its layer")
        in_pieces = isinstance(gradient, list | tuple)
        whole: Any = device.current().xp.concatenate(gradient) if in_pieces else gradient
        found = choose(residual, whole, offsets, k, hints)
        ends = pairwise([0, *np.cumsum(k).tolist()])
        heads = [
            Head(found.positions[begin:end], found.values[begin:end], end - begin, t, t)
            for (begin, end), t in zip(ends, found.thresholds.tolist(), strict=True)
        ]
        return found.index, found.values, found.thresholds, heads

    def top_k_of_rest(self, v: Vector, offsets: Index, heads: Sequence[Head], k: int) -> Selection:
        """See `reference.ops.top_k_of_rest`.

        What was selected before is set to zero during the search; if that selects a zero, the
        reference is called.
        """
        positions = [self._chosen(head) for head in heads]
        layer = np.repeat(offsets[: len(heads)], [each.size for each in positions])
        taken = device.current().xp.concatenate(positions) + device.from_host(layer)
        before = v[taken]
        v[taken] = 0
        try:
            index, values = self.top_k(v, k)
        finally:
            v[taken] = before
        if bool((values.view(np.uint32) << np.uint32(1)).all()):  # denormals are no zeros
            return index, values
        on_host = [
            Head(
                device.to_host(head.positions), device.to_host(head.values), head.chosen, *head[3:]
            )
            for head in heads
        ]
        index, values = reference.top_k_of_rest(device.to_host(v), offsets, on_host, k)
        return device.from_host(index), device.from_host(values)

    def _chosen(self, head: Head) -> Index:
        """The positions of a head's selected entries."""
        positions: Index = head.positions.astype(np.int64, copy=False)
        if head.values.size == head.chosen:
            return positions
        return positions[self.top_k(head.values, head.chosen)[0]]

    kth_largest = staticmethod(kth_largest)

    def count_at_least(self, v: Vector, t: float) -> int:
        """See `reference.ops.count_at_least`."""
        return int(counts_at_least([v], np.array([[t]]))[0, 0])

    def scatter_add(self, target: Vector, index: Index, values: Vector) -> None:
        """See `reference.ops.scatter_add`."""
        _add(target, index, values)

    def scatter_subtract(self, target: Vector, index: Index, values: Vector) -> None:
        """See `reference.ops.scatter_subtract`."""
        _add(target, index, values, subtracted=True)

    def scale(self, v: Vector, factor: float) -> None:
        """See `reference.ops.scale`."""
        device.launch_over(v.size, "scale", [v, v.size, _bits(factor)])

    def sgd_update(
        self,
        weights: Vector,
        momentum: Vector,
        update: Vector,
        lr: float,
        mu: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        """See `reference.ops.sgd_update`: in one launch."""
        factors = [_bits(lr), _bits(mu), _bits(weight_decay), int(nesterov)]
        device.launch_over(weights.size, "sgd", [weights, momentum, update, weights.size, *factors])

    def l2_norm(self, v: Vector) -> float:
        """See `reference.ops.l2_norm`; summed in another order, so the last bits may differ."""
        return float(self.l2_norms(v, np.array([0, v.size]))[0])

    def l2_norms(self, v: Vector, offsets: Index) -> NDArray[np.float64]:
        """See `reference.ops.l2_norms`: in one launch, and always in the same order.

        That is not the reference's order, so the last bits may differ.
        """
        chunks = chunks_of(bounds_of(offsets))
        sums = device.current().xp.empty(chunks.layer.size, dtype=np.float64)
        device.current().launch("sum_of_squares", chunks.layer.size, [v, chunks.table, sums])
        return np.sqrt(
            np.bincount(chunks.layer, weights=device.to_host(sums), minlength=chunks.layers)
        )

    # The device ---------------------------------------------------------------------------------

    def from_host(self, array: NDArray[Any]) -> NDArray[Any]:
        """See `gpu.cupy.device.from_host`."""
        return device.from_host(array)

    def to_host(self, array: Any) -> NDArray[Any]:
        """See `gpu.cupy.device.to_host`."""
        return device.to_host(array)

    def from_dlpack(self, array: Any) -> NDArray[Any]:
        """See `gpu.base.Ops.from_dlpack`."""
        shared: NDArray[Any] = device.current().xp.from_dlpack(array)
        return shared

    def in_stream(self, stream: int) -> AbstractContextManager[Any]:
        """See `gpu.base.Ops.in_stream`; for this thread alone."""
        return device.current().in_stream(stream)

    def set_device(self, rank_on_node: int) -> None:
        """The ranks of a machine take its GPUs in turn."""
        device.current().choose(rank_on_node)

    def wait(self) -> None:
        """Return when everything launched so far is done."""
        device.current().wait()

    def describe(self) -> dict[str, str]:
        """The GPU, its driver and its libraries."""
        return device.current().describe()

    def library(self) -> str:
        """CuPy's version."""
        return str(importlib.import_module("cupy").__version__)


def _add(target: Vector, index: Index | None, values: Vector, subtracted: bool = False) -> None:
    """target += values, or −=; at these places, if there is an index."""
    moved = device.from_host(values.astype(np.float32, copy=False))
    places: Any = 0 if index is None else device.from_host(index.astype(np.int64, copy=False))
    if moved.size != (target.size if index is None else index.size):
        raise ValueError(f"{moved.size} values do not fit the places that they are added to")
    device.launch_over(moved.size, "add_at", [target, places, moved, moved.size, int(subtracted)])


def _bits(factor: float) -> int:
    """A float32 as the kernels take it."""
    return int(np.float32(factor).view(np.uint32))
