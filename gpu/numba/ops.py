"""`reference.ops` for CPU threads, compiled by numba: the same names, signatures and bits.

The selection is in `gpu.numba.selection`. Threads are numba's, used where there is enough work for
each; their number changes no result. For a vector that is not contiguous or not float32 the
reference is called.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numba
import numpy as np
from numba import prange
from numpy.typing import NDArray

from gpu import base
from gpu.numba import cache
from gpu.numba.cache import njit
from gpu.numba.magnitudes import plain, readable, threads_for
from gpu.numba.rest import choose_rest
from gpu.numba.search import kth_largest, kth_magnitude
from gpu.numba.selection import choose_layers
from gpu.numba.sweep import INFINITE
from reference import ops as reference
from reference.ops import Gradient, Head, Index, Selection, Vector, float32_ceiling

_NO_POSITIONS = np.empty(0, dtype=np.uint32)
"""The positions of a head that nobody will ask for."""


class Ops(base.Ops):
    """The primitives that numba speeds up; for allocation, and work on k values, numpy suffices."""

    def select_layers(
        self,
        residual: Vector,
        gradient: Gradient,
        offsets: Index,
        k: Index,
        hints: NDArray[np.float64],
        expected: Index | None = None,
    ) -> tuple[Index, Vector, NDArray[np.float64], list[Head]]:
        """See `reference.ops.select_layers`.

        A wrong k is refused before any layer is changed; NaN and infinity afterwards.
        """
        pieces = [gradient] if isinstance(gradient, np.ndarray) else gradient
        fits = sum(piece.size for piece in pieces) == residual.size
        if not (fits and plain(residual) and all(map(readable, pieces))):
            return reference.select_layers(residual, gradient, offsets, k, hints)
        offsets = np.ascontiguousarray(offsets, dtype=np.int64)
        k = np.ascontiguousarray(k, dtype=np.int64)
        hints = np.ascontiguousarray(hints, dtype=np.float64)
        if not offsets.size - 1 == k.size == hints.size:
            raise ValueError(
                f"{offsets.size - 1} layers need as many k and hints, not {k.size} and {hints.size}"
            )
        index, values, thresholds, heads = choose_layers(
            residual, pieces, offsets, k, hints, expected
        )
        if expected is None:  # nobody will ask for the positions of a head's values
            heads = [head._replace(positions=_NO_POSITIONS) for head in heads]
        return index, values, thresholds, heads

    def select(
        self, residual: Vector, gradient: Vector, k: int, hint: float
    ) -> tuple[Index, Vector, float]:
        """See `reference.ops.select`."""
        index, values, thresholds, _ = self.select_layers(
            residual,
            gradient,
            np.array([0, residual.size]),
            np.array([k]),
            np.array([hint], dtype=np.float64),
        )
        return index, values, float(thresholds[0])

    def top_k(self, v: Vector, k: int) -> Selection:
        """See `reference.ops.top_k`."""
        if not plain(v):
            return reference.top_k(v, k)
        index, values, _, _ = choose_layers(
            v, (), np.array([0, v.size]), np.array([k]), np.zeros(1)
        )
        return index, values

    def top_k_of_rest(self, v: Vector, offsets: Index, heads: Sequence[Head], k: int) -> Selection:
        """See `reference.ops.top_k_of_rest`."""
        selection = None
        if k and plain(v, *(head.values for head in heads)):
            selection = choose_rest(v, offsets, heads, k)
            selection = selection or self._all_of_rest(v, offsets, heads, k)
        if selection is None:
            return reference.top_k_of_rest(v, offsets, heads, k)
        return selection

    def _all_of_rest(
        self, v: Vector, offsets: Index, heads: Sequence[Head], k: int
    ) -> Selection | None:
        """`top_k_of_rest` by a search in all of v, with zeros in place of what was selected before.

        None if a zero would be selected.
        """
        positions = [
            head.positions[self.top_k(head.values, head.chosen)[0]] + start
            for head, start in zip(heads, offsets, strict=False)
        ]
        taken = np.concatenate(positions)
        before = v[taken]
        v[taken] = 0
        try:
            index, values = self.top_k(v, k)
        finally:
            v[taken] = before
        return (index, values) if values.all() else None

    kth_largest = staticmethod(kth_largest)

    def all_finite(self, v: Vector) -> bool:
        """See `reference.ops.all_finite`."""
        if not plain(v):
            return reference.all_finite(v)
        return kth_magnitude(v, 1) < int(INFINITE) if v.size else True

    def count_at_least(self, v: Vector, t: float) -> int:
        """See `reference.ops.count_at_least`."""
        if not plain(v):
            return reference.count_at_least(v, t)
        return int(_count_floats(v, float32_ceiling(t)))

    def accumulate(self, residual: Vector, gradient: Vector) -> None:
        """See `reference.ops.accumulate`; one numpy thread is as fast as one of numba's."""
        threads = threads_for(residual.size)
        if threads == 1 or not plain(residual, gradient) or gradient.shape != residual.shape:
            reference.accumulate(residual, gradient)
        else:
            _accumulate_threads(residual, gradient, threads)

    def scale(self, v: Vector, factor: float) -> None:
        """See `reference.ops.scale`; one numpy thread is as fast as one of numba's."""
        threads = threads_for(v.size)
        if threads == 1 or not plain(v):
            reference.scale(v, factor)
        else:
            _scale_threads(v, np.float32(factor), threads)

    def scatter_add(self, target: Vector, index: Index, values: Vector) -> None:
        """See `reference.ops.scatter_add`; indices lie within target, unchecked."""
        if not _entries(target, index, values):
            reference.scatter_add(target, index, values)
        elif (threads := threads_for(index.size)) == 1:
            _scatter(target, index, values, np.float32(1))
        else:
            _scatter_threads(target, index, values, np.float32(1), threads)

    def scatter_subtract(self, target: Vector, index: Index, values: Vector) -> None:
        """See `reference.ops.scatter_subtract`; indices lie within target, unchecked."""
        if not _entries(target, index, values):
            reference.scatter_subtract(target, index, values)
        elif (threads := threads_for(index.size)) == 1:
            _scatter(target, index, values, np.float32(-1))
        else:
            _scatter_threads(target, index, values, np.float32(-1), threads)

    def l2_norm(self, v: Vector) -> float:
        """See `reference.ops.l2_norm`: the same sums in the same order, without a float64 copy."""
        return math.sqrt(_sum_of_squares(v)) if plain(v) and v.size else reference.l2_norm(v)

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
        """See `reference.ops.sgd_update`: one pass without temporary arrays."""
        if (
            not plain(weights, momentum, update)
            or not weights.shape == momentum.shape == update.shape
        ):
            reference.sgd_update(weights, momentum, update, lr, mu, weight_decay, nesterov)
            return
        factors = np.float32(lr), np.float32(mu), np.float32(weight_decay)
        threads = threads_for(weights.size)
        if threads == 1:
            _sgd(weights, momentum, update, *factors, nesterov)
        else:
            _sgd_threads(weights, momentum, update, *factors, nesterov, threads)

    # The device ---------------------------------------------------------------------------------

    def set_threads(self, count: int) -> None:
        """At most as many as numba started with: the machine's cores, or NUMBA_NUM_THREADS."""
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))

    def is_compiled(self) -> bool:
        """Whether a training step has been compiled here, see `gpu.numba.cache`."""
        return cache.is_compiled()

    def notes(self) -> tuple[str, ...]:
        """Why machine code cannot be kept, if that is so, see `gpu.numba.cache`."""
        return cache.notes()

    def library(self) -> str:
        """numba's version."""
        return str(numba.__version__)


def _entries(target: Vector, index: Index, values: Vector) -> bool:
    return (
        plain(target, values)
        and index.dtype == np.int64
        and index.flags.c_contiguous
        and index.size == values.size
    )


# Compiled -----------------------------------------------------------------------------------------


@njit(nogil=True)
def _count_floats(v, t):
    """How many |v| reach t: compared as floats, as t may be NaN, and NaN in v reaches nothing."""
    count = 0
    for i in range(v.size):
        count += abs(v[i]) >= t
    return count


@njit(nogil=True, parallel=True)
def _accumulate_threads(v, gradient, threads):
    for thread in prange(threads):
        first, stop = v.size * thread // threads, v.size * (thread + 1) // threads
        for i in range(first, stop):
            v[i] += gradient[i]


@njit(nogil=True, parallel=True)
def _scale_threads(v, factor, threads):
    for thread in prange(threads):
        first, stop = v.size * thread // threads, v.size * (thread + 1) // threads
        for i in range(first, stop):
            v[i] *= factor


@njit(nogil=True)
def _scatter(target, index, values, sign):
    """target[index] += sign·values; x + (−1)·y has the bits of x − y."""
    for i in range(index.size):
        target[index[i]] += sign * values[i]


@njit(nogil=True, parallel=True)
def _scatter_threads(target, index, values, sign, threads):
    for thread in prange(threads):
        mine = slice(index.size * thread // threads, index.size * (thread + 1) // threads)
        _scatter(target, index[mine], values[mine], sign)


@njit(nogil=True)
def _sum_of_squares(v):
    """numpy's pairwise summation: it halves down to 128 values, which eight sums add up.

    The first half's length is a multiple of 8.
    """
    n = v.size
    if n > 128:
        half = n // 2 - n // 2 % 8
        return _sum_of_squares(v[:half]) + _sum_of_squares(v[half:])
    sums = np.zeros(8)
    whole = n - n % 8 if n >= 8 else 0
    for i in range(0, whole, 8):
        for j in range(8):
            sums[j] += np.float64(v[i + j]) * np.float64(v[i + j])
    total = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + (
        (sums[4] + sums[5]) + (sums[6] + sums[7])
    )
    for i in range(whole, n):
        total += np.float64(v[i]) * np.float64(v[i])
    return total


@njit(nogil=True)
def _sgd(weights, momentum, update, lr, mu, weight_decay, nesterov):
    for i in range(weights.size):
        u = update[i] + weight_decay * weights[i]
        m = mu * momentum[i] + u
        update[i], momentum[i] = u, m
        weights[i] -= lr * (u + mu * m if nesterov else m)


@njit(nogil=True, parallel=True)
def _sgd_threads(weights, momentum, update, lr, mu, weight_decay, nesterov, threads):
    for thread in prange(threads):
        mine = slice(weights.size * thread // threads, weights.size * (thread + 1) // threads)
        _sgd(weights[mine], momentum[mine], update[mine], lr, mu, weight_decay, nesterov)
