"""How the layers of `gpu.numba.nn` get their work done: compiled functions, threads, scratch
memory.

Threads: as many as `numba.get_num_threads()` says. They are Python threads that share out calls of
compiled functions, each with a BLAS of one thread. Numba's own threads and those of BLAS wait for
work by spinning, and would take turns at keeping each other off the cores.

No kernel assumes finite numbers: fast math may join a product and a sum and reorder sums, and no
more, so NaN and infinity come through.
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


# Threads ------------------------------------------------------------------------------------------

_GRAIN = 1 << 16  # values that are worth the waking of a thread


def _thread_count() -> int:
    """Return how many threads the caller wants at work."""
    count: int = numba.get_num_threads()
    return count


class _Team:
    """Threads that work through numbered parts beside the caller. They sleep in between."""

    def __init__(self) -> None:
        self._threads = 1
        self._helpers: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[int], None], parts: int) -> None:
        """Call work(0) ... work(parts - 1), each once, in any order, with BLAS on one thread;
        return when all are done.
        """
        threads = _thread_count()
        if min(threads, parts) == 1:
            for part in range(parts):
                work(part)
            return
        queue = itertools.count()  # one step of it cannot be interrupted

        def share() -> None:
            while (part := next(queue)) < parts:
                work(part)

        with _blas.limit(limits=1):
            helpers = self._executor(threads)
            pending = [helpers.submit(share) for _ in range(min(threads, parts) - 1)]
            share()
            for helper in pending:
                if not helper.cancel():  # one that came too late has nothing to do
                    helper.result()

    def _executor(self, threads: int) -> ThreadPoolExecutor:
        """Return the helpers of a team of so many threads."""
        if self._helpers is None or self._threads != threads:
            self._helpers, self._threads = ThreadPoolExecutor(threads - 1, "layers"), threads
        return self._helpers


team = _Team()
_blas = ThreadpoolController().select(user_api="blas")


def share_out(work: Callable[[slice], None], count: int, values: int) -> None:
    """Call work with slices of `count` rows, or channels, or values, `values` numbers of work in
    all, on the team's threads.
    """
    parts = max(1, min(_thread_count(), count, values // _GRAIN))
    team.run(lambda part: work(slice(count * part // parts, count * (part + 1) // parts)), parts)


# Memory -------------------------------------------------------------------------------------------


class _Scratch(threading.local):
    """Memory that outlives a call, so that a step does not fetch fresh pages: one growing buffer
    per use and dtype.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, np.dtype[Any]], Array] = {}

    def __call__(self, use: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Return an array whose values are left over from earlier calls; the next call with this
        `use` takes it back.
        """
        size = int(np.prod(shape))
        buffer = self._buffers.get((use, dtype))
        if buffer is None or buffer.size < size:
            buffer = self._buffers[use, dtype] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)


scratch = _Scratch()


def channels_first(x: Array) -> Array:
    """Return x [N, C, ...] as contiguous memory [C, N, ...]; a view where it is that already."""
    return np.ascontiguousarray(x.swapaxes(0, 1))


def flat(x: Array) -> Array:
    """Return the values of x in one row, images channels-first; a view where memory allows it."""
    return (channels_first(x) if x.ndim == 4 else np.ascontiguousarray(x)).reshape(-1)


def unflat(values: Array, shape: Shape) -> Array:
    """Undo `flat`: return a view of `shape`."""
    if len(shape) != 4:
        return values.reshape(shape)
    count, channels, height, width = shape
    return values.reshape(channels, count, height, width).swapaxes(0, 1)
