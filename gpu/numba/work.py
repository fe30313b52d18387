"""What the layers of `gpu.numba.nn` are built on: compiled functions, threads, scratch memory.

The number of threads is `numba.get_num_threads()`. They are Python threads that share calls of
compiled functions, each with single-threaded BLAS. Numba's own threads and those of BLAS wait for
work by spinning, and would keep each other off the cores.

No kernel assumes finite numbers: fast math is limited to contracting a product and a sum, and to
reordering sums, so that NaN and infinity are preserved.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from threadpoolctl import ThreadpoolController

from gpu.numba.cache import njit
from reference.nn import Array, Shape

compiled = njit(nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})
"""Decorates the functions of the layers."""


# Threads ------------------------------------------------------------------------------------------

_GRAIN = 1 << 16
"""Values that are worth waking a thread for."""


def _thread_count() -> int:
    """Return the number of threads to use."""
    count: int = numba.get_num_threads()
    return count


class _Team:
    """Threads that work on numbered parts together with the caller, and sleep in between."""

    def __init__(self) -> None:
        self._threads = 1
        self._helpers: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[int], None], parts: int) -> None:
        """Call work(0) ... work(parts - 1), each once, in any order, and wait for all.

        BLAS has one thread meanwhile.
        """
        threads = _thread_count()
        if min(threads, parts) == 1:
            for part in range(parts):
                work(part)
            return
        queue = itertools.count()  # taking the next number is atomic

        def share() -> None:
            while (part := next(queue)) < parts:
                work(part)

        with _blas.limit(limits=1):
            helpers = self._executor(threads)
            pending = [helpers.submit(share) for _ in range(min(threads, parts) - 1)]
            share()
            for helper in pending:
                if not helper.cancel():  # a helper that has not started has nothing to do
                    helper.result()

    def _executor(self, threads: int) -> ThreadPoolExecutor:
        """Return the helpers for a team of so many threads."""
        if self._helpers is None or self._threads != threads:
            self._helpers, self._threads = ThreadPoolExecutor(threads - 1, "layers"), threads
        return self._helpers


team = _Team()
"""The threads of the process."""
_blas = ThreadpoolController().select(user_api="blas")


def share_out(work: Callable[[slice], None], count: int, values: int) -> None:
    """Call work, on the team's threads, with slices of `count` rows, channels or values.

    values: the numbers to be processed in all, from which the number of threads follows.
    """
    parts = max(1, min(_thread_count(), count, values // _GRAIN))
    team.run(lambda part: work(slice(count * part // parts, count * (part + 1) // parts)), parts)


# Memory -------------------------------------------------------------------------------------------


class _Scratch(threading.local):
    """Memory kept between calls, to avoid page faults: a growing buffer for each use and dtype."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, np.dtype[Any]], Array] = {}

    def __call__(self, use: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Return an array with undefined values, valid until the next call with this `use`."""
        size = int(np.prod(shape))
        buffer = self._buffers.get((use, dtype))
        if buffer is None or buffer.size < size:
            buffer = self._buffers[use, dtype] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)


scratch = _Scratch()
"""The memory of the calling thread."""


def channels_first(x: Array) -> Array:
    """Return x [N, C, ...] as contiguous memory [C, N, ...]; a view if it is that already."""
    return np.ascontiguousarray(x.swapaxes(0, 1))


def flat(x: Array) -> Array:
    """Return the values of x in one row, images channels-first; a view if memory allows it."""
    return (channels_first(x) if x.ndim == 4 else np.ascontiguousarray(x)).reshape(-1)


def unflat(values: Array, shape: Shape) -> Array:
    """Undo `flat`: return a view of `shape`."""
    if len(shape) != 4:
        return values.reshape(shape)
    count, channels, height, width = shape
    return values.reshape(channels, count, height, width).swapaxes(0, 1)
