"""Collectives under a clock: how long P ranks' rounds take, and what they bring.

A message takes as long as the network says (`dls.cost.network`). It starts when both of its ranks
are there, and holds both until it is through; a rank sends one and receives one at the same time.
Every rank has a clock of its own, and computing takes no time.

What each kind of round consists of is what `dls.comm.world` asks of the library, with a ring where
the library chooses. Answers are those of `reference.collectives.deliver`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dls import traffic
from dls.cost.network import Network, Range
from reference.collectives import COUNT, Gather, Round, Swap, blocks, deliver, mail

WORD = 4
"""Bytes of a float32."""
NOBODY = -1
"""The partner of a rank that sends nothing."""
EXACT = 64
"""Ranks up to which each message of a ring is followed on its own."""
Sizes = NDArray[np.int64]
Ranks = NDArray[np.int64]
Times = NDArray[np.float64]


class Elapsed(NamedTuple):
    """What a run has taken.

    seconds: of the rank that ends last; rounds: of each rank; received: bytes of the rank that
    receives most; results: what the generators returned.
    """

    seconds: float
    rounds: int
    received: int
    results: list[Any]


class Pattern(NamedTuple):
    """A round of P ranks as the network sees it.

    kind: of `reference.collectives.ROUNDS`. sizes (P): bytes that each rank gives away; of a sum or
    a reduce those of all its values. to (P): of a swap, the rank it goes to, or NOBODY. known:
    whether all ranks know the sizes; else these travel first.
    """

    kind: str
    sizes: Sizes
    to: Ranks | None = None
    known: bool = True

    @classmethod
    def of(cls, asked: Sequence[Round]) -> Pattern:
        """Of what P ranks ask for, all of one kind."""
        first = asked[0]
        kind = type(first).__name__.lower()
        if isinstance(first, Gather):
            sizes = [each.payload.size for each in asked]  # type: ignore[union-attr]  # one kind
            return cls(kind, np.array(sizes), None, first.sizes is not None)
        if isinstance(first, Swap):
            return cls._of_swaps(kind, asked)  # type: ignore[arg-type]  # all are of one kind
        return cls(kind, np.full(len(asked), WORD * first.values.size))

    @classmethod
    def _of_swaps(cls, kind: str, asked: Sequence[Swap]) -> Pattern:
        sending = [each.to is not None for each in asked]
        to = np.array([NOBODY if each.to is None else each.to for each in asked])
        sizes = np.where(sending, [each.payload.size for each in asked], 0)
        unknown = any(
            each.size is None for each, sends in zip(asked, sending, strict=True) if sends
        )
        return cls(kind, sizes.astype(np.int64), to.astype(np.int64), not unknown)

    @property
    def ranks(self) -> int:
        """P."""
        return int(self.sizes.size)

    @property
    def _head(self) -> int:
        """Bytes of a message's size, where that travels as well."""
        return 0 if self.known else COUNT

    def sent(self) -> Sizes:
        """Bytes (P) that each rank gives to the network, counted once however many receive them, as
        a trace has them.
        """
        if self.kind == "swap":
            assert self.to is not None
            heads = np.where(self.to != NOBODY, self._head, 0)
        else:
            heads = np.full_like(self.sizes, self._head if self.kind == "gather" else 0)
        return self.sizes + heads

    def received(self) -> Sizes:
        """Bytes (P) that the others' messages bring each rank, as a trace has them."""
        ranks, sizes = self.ranks, self.sizes
        if self.kind == "gather":
            others: Sizes = sizes.sum() - sizes
            return others + self._head * (ranks - 1)
        if self.kind == "swap":
            return self._arriving(self.sent())
        values = int(sizes[0]) // WORD
        if self.kind == "sum":
            return np.full(ranks, traffic.ring_bytes(values, ranks))
        own = np.diff(blocks(values, ranks))
        brought: Sizes = WORD * own * (ranks - 1) + WORD * (values - own)
        return brought

    def _arriving(self, sizes: Sizes) -> Sizes:
        """What swaps of these sizes bring each rank (P)."""
        assert self.to is not None
        arriving = np.zeros_like(sizes)
        sending = self.to != NOBODY
        arriving[self.to[sending]] = sizes[sending]
        return arriving


def clock(ranks: Sequence[Generator[Round, Any, Any]], alpha: float, beta: float) -> Elapsed:
    """Run P ranks' generators; alpha: seconds a message, beta: seconds a byte. LockStepError."""
    clocks = Clocks(len(ranks), Network((Range(0, alpha, beta),)))

    def carry(asked: Sequence[Round]) -> list[Any]:
        answers = deliver(asked)
        clocks.take(Pattern.of(asked))
        return answers

    results = mail(ranks, carry)
    return Elapsed(float(clocks.now.max()), clocks.rounds, int(clocks.received.max()), results)


class Clocks:
    """Every rank's time, as rounds go by one after the other.

    now (P): each rank's time, in seconds; received (P): bytes that it has been sent; busy (P):
    seconds for which its link was occupied; steps: messages that followed each other.
    """

    def __init__(self, ranks: int, network: Network, start: Times | None = None) -> None:
        self._network, self._ranks = network, np.arange(ranks)
        self.now: Times = np.zeros(ranks) if start is None else start.copy()
        self.received = np.zeros(ranks, dtype=np.int64)
        self.busy = np.zeros(ranks)
        self.rounds = self.steps = 0

    def take(self, pattern: Pattern) -> None:
        """One round."""
        self.rounds += 1
        if pattern.kind == "gather":
            self._gather(pattern)
        elif pattern.kind == "swap":
            self._swap(pattern)
        else:
            self._add(pattern)

    def _gather(self, pattern: Pattern) -> None:
        """A ring, of the sizes first where they are not known."""
        if not pattern.known:
            self._ring(np.full(self._ranks.size, COUNT), start=0)
        self._ring(pattern.sizes, start=0)

    def _swap(self, pattern: Pattern) -> None:
        """One message a rank, behind its size where that is not known."""
        assert pattern.to is not None
        source = np.flatnonzero(pattern.to != NOBODY)
        to, sizes = pattern.to[source], pattern.sizes[source]
        if not pattern.known:
            self._send(source, to, np.full(sizes.size, COUNT))
        self._send(source, to, sizes)

    def _add(self, pattern: Pattern) -> None:
        """Each block is summed, on one rank or on its way round, then told in a ring."""
        sizes = WORD * np.diff(blocks(int(pattern.sizes[0]) // WORD, self._ranks.size))
        if pattern.kind == "sum" and self._network.doubling:
            self._halve_and_double(sizes)
            return
        if pattern.kind == "sum":
            self._ring(sizes, start=0)
            self._ring(sizes, start=1)
            return
        if self._ranks.size > EXACT:
            self._pass_round(sizes)
        else:
            for step in self._ranks[1:]:
                to = (self._ranks + step) % self._ranks.size
                self._send(self._ranks, to, sizes[to])
        self._ring(sizes, start=0)

    def _ring(self, sizes: Sizes, start: int) -> None:
        """P - 1 times each rank passes a block on to the next one, first the block rank + start."""
        if 0 < self._network.doubling >= sizes.sum():
            self._double(sizes)
        elif self._ranks.size > EXACT or (sizes == sizes[0]).all():
            self._pass_round(sizes)
        else:
            to = np.roll(self._ranks, -1)
            for step in self._ranks[1:] - 1:
                self._send(self._ranks, to, np.roll(sizes, step - start))

    def _pass_round(self, sizes: Sizes) -> None:
        """A ring of many ranks: exact where all sizes are one, else all as slow as the largest."""
        steps = self._ranks.size - 1
        largest = sizes.max(keepdims=True)
        self._all(
            steps, steps * self._network.latency(largest), steps * self._network.wire(largest)
        )
        self.received += sizes.sum() - sizes

    def _double(self, sizes: Sizes) -> None:
        """⌈log2 P⌉ messages, each of twice the length: every rank hears of all."""
        steps = int(self._ranks.size - 1).bit_length()
        mean = np.array([sizes.sum() / sizes.size])
        wire = (self._ranks.size - 1) * self._network.wire(mean)
        self._all(steps, steps * self._network.latency(mean), wire)
        self.received += sizes.sum() - sizes

    def _halve_and_double(self, sizes: Sizes) -> None:
        """A sum of ranks that are a power of two: log2 P messages, each half as long as the one
        before, then as many that double. Ranks beyond a power of two give all that they have to
        others first, and hear the sum last (Rabenseifner 2004).
        """
        inside = int(self._ranks.size).bit_length() - 1
        ranks, whole = 1 << inside, np.array([float(sizes.sum())])
        fold = 2 * (self._ranks.size > ranks)
        block = whole / ranks
        latency = 2 * inside * self._network.latency(block) + fold * self._network.latency(whole)
        wire = 2 * (ranks - 1) * self._network.wire(block) + fold * self._network.wire(whole)
        self._all(2 * inside + fold, latency, wire)
        self.received += 2 * (sizes.sum() - sizes)

    def _all(self, steps: int, latency: Times, wire: Times) -> None:
        """All ranks take so many messages, that follow each other, in this time."""
        self.now[:] = self.now.max() + (latency + wire)[0]
        self.busy += wire[0]
        self.steps += steps

    def _send(self, source: Ranks, to: Ranks, sizes: Sizes) -> None:
        """Messages that travel at the same time, at most one from a rank and one to it."""
        wire = self._network.wire(sizes)
        ends = np.maximum(self.now[source], self.now[to]) + self._network.latency(sizes) + wire
        np.maximum.at(self.now, source, ends)
        np.maximum.at(self.now, to, ends)
        np.add.at(self.received, to, sizes)
        occupied = np.zeros_like(self.busy)
        occupied[source] = wire
        occupied[to] = np.maximum(occupied[to], wire)
        self.busy += occupied
        self.steps += source.size > 0
