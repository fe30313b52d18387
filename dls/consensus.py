"""What the ranks agree on beside the gradient: to stop, all after the same step.

At the beginning of every step each rank gives its word, whether a signal has asked it to stop, to a non-blocking allgather, which
travels while the step computes; at the end of the step it reads the words of all. All ranks read the same words after the same
step, and so decide alike. Nobody waits for it: to end a step a rank needs the other ranks' gradients, and their words left before
those. The run ends with the step in which the signal came or, if that had begun already, with the one after it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dls.comm import Comm, Pending
from dls.signals import StopRequest


class Consensus:
    """One rank's voice, and its ears. Every rank calls `speak` before each step and `hear` after it."""

    def __init__(self, comm: Comm, request: StopRequest) -> None:
        self._comm, self._request = comm, request
        self._words: tuple[Pending, NDArray[np.bool_]]

    def speak(self) -> None:
        """Give this rank's word."""
        self._words = self._comm.allgather(np.array(self._request.made), "the other ranks' word whether to stop")

    def hear(self) -> bool:
        """Whether all ranks stop now, because one of them was asked to."""
        pending, stop = self._words
        pending.wait()
        return bool(stop.any())
