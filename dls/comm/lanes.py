"""Collectives under way: generators of rounds, one at a time on a lane, resumed by whoever has
time.

The network matches what ranks post on a lane by the order of posting, while generators go on as
answers arrive. So a lane carries one generator at a time, in the order of leaving, which is the
same on all ranks: what is posted on a lane is (bucket, round) everywhere, whatever arrives when. A
generator runs on the caller's thread alone: up to its first round when it is launched, and on from
there in `advance`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from dls.comm.errors import Dropped
from reference.collectives import ROUNDS, Round, Swap
from reference.wire import MessageError

if TYPE_CHECKING:
    from dls.comm.base import Comm, Pending

MOST = 64
"""Lanes for buckets; with more buckets some share a lane."""


@dataclass
class Tally:
    """Bytes: every one that a rank has given away, once; and those that came of others, of a Sum
    what a ring would bring.
    """

    sent: int = 0
    received: int = 0

    @classmethod
    def of_all(cls, messages: Iterable[Tally]) -> Tally:
        """Their sum."""
        parts = [(each.sent, each.received) for each in messages]
        return Tally(*map(sum, zip(*parts, strict=True))) if parts else Tally()


NEVER = float("nan")
"""The time of what has not happened yet."""


@dataclass
class Message(Tally):
    """One round as this rank saw it: its kind and partners, its bytes, and when things happened.

    kind: of `reference.collectives.ROUNDS`. to, source: of a swap, the ranks it goes to and comes
    from; None: nobody, or all. Readings of time.perf_counter, NaN before: ready, when work on it
    began; selected, when it could be posted; posted, when the network had it; finished, when its
    answer was complete, whether or not anybody waited.
    """

    kind: str = ROUNDS[0]
    to: int | None = None
    source: int | None = None
    ready: float = NEVER
    selected: float = NEVER
    posted: float = NEVER
    finished: float = NEVER

    @classmethod
    def of(cls, asked: Round, ready: float) -> Message:
        """Of a round that is asked for now."""
        partners = (asked.to, asked.source) if isinstance(asked, Swap) else (None, None)
        kind = type(asked).__name__.lower()
        return cls(0, 0, kind, *partners, ready=ready, selected=perf_counter())

    def note(self, pending: Pending) -> None:
        """Keep when the network had it, and when it was complete."""
        self.posted, self.finished = pending.posted, pending.finished


class Flight:
    """A generator under way, and the round that it waits for; `value` is what it has returned.

    around: what its later pieces run in. ready: time.perf_counter when work on it began.
    messages: one for each round that it has asked for.
    """

    def __init__(
        self,
        generator: Generator[Round, Any, Any],
        what: str,
        around: Callable[[], AbstractContextManager[Any]],
        ready: float,
    ) -> None:
        self._generator, self.what, self._around = generator, what, around
        self.dropped = False
        self.pending: Pending | None = None
        self.asked: Round | None = None
        self.done = False
        self.value: Any = None
        self.messages: list[Message] = []
        self._go_on(None, ready)

    @property
    def begun(self) -> float:
        """time.perf_counter when its first round was posted."""
        return self.messages[0].posted if self.messages else NEVER

    @property
    def ended(self) -> float:
        """time.perf_counter when its last round was answered."""
        return self.messages[-1].finished if self.messages else NEVER

    def post(self, comm: Comm, lane: int) -> None:
        """Post the round that it asks for."""
        assert self.asked is not None
        with comm.counting(self.messages[-1]):
            self.pending, self.asked = comm.post(lane, self.asked, self.what), None

    def answered(self, comm: Comm) -> bool:
        """Whether the answer to its round is there.

        It is asked often, and so does without a context manager.
        """
        if self.pending is None:
            return False
        before, comm.tally = comm.tally, self.messages[-1]
        try:
            return self.pending.done()
        finally:
            comm.tally = before

    def resume(self) -> None:
        """Go on with the answer, which is there. MessageError, with words, where it is damaged."""
        assert self.pending is not None
        answer = self.pending.answer
        self.messages[-1].note(self.pending)
        self.pending = None
        with self._around():
            self._go_on(answer, perf_counter())

    def _go_on(self, answer: Any, ready: float) -> None:
        try:
            self.asked = asked = self._generator.send(answer)
            self.messages.append(Message.of(asked, ready))
        except StopIteration as end:
            self.done, self.value = True, end.value
        except MessageError as error:
            raise MessageError(f"{self.what}, {error}") from None

    def close(self) -> None:
        """Leave it where it is."""
        self.dropped = not self.done
        self._generator.close()


class Lanes:
    """The lanes of a communicator, and what is under way on them.

    Where one generator or the network has failed, every call raises that error until `close`.
    generation: how often they were closed; what was launched before is dropped.
    """

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self._queues: list[deque[Flight]] = []
        self._lock = threading.RLock()
        self._failed: BaseException | None = None
        self.generation = 0

    def open(self, count: int) -> None:
        """Let there be so many. Every rank calls it."""
        if count > len(self._queues):
            self._comm.open_lanes(count)
        self._queues += [deque() for _ in range(count - len(self._queues))]

    def launch(
        self,
        lane: int,
        generator: Generator[Round, Any, Any],
        what: str,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
        ready: float | None = None,
    ) -> Flight:
        """Run a generator up to its first round, and see to it from then on.

        ready: time.perf_counter when all that it works on was there; None: now.
        """
        flight = Flight(generator, what, around, perf_counter() if ready is None else ready)
        with self._working():
            if not flight.done:
                queue = self._queues[lane]
                queue.append(flight)
                if queue[0] is flight:
                    flight.post(self._comm, lane)
        return flight

    def advance(self) -> None:
        """Resume whatever has its answer, and post what that asks for."""
        if self._failed is None and not any(self._queues):
            return
        with self._working():
            for lane, queue in enumerate(self._queues):
                while queue and self._move(lane, queue[0]):
                    if queue[0].done:
                        queue.popleft()
                        if queue:
                            queue[0].post(self._comm, lane)

    @contextmanager
    def _working(self) -> Iterator[None]:
        """One thread at a time; an error stays."""
        with self._lock:
            if self._failed is not None:
                raise self._failed
            try:
                yield
            except BaseException as error:
                self._failed = error
                raise

    def _move(self, lane: int, flight: Flight) -> bool:
        if not flight.answered(self._comm):
            return False
        flight.resume()
        if not flight.done:
            flight.post(self._comm, lane)
        return True

    def wait(self, flight: Flight) -> Any:
        """What a generator returns, when it does; all others go on meanwhile."""
        self._comm.wait_until(lambda: self._landed(flight), flight.what)
        return flight.value

    def _landed(self, flight: Flight) -> bool:
        if flight.dropped:
            raise Dropped(flight.what)
        self.advance()
        return flight.done

    def close(self) -> None:
        """Drop whatever is under way: after an error nothing of it is of use.

        Whoever opens lanes next has fresh ones.
        """
        with self._lock:
            for queue in self._queues:
                for flight in queue:
                    flight.close()
            self._queues.clear()
            self.generation += 1
            self._comm.drop_lanes()
            self._failed = None
