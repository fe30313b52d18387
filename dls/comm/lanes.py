"""Running collectives: generators of rounds, of which a lane runs one at a time.

MPI matches the operations of different ranks by the order in which they are posted, but generators
continue in the order in which answers arrive. So each lane runs one generator at a time, in an
order that is the same on all ranks. Then all ranks post the same sequence of (bucket, round) on a
lane, whenever answers arrive. A generator runs only on the caller's thread: up to its first round
when it is launched, and further in `advance`.
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
"""The maximum number of lanes for buckets; if there are more buckets, they share lanes."""


@dataclass
class Tally:
    """Bytes that a rank sent, each counted once, and those that it received from other ranks.

    A Sum counts as a ring Allreduce.
    """

    sent: int = 0
    received: int = 0

    @classmethod
    def of_all(cls, messages: Iterable[Tally]) -> Tally:
        """Their sum."""
        parts = [(each.sent, each.received) for each in messages]
        return Tally(*map(sum, zip(*parts, strict=True))) if parts else Tally()


NEVER = float("nan")
"""The time of an event that has not happened yet."""


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
    """A running generator, and the round for whose answer it waits.

    what: describes it in messages. around: makes the context in which it continues after an answer.
    ready: time.perf_counter when work on it began. value: what it returned, once it is done.
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
        """Post the round for which it asks."""
        assert self.asked is not None
        with comm.counting(self.messages[-1]):
            self.pending, self.asked = comm.post(lane, self.asked, self.what), None

    def answered(self, comm: Comm) -> bool:
        """Whether the answer to its round is there.

        This is called often, so it does without the context manager `counting`.
        """
        if self.pending is None:
            return False
        before, comm.tally = comm.tally, self.messages[-1]
        try:
            return self.pending.done()
        finally:
            comm.tally = before

    def resume(self) -> None:
        """Continue with the answer, which must be there. MessageError where it is damaged."""
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
        """Give it up."""
        self.dropped = not self.done
        self._generator.close()


class Lanes:
    """The lanes of a communicator, and the generators on them.

    Once a generator or the network has failed, every call raises that error until `close`.
    generation: how often the lanes were closed, which gives up the generators on them.
    """

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self._queues: list[deque[Flight]] = []
        self._lock = threading.RLock()
        self._failed: BaseException | None = None
        self.generation = 0

    def open(self, count: int) -> None:
        """Open the lanes 0 to count − 1, as far as they are not open. Every rank calls it."""
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
        """Run a generator up to its first round; `advance` continues it.

        ready: time.perf_counter when all of its input was there; None: now.
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
        """Continue every generator whose answer is there, and post its next round."""
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
        """Let one thread in at a time, and remember an error."""
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
        """Wait for a generator, while the others continue, and return what it returns."""
        self._comm.wait_until(lambda: self._landed(flight), flight.what)
        return flight.value

    def _landed(self, flight: Flight) -> bool:
        if flight.dropped:
            raise Dropped(flight.what)
        self.advance()
        return flight.done

    def close(self) -> None:
        """Give up all generators and lanes, after an error. Lanes that are opened later are new."""
        with self._lock:
            for queue in self._queues:
                for flight in queue:
                    flight.close()
            self._queues.clear()
            self.generation += 1
            self._comm.drop_lanes()
            self._failed = None
