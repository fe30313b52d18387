"""How long a step takes, on a CPU or on a device that computes while its caller goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from threadpoolctl import threadpool_limits

from dls.backends import Backend
from reference.ops import Vector


def _as_it_is(gradient: Vector) -> Any:
    return gradient


def _no_wait() -> None:
    return


@dataclass(frozen=True)
class TimedStep:
    """A contender: `step` on a gradient, timed until `wait` returns.

    put: what makes the gradient ready, which is not timed. steps: how many steps a call takes.
    """

    step: Callable[[Any], Any]
    put: Callable[[Vector], Any] = _as_it_is
    wait: Callable[[], Any] = _no_wait
    steps: int = 1

    def turn(self, gradient: Vector) -> float:
        """The seconds of one step on this gradient (n)."""
        ready = self.put(gradient)
        self.wait()
        start = time.perf_counter()
        self.step(ready)
        self.wait()
        return (time.perf_counter() - start) / self.steps


def set_threads(backend: Backend, threads: int) -> None:
    """Set the number of threads of the backend, and of the libraries beneath it."""
    threadpool_limits(threads)
    backend.ops.set_threads(threads)
