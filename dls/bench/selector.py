"""One backend's selection of a training step: what `dls.bench select` and `adjust` measure."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.backends import Backend
from dls.bench.timing import TimedStep
from dls.bench.workload import Workload
from dls.exchange.methods.dls import with_rest
from reference import methods
from reference.adjustment import Counts, Thresholds
from reference.ops import Head, Selection, Vector


@dataclass
class Selector:
    """A rank's layer-wise selection by one backend: accumulate, choose, encode, clear.

    hints: whether the last thresholds are given to the search for the next ones. reserve: the share
    of DLS's budget that `bring` chooses; 0: Layer-wise Top-k.
    """

    backend: Backend
    work: Workload
    hints: bool = True
    reserve: float = 0.0
    residual: Vector = field(init=False)
    thresholds: Thresholds = field(init=False)
    k: Counts = field(init=False)
    sent: Counts = field(init=False)
    heads: list[Head] = field(init=False)

    def __post_init__(self) -> None:
        self.residual = self.backend.ops.zeros(self.work.n)
        self.thresholds = np.zeros(len(self.work.sizes))
        self.k = self.work.k()

    def choose(self, gradient: Vector) -> Selection:
        """Accumulate, choose and encode; the residual holds v afterwards.

        Returns what was chosen of all layers together.
        """
        ops, offsets = self.backend.ops, self.work.offsets
        hints = self.thresholds if self.hints else np.zeros_like(self.thresholds)
        self.sent = methods.own_k(self.k, self.reserve)
        chosen = ops.select_layers(self.residual, gradient, offsets, self.sent, hints, self.k)
        index, values, self.thresholds, self.heads = chosen
        self.backend.wire.encode(index, values, self.residual.size)
        return index, values

    def bring(self) -> Selection:
        """Choose the reserve from what `choose` has left, whatever its layer, and encode it."""
        ops, offsets = self.backend.ops, self.work.offsets
        room = int(self.k.sum() - self.sent.sum())
        index, values = ops.top_k_of_rest(self.residual, offsets, self.heads, room)
        on_host = ops.to_host(index), ops.to_host(values)
        self.sent, self.thresholds = with_rest(self.sent, self.thresholds, offsets, *on_host)
        self.backend.wire.encode(index, values, self.residual.size)
        return index, values

    def clear(self, chosen: Selection) -> None:
        """Subtract what was sent from the residual."""
        self.backend.ops.scatter_subtract(self.residual, *chosen)

    def step(self, gradient: Vector) -> None:
        """One training step's selection."""
        self.clear(self.choose(gradient))

    def adjust(self) -> Counts:
        """DLS(1)'s k for the next step (L); it is called between `bring` and `clear`."""
        v = [self.residual[start:stop] for start, stop in pairwise(self.work.offsets)]
        layers = zip(self.thresholds, self.sent, self.work.sizes, strict=True)
        inner = [float(t) for t, k, n in layers if 0 < k < n]
        t = self.backend.adjustment.complete_thresholds(v, self.sent, inner)
        k: Counts = self.backend.adjustment.adjust(v, self.sent, t, 1, self.heads)
        return k

    def wait(self) -> None:
        """Return when the residual is computed."""
        wait_for(self.backend, self.residual)

    def timed(self) -> TimedStep:
        """This selection as a contender; its gradients lie where the backend computes."""
        return TimedStep(self.step, self.backend.ops.from_host, self.wait)

    def on(self, other: Backend) -> Selector:
        """The same state for another backend."""
        twin = Selector(other, self.work)
        twin.thresholds, twin.k, twin.sent = self.thresholds, self.k, self.sent
        twin.residual = self._moved(self.residual, other)
        twin.heads = [self._moved_head(head, other) for head in self.heads]
        return twin

    def _moved_head(self, head: Head, other: Backend) -> Head:
        positions, values = self._moved(head.positions, other), self._moved(head.values, other)
        return head._replace(positions=positions, values=values)

    def _moved(self, array: NDArray[Any], other: Backend) -> NDArray[Any]:
        moved: NDArray[Any] = other.ops.from_host(self.backend.ops.to_host(array))
        return moved


def wait_for(backend: Backend, array: Vector) -> None:
    """Return when the array (n > 0) is computed.

    A device hands out a value only after all that was asked of it before.
    """
    backend.ops.to_host(array[:1])
