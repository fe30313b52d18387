"""`--on-nan skip`: a step in which any rank meets NaN or infinity is left out by all ranks, as if it had never been.

A rank that meets them sends zeros in place of that gradient, as the others expect a message, and tells them in an allgather of a
byte. That is the price: no weight moves before this byte has come from every rank, behind the last message; each gradient is
looked at once more; and the method's state, the residual mostly, is copied in every step, for which DLS waits for the other
ranks' next k.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.backends import Backend
from dls.comm import Comm, Pending
from dls.sparsifiers import Sparsifier
from dls.tasks.models import Model


class Skipping:
    """What one rank keeps aside from before a step, and whether it has met NaN or infinity in it."""

    def __init__(self, model: Model, sparsifier: Sparsifier, backend: Backend, comm: Comm) -> None:
        self._model, self._sparsifier, self._ops, self._comm = model, sparsifier, backend.ops, comm
        self._statistics = model.statistics.copy()
        self._state: dict[str, NDArray[Any]] = {}
        self._met = False
        self._words: tuple[Pending, NDArray[np.bool_]]

    def begin(self) -> None:
        """Before the forward pass, which moves batch norm's statistics."""
        self._met = False
        self._statistics[...] = self._model.statistics

    def keep(self) -> None:
        """Before the method begins its step."""
        self._state = {name: array.copy() for name, array in self._sparsifier.state().items()}

    def note(self, met: bool) -> None:
        """This rank has met NaN or infinity, or not."""
        self._met |= met

    def clear(self, place: slice) -> None:
        """Put zeros in place of a gradient that is not finite."""
        gradient = self._model.gradients[place]
        if not self._ops.all_finite(gradient):
            self.note(True)
            gradient[...] = 0

    def tell(self) -> None:
        """Give the other ranks this rank's word, behind its last message."""
        self._words = self._comm.allgather(np.array(self._met), "the other ranks' word on NaN and infinity")

    def hear(self) -> list[int]:
        """The ranks that met NaN or infinity."""
        pending, met = self._words
        pending.wait()
        return [int(rank) for rank in np.flatnonzero(met)]

    def undo(self) -> None:
        """Go back to before the step. Every rank calls it."""
        self._model.statistics[...] = self._statistics
        self._sparsifier.restore(self._state)
