"""What a rank keeps of its gradients from one step to the next, and what a step makes of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.backends import Ops
from reference.collectives import Entries, Exchanged
from reference.ops import Vector

State = dict[str, NDArray[Any]]


class Memory(ABC):
    """v (n): the values among which a method chooses, from a bucket's selection to the end of the
    step.
    """

    v: Vector

    @abstractmethod
    def pair(self, span: slice, gradient: Vector) -> tuple[Vector, Vector]:
        """Two vectors whose sum is v there, the first of which is v itself once the second has been
        added to it.
        """

    @abstractmethod
    def release(self, place: slice, exchanged: Exchanged) -> None:
        """The step is over: what was taken of v there leaves it, what is returned comes back."""

    def settle(self, span: slice, mean: Vector) -> None:
        """Make the update, in place, of the mean of what the ranks sent; the same on all ranks."""
        return

    @abstractmethod
    def state(self) -> State:
        """What a resumed run needs, on the host; between two steps."""

    @abstractmethod
    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Go on from what `state` gave."""


class ErrorFeedback(Memory):
    """The residual r (n): v = r + g, and what is not sent stays.

    In memory v is the residual itself.
    """

    def __init__(self, n: int, ops: Ops) -> None:
        self._ops = ops
        self.v: Vector = ops.zeros(n)

    def pair(self, span: slice, gradient: Vector) -> tuple[Vector, Vector]:
        """r and g."""
        return self.v[span], gradient

    def release(self, place: slice, exchanged: Exchanged) -> None:
        """r = v − taken + returned."""
        residual = self.v[place]
        for entries in exchanged.taken:
            self._subtract(residual, entries)
        for entries in exchanged.returned:
            add(residual, entries, self._ops)

    def _subtract(self, residual: Vector, entries: Entries) -> None:
        if entries.index is None:
            residual -= entries.values
        else:
            self._ops.scatter_subtract(residual, entries.index, entries.values)

    def state(self) -> State:
        """The residual."""
        return {"residual": self._ops.to_host(self.v)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take over the residual."""
        self.v[...] = self._ops.from_host(np.asarray(state["residual"]))


def add(target: Vector, entries: Entries, ops: Ops) -> None:
    """target += entries, in place."""
    if entries.index is None:
        ops.accumulate(target, entries.values)
    else:
        ops.scatter_add(target, entries.index, entries.values)
