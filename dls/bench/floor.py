"""The floor of a selection: the least time that the memory allows.

On a CPU it is one `residual += gradient`. On a GPU it is a copy, on the device, of 6n bytes for n
values: it reads 6n and writes 6n, together the 12n that reading residual and gradient and writing
the residual takes.
"""

from __future__ import annotations

from dls.backends import Backend
from dls.bench.selector import wait_for
from dls.bench.timing import TimedStep
from reference.ops import Vector

COPIES = 20
"""Copies in one turn on a GPU, as a single one takes less time than waiting for it."""


def floor(backend: Backend, n: int) -> TimedStep:
    """The floor for gradients of n values, where the backend computes."""
    if backend.on_host:
        total = backend.ops.zeros(n)
        return TimedStep(lambda gradient: backend.ops.accumulate(total, gradient))
    source, target = (backend.ops.zeros(-(-3 * n // 2)) for _ in range(2))

    def copy(_: Vector) -> None:
        for _turn in range(COPIES):
            target[...] = source

    return TimedStep(copy, wait=lambda: wait_for(backend, target), steps=COPIES)
