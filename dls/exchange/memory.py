"""Memories: what a rank keeps of its gradients from one step to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.backends import Ops
from reference.collectives import Entries, Exchanged
from reference.ops import Gradient, Vector

State = dict[str, NDArray[Any]]
"""What a resumed run needs of one rank, by name."""


class Memory(ABC):
    """v (n): the accumulated values among which a method selects.

    It is valid for a bucket from its selection to the end of the step.
    """

    v: Vector

    takes_pieces: bool = False
    """Whether `pair` also takes a gradient as the vectors that make it up, and passes them on."""

    @abstractmethod
    def pair(self, span: slice, gradient: Gradient) -> tuple[Vector, Gradient]:
        """Two vectors whose sum is v in that span.

        The first one becomes v, in place, when the second is added to it.
        """

    @abstractmethod
    def release(self, span: slice, exchanged: Exchanged) -> None:
        """At the end of the step: remove from v what was taken there, and add what is returned."""

    def settle(self, span: slice, mean: Vector) -> None:
        """Turn the mean of what the ranks sent into the update, in place; equal on all ranks."""
        return

    @abstractmethod
    def state(self) -> State:
        """What a resumed run needs, as host arrays; asked for between two steps."""

    @abstractmethod
    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `state` returned."""


class ErrorFeedback(Memory):
    """The residual r (n): v = r + g, and what is not sent stays in r.

    r and v share one array.
    """

    takes_pieces = True

    def __init__(self, n: int, ops: Ops) -> None:
        self._ops = ops
        self.v: Vector = ops.zeros(n)

    def pair(self, span: slice, gradient: Gradient) -> tuple[Vector, Gradient]:
        """r and g."""
        return self.v[span], gradient

    def release(self, span: slice, exchanged: Exchanged) -> None:
        """r = v − taken + returned."""
        residual = self.v[span]
        for entries in exchanged.taken:
            self._subtract(residual, entries)
        for entries in exchanged.returned:
            add(residual, entries, self._ops)

    def _subtract(self, residual: Vector, entries: Entries) -> None:
        if entries.index is None:
            residual -= self._ops.from_host(entries.values)
        else:
            self._ops.scatter_subtract(residual, entries.index, entries.values)

    def state(self) -> State:
        """The residual."""
        return {"residual": self._ops.to_host(self.v)}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Set the residual."""
        self.v[...] = self._ops.from_host(np.asarray(state["residual"]))


def add(target: Vector, entries: Entries, ops: Ops) -> None:
    """target += entries, in place."""
    if entries.index is None:
        ops.accumulate(target, entries.values)
    else:
        ops.scatter_add(target, entries.index, entries.values)
