"""Methods and a collective that a program might bring along: the suite finds them by itself.

`register` makes them known; nothing here is known before. `WRONG` holds methods that break a law.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import dls
from dls import traffic
from dls.exchange.layout import Bucket
from dls.exchange.methods._base import Landed, Method, SparseSettings
from dls.exchange.methods.layerwise_topk import LayerwiseTopk
from dls.exchange.settings import Range, setting
from reference import collectives, ops, wire
from reference.adjustment import Counts, Thresholds
from reference.collectives import Entries, Exchanged, Gather, Reduce, Round, Sum, Swap
from reference.ops import Vector

RING = "in-a-ring"


def register() -> None:
    """Make all of them known to this process, those that are right."""
    collectives.COLLECTIVES[RING] = in_a_ring
    traffic.COLLECTIVES[RING] = traffic.allgather_bytes
    for method in (EveryRound, Shy):
        dls.register(method)


def in_a_ring(
    chosen: collectives.Chosen,
    v: Vector,
    net: collectives.Net,
    ops: Any = ops,
    wire: Any = wire,
) -> collectives.Exchange:
    """An allgather of messages whose sizes nobody knows, each passed on from rank to rank."""
    unknown = replace(chosen, counts=None)
    messages = {net.rank: collectives.pack(chosen, wire)}
    for distance in range(net.size - 1):
        passed = messages[(net.rank - distance) % net.size]
        after, before = (net.rank + 1) % net.size, (net.rank - 1) % net.size
        messages[(before - distance) % net.size] = yield Swap(after, before, passed)
    update = [collectives.unpack(messages[rank], unknown, wire) for rank in range(net.size)]
    return Exchanged(update, [Entries(chosen.index, chosen.values)])


@dataclass(frozen=True)
class EveryRoundSettings:
    """The one setting of its own."""

    library: bool = setting(False, "whether the MPI library sums")


class EveryRound(Method):
    """The mean of the whole gradient, and every kind of round that there is."""

    Settings = EveryRoundSettings

    def exchange(self, bucket: Bucket, gradient: Vector) -> Generator[Round, Any, Landed]:
        self.guard(bucket.layers, gradient, bucket.span.start)
        own = self.ops.to_host(gradient).copy()
        rank, size = self.net
        name = np.full(1 + 2 * rank, rank, dtype=np.uint8)
        everyone = yield Gather(name)
        known = yield Gather(name, [part.size for part in everyone])
        assert [part.tolist() for part in known] == [part.tolist() for part in everyone]
        if size > 1:
            theirs = yield Swap((rank - 1) % size, (rank + 1) % size, name)
            assert set(theirs.tolist()) == {(rank + 1) % size}
            first, last = rank == 0, rank == size - 1
            told = yield Swap(size - 1 if first else None, 0 if last else None, name[:first])
            assert told.tolist() == [0] * last
        total = yield (Sum if self.settings.library else Reduce)(own)
        return [(bucket.span, Exchanged([Entries(None, total)], [Entries(None, own)]))]

    def bytes_received(self) -> int:
        return traffic.ring_bytes(self.layout.n, self.net.size)

    def layer_k(self) -> Counts:
        return np.array(self.layout.sizes)

    def layer_thresholds(self) -> Thresholds:
        return np.zeros(len(self.layout))


@dataclass(frozen=True)
class ShySettings(SparseSettings):
    """Those of all sparse methods, and how shy it is."""

    shyness: float = setting(
        0.5, "share of its k that a layer leaves to the first", allowed=Range(0, 1)
    )


class Shy(LayerwiseTopk):
    """Layer-wise Top-k whose layers leave some of their k to the first, as far as it has room."""

    Settings = ShySettings

    def initial_k(self, budget: int) -> Counts:
        k = super().initial_k(budget)
        left = (k * self.settings.shyness).astype(np.int64)
        left[0] = 0
        while left.sum() > self.sizes[0] - k[0]:
            left = left // 2
        k -= left
        k[0] += left.sum()
        return k


class Loses(LayerwiseTopk):
    """Forgets what it keeps of one value in each step."""

    def release(self, landed: Landed) -> None:
        super().release(landed)
        kept = np.flatnonzero(self.memory.v)
        self.memory.v[kept[:1]] = 0


class LosesOnTheWay(LayerwiseTopk):
    """Takes out of the residual what it has not sent."""

    def section(self, place: slice, index: Any, values: Any, counts: Counts) -> Any:
        place, chosen = super().section(place, index, values, counts)
        return place, replace(chosen, values=chosen.values * np.float32(0.5))

    def release(self, landed: Landed) -> None:
        doubled = [
            (place, each._replace(taken=[replace(e, values=e.values * 2) for e in each.taken]))
            for place, each in landed
        ]
        super().release(doubled)


class SendsFewer(LayerwiseTopk):
    """Each layer sends one value less than its k."""

    def own_k(self, k: Counts) -> Counts:
        return np.maximum(k - 1, 0)


class SendsElsewhere(LayerwiseTopk):
    """The budget is right, and its split over the layers means another method."""

    def own_k(self, k: Counts) -> Counts:
        turned = k[..., ::-1]
        return turned if (turned <= self.sizes).all() else k


class KeepsASecret(LayerwiseTopk):
    """What a resumed run needs is not all in its state."""

    def begin(self, finished: int) -> None:
        super().begin(finished)
        self.steps = getattr(self, "steps", 0) + 1
        self.memory.v[:1] += self.steps


class Boasts(LayerwiseTopk):
    """It announces more values than it sends."""

    def section(self, place: slice, index: Any, values: Any, counts: Counts) -> Any:
        return super().section(place, index[1:], values[1:], counts)


WRONG = {
    Loses: "conservation",
    LosesOnTheWay: "conservation",
    SendsFewer: "budget",
    SendsElsewhere: "reference",
    KeepsASecret: "resume",
}
"""And the law that each breaks."""
