"""A training step replayed: computing as it was measured, messages under the clock.

A rank's main thread computes its forward pass, then its layers' gradients from the last to the
first; a bucket of layers is selected and posted as soon as it is complete, while the next layers
are computed. What has arrived is looked at between two layers, and after the last one without
pause. A bucket's rounds follow each other; buckets in flight at the same time share each rank's
link. The ranks are vectors here, so that thousands of them cost little more than two.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dls.comm.lanes import MOST
from dls.cost.clock import NOBODY, Clocks, Pattern, Sizes, Times
from dls.cost.network import Network

TINY = 1e-12
"""Seconds that stand for none where something is divided by them."""


class Step(NamedTuple):
    """What P ranks compute in one step with L layers and B buckets, in seconds.

    before (P): up to the backward pass; backward (P, L): each layer's; select (P, B): from a
    bucket's complete gradient to its first message; decode (P, B): what is made of its answers;
    adjust (P): between the last bucket's message and the wait; after (P): the update and all else.
    moved (P): bytes that came and went beside the measured backward pass, whose tax it holds.
    """

    before: Times
    backward: Times
    select: Times
    decode: Times
    adjust: Times
    after: Times
    moved: NDArray[np.float64]

    def of_ranks(self, ranks: Sequence[int] | NDArray[np.int64]) -> Step:
        """These ranks' part of it."""
        return Step(*(each[ranks] for each in self))

    @property
    def computing(self) -> Times:
        """All that a rank computes (P)."""
        total: Times = (self.before + self.adjust + self.after).copy()
        for each in (self.backward, self.select, self.decode):
            total += each.sum(axis=1)
        return total


@dataclass(frozen=True)
class Plan:
    """What leaves in a step: of each bucket its layers and its rounds, in the order of leaving, and
    the rounds of the adjustment. overlap: buckets leave while earlier layers are computed.
    """

    layers: Sequence[range]
    rounds: Sequence[Sequence[Pattern]]
    adjustment: Sequence[Pattern] = ()
    overlap: bool = True

    def sent(self) -> Sizes:
        """Bytes that each rank (P) gives to the network in a step."""
        sent: Sizes = np.sum([each.sent() for each in self._all()], axis=0)
        return sent

    def received(self) -> Sizes:
        """Bytes that the others' messages bring each rank (P) in a step."""
        received: Sizes = np.sum([each.received() for each in self._all()], axis=0)
        return received

    def _all(self) -> list[Pattern]:
        return [each for rounds in (*self.rounds, self.adjustment) for each in rounds]


class Played(NamedTuple):
    """How a step went on P ranks: when each one ended, how long it waited, and when it knew the
    others' next k.
    """

    end: Times
    exposed: Times
    adjusted: Times


def play_all(steps: Iterable[Step], plan: Plan, network: Network) -> list[float]:
    """The seconds of steps that follow each other: each from the mean start of its ranks to the
    mean start of the next one.
    """
    now: Times | None = None
    adjusted: Times | None = None
    taken = []
    for step in steps:
        now = np.zeros_like(step.before) if now is None else now
        adjusted = now if adjusted is None else adjusted
        played = play(step, plan, network, now, adjusted)
        taken.append(float(played.end.mean() - now.mean()))
        now, adjusted = played.end, played.adjusted
    return taken


def play(
    step: Step,
    plan: Plan,
    network: Network,
    start: Times,
    adjusted: Times,
) -> Played:
    """One step. start (P): when each rank begins; adjusted (P): when what the last step's
    adjustment has asked for is there.
    """
    now = start + step.before
    waited = np.maximum(0, adjusted - now)
    now = now + waited
    ready, posted, computed = _compute(_taxed(step, plan, network), plan, now)
    link = Link(network, computed + step.adjust)
    done, told = _carry(plan, link, ready, posted, computed + step.adjust)
    now = computed + step.adjust
    for bucket, arrived in enumerate(done):
        waiting = np.maximum(0, arrived - now)
        waited = waited + waiting
        now = now + waiting + step.decode[:, bucket]
    return Played(now + step.after, waited, told)


def _taxed(step: Step, plan: Plan, network: Network) -> Step:
    """The step with a longer backward pass, as more bytes come and go beside it: those of all
    buckets but the last, while the layers of later buckets are computed.
    """
    if not (plan.overlap and network.tax and len(plan.layers) > 1):
        return step
    beside = sum(2.0 * each.received() for rounds in plan.rounds[:-1] for each in rounds)
    more = np.maximum(0.0, network.tax * (beside - step.moved))
    stretched = slice(0, plan.layers[0].start)
    backward = step.backward.copy()
    computing = np.maximum(backward[:, stretched].sum(axis=1), TINY)
    backward[:, stretched] *= (1 + more / computing)[:, None]
    return step._replace(backward=backward)


def _compute(step: Step, plan: Plan, now: Times) -> tuple[Times, list[Times], Times]:
    """When each layer is complete (P, L, in backward order), when each bucket is posted, and when
    the last one is.
    """
    ready, posted = [], []
    for bucket, layers in enumerate(plan.layers):
        for layer in reversed(layers):
            now = now + step.backward[:, layer]
            ready.append(now)
        if plan.overlap:
            now = now + step.select[:, bucket]
        posted.append(now)
    if not plan.overlap:
        posted = []
        for bucket in range(len(plan.layers)):
            now = now + step.select[:, bucket]
            posted.append(now)
    return np.stack(ready, axis=1), posted, now


def _carry(
    plan: Plan,
    link: Link,
    ready: Times,
    posted: Sequence[Times],
    computed: Times,
) -> tuple[list[Times], Times]:
    """When each bucket's last round is complete (P), and what the adjustment has asked for."""
    jobs = [*plan.rounds, plan.adjustment]
    done: list[Times] = [*posted, computed]
    order = count()
    waiting = [(float(first.max()), next(order), job, 0) for job, first in enumerate(done)]
    heapq.heapify(waiting)
    while waiting:
        _, _, job, number = heapq.heappop(waiting)
        if number >= len(jobs[job]):
            continue
        begin = done[job] if number == 0 else _seen(done[job], ready, computed)
        # a lane is free again once the bucket MOST before has returned
        if number == 0 and MOST <= job < len(plan.rounds):
            begin = np.maximum(begin, done[job - MOST])
        done[job] = link.carry(jobs[job][number], begin)
        heapq.heappush(waiting, (float(done[job].max()), next(order), job, number + 1))
    return done[:-1], done[-1]


def _seen(arrived: Times, ready: Times, computed: Times) -> Times:
    """When each rank looks at what has arrived: at its next complete layer, or at once where it
    computes no more.
    """
    later = ready >= arrived[:, None]
    first = np.take_along_axis(ready, later.argmax(axis=1)[:, None], axis=1)[:, 0]
    seen = np.where(later.any(axis=1), first, np.maximum(arrived, computed))
    at_once: Times = np.where(arrived >= computed, arrived, seen)
    return at_once


class Link:
    """Every rank's link to the network, which all rounds under way share.

    computed (P): until when each rank's main thread computes; before that a message is late by the
    network's `poll`.
    """

    def __init__(self, network: Network, computed: Times) -> None:
        self._network, self._computed = network, computed
        self._free: Times = np.zeros_like(computed)

    def carry(self, pattern: Pattern, begin: Times) -> Times:
        """When a round that the ranks begin then is complete on each of them (P)."""
        clocks = Clocks(pattern.ranks, self._network, begin)
        clocks.take(pattern)
        alone = self._late(begin, clocks.now, clocks.steps)
        free, start = self._shared(pattern, self._free), self._shared(pattern, begin)
        takes_part = clocks.busy > 0
        one_message = np.maximum(0, alone - start - clocks.busy) / max(clocks.steps, 1)
        behind = free + clocks.busy + one_message
        ends = np.where(takes_part & (free > start), np.maximum(alone, behind), alone)
        busy = np.maximum(self._free, start) + clocks.busy
        self._free = np.where(takes_part, busy, self._free)
        return ends

    def _late(self, begin: Times, end: Times, steps: int) -> Times:
        """The end of a round whose messages are late as long as its ranks compute."""
        extra = steps * self._network.poll
        if not extra:
            return end
        took = np.maximum(end - begin, TINY)
        computing = np.maximum(0, self._computed - begin)
        share = np.minimum(1, computing / (took + extra))
        late: Times = end + share * extra
        return late

    def _shared(self, pattern: Pattern, times: Times) -> Times:
        """The latest of these times among the ranks that take part with each one (P)."""
        if pattern.to is None:
            return np.full_like(times, times.max())
        shared = times.copy()
        sending = np.flatnonzero(pattern.to != NOBODY)
        np.maximum.at(shared, sending, times[pattern.to[sending]])
        np.maximum.at(shared, pattern.to[sending], times[sending])
        return shared
