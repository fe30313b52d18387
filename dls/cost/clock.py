"""Collectives with an alpha-beta clock: how long the rounds of P ranks take.

A message of m bytes takes alpha + beta * m seconds (Hockney, 1994). It starts when both of its
ranks are ready, and occupies both until it is complete; a rank can send one message and receive one
at the same time. Every rank has a clock of its own, and computing takes no time.

A round consists of the messages that `dls.comm.world` requests from the MPI library; where the
library has a choice, a ring is assumed. Answers are those of `reference.collectives.deliver`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from reference.collectives import COUNT, Gather, Reduce, Round, Sum, Swap, blocks, deliver, mail

WORD = 4
"""Bytes of a float32."""
Sizes = NDArray[np.int64]
"""Bytes of messages."""
Ranks = NDArray[np.int64]
"""Numbers of ranks."""


class Elapsed(NamedTuple):
    """The cost of a run.

    seconds: until the last rank ends; rounds: of each rank; received: bytes of the rank that
    receives most; results: what the generators returned.
    """

    seconds: float
    rounds: int
    received: int
    results: list[Any]


def clock(ranks: Sequence[Generator[Round, Any, Any]], alpha: float, beta: float) -> Elapsed:
    """Run P ranks' generators; alpha: seconds a message, beta: seconds a byte. LockStepError."""
    clocks = _Clocks(len(ranks), alpha, beta)
    results = mail(ranks, clocks.deliver)
    return Elapsed(float(clocks.now.max()), clocks.rounds, int(clocks.received.max()), results)


class _Clocks:
    """now (P): each rank's time in seconds; received (P): bytes that it has received."""

    def __init__(self, ranks: int, alpha: float, beta: float) -> None:
        self._alpha, self._beta, self._ranks = alpha, beta, np.arange(ranks)
        self.now = np.zeros(ranks)
        self.received = np.zeros(ranks, dtype=np.int64)
        self.rounds = 0

    def deliver(self, asked: Sequence[Round]) -> list[Any]:
        """Advance the clocks by one round and return its answers."""
        answers = deliver(asked)
        self.rounds += 1
        first = asked[0]
        if isinstance(first, Gather):
            self._gather(asked)  # type: ignore[arg-type]  # all are of one kind
        elif isinstance(first, Swap):
            self._swap(asked)  # type: ignore[arg-type]
        else:
            self._add(first)
        return answers

    def _gather(self, asked: Sequence[Gather]) -> None:
        """A ring; if the sizes are not known, a ring of the sizes comes first."""
        sizes = np.array([each.payload.size for each in asked])
        if asked[0].sizes is None:
            self._ring(np.full(sizes.size, COUNT), start=0)
        self._ring(sizes, start=0)

    def _swap(self, asked: Sequence[Swap]) -> None:
        """One message for each rank; if its size is not known, one with the size comes first."""
        sending = [rank for rank, each in enumerate(asked) if each.to is not None]
        to = np.array([asked[rank].to for rank in sending], dtype=np.int64)
        sizes = np.array([asked[rank].payload.size for rank in sending], dtype=np.int64)
        source = np.array(sending, dtype=np.int64)
        if any(asked[rank].size is None for rank in sending):
            self._send(source, to, np.full(sizes.size, COUNT))
        self._send(source, to, sizes)

    def _add(self, asked: Sum | Reduce) -> None:
        """Each block is summed, on one rank or along a ring; then the sums go round in a ring."""
        sizes = WORD * np.diff(blocks(asked.values.size, self._ranks.size))
        if isinstance(asked, Sum):
            self._ring(sizes, start=0)
            self._ring(sizes, start=1)
            return
        for step in self._ranks[1:]:
            to = (self._ranks + step) % self._ranks.size
            self._send(self._ranks, to, sizes[to])
        self._ring(sizes, start=0)

    def _ring(self, sizes: Sizes, start: int) -> None:
        """P - 1 times each rank passes a block to the next one; first block number rank + start."""
        to = np.roll(self._ranks, -1)
        for step in self._ranks[1:] - 1:
            self._send(self._ranks, to, np.roll(sizes, step - start))

    def _send(self, source: Ranks, to: Ranks, sizes: Sizes) -> None:
        """Messages that are sent at the same time, at most one from and one to each rank."""
        ends = np.maximum(self.now[source], self.now[to]) + self._alpha + self._beta * sizes
        np.maximum.at(self.now, source, ends)
        np.maximum.at(self.now, to, ends)
        np.add.at(self.received, to, sizes)
