"""Dense SGD, the baseline: the whole gradient, summed by the MPI library's own Allreduce. It leaves no residual."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from dls import traffic
from dls.sparsifiers._base import Message, Part, Setup, Sparsifier, span
from reference.adjustment import Counts, Thresholds
from reference.ops import Vector


class Method(Sparsifier):
    """Sends everything. Neighbouring parts are one piece of the flat buffer, so a message is one Allreduce."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._total = np.empty(sum(setup.sizes), dtype=np.float32)

    @property
    def density(self) -> float:
        """Everything, whatever the setting."""
        return 1.0

    def select(self, parts: Sequence[Part]) -> None:
        """Nothing to choose; only NaN and infinity are looked for."""
        self.guard(parts, self.setup.gradients)

    def send(self, parts: Sequence[Part]) -> Message:
        """Sum over the ranks; the order of the sum is the library's."""
        place = span(parts)
        own, total = self.ops.to_host(self.setup.gradients[place]), self._total[place]
        return Message(parts, self.comm.allreduce(own, total, self.words(parts)), total, place)

    def receive(self, message: Message, update: Vector) -> None:
        """u = float32(1/P) · Σ."""
        mean = update[message.complete]
        mean[...] = self.ops.from_host(message.received)
        self.ops.scale(mean, 1 / self.comm.size)

    def bytes_received(self, groups: Iterable[Sequence[Part]]) -> int:
        """What a ring Allreduce of each group brings."""
        return sum(traffic.ring_bytes(group[-1].stop - group[0].start, self.comm.size) for group in groups)

    def layer_k(self) -> Counts:
        """All of every layer."""
        return np.array(self.setup.sizes, dtype=np.int64)

    def layer_thresholds(self) -> Thresholds:
        """0: everything is sent."""
        return np.zeros(len(self.setup.layers))
