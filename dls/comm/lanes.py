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
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dls.comm.errors import Dropped
from reference.collectives import Round
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


class Flight:
    """A generator under way, and the round that it waits for; `value` is what it has returned.

    around: what its later pieces run in. begun, ended: time.perf_counter when its first round was
    posted, and when its last one was answered.
    """

    def __init__(
        self,
        generator: Generator[Round, Any, Any],
        what: str,
        around: Callable[[], AbstractContextManager[Any]],
        tally: Tally,
    ) -> None:
        self._generator, self.what, self._around, self._tally = generator, what, around, tally
        self.dropped = False
        self.pending: Pending | None = None
        self.asked: Round | None = None
        self.done = False
        self.value: Any = None
        self.begun = self.ended = float("nan")
        self._go_on(None)

    def post(self, comm: Comm, lane: int) -> None:
        """Post the round that it asks for."""
        assert self.asked is not None
        with comm.counting(self._tally):
            self.pending, self.asked = comm.post(lane, self.asked, self.what), None

    def answered(self, comm: Comm) -> bool:
        """Whether the answer to its round is there.

        It is asked often, and so does without a context manager.
        """
        if self.pending is None:
            return False
        before, comm.tally = comm.tally, self._tally
        try:
            return self.pending.done()
        finally:
            comm.tally = before

    def resume(self) -> None:
        """Go on with the answer, which is there. MessageError, with words, where it is damaged."""
        assert self.pending is not None
        answer, self.ended = self.pending.answer, self.pending.finished
        if self.begun != self.begun:
            self.begun = self.pending.posted
        self.pending = None
        with self._around():
            self._go_on(answer)

    def _go_on(self, answer: Any) -> None:
        try:
            self.asked = self._generator.send(answer)
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
        tally: Tally | None = None,
    ) -> Flight:
        """Run a generator up to its first round, and see to it from then on; its bytes are counted
        in `tally`.
        """
        flight = Flight(generator, what, around, tally or self._comm.tally)
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
