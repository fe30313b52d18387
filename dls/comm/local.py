"""Ranks in one process, without MPI: P workers, each on a thread of its own.

One worker runs at a time, until it has to wait for another; then the next one runs, always in the
order of the ranks. So a run is the same each time, a debugger sees all workers, and no two of them
compute at the same time. `reference.collectives.deliver`, which defines the rounds, answers them.
"""

from __future__ import annotations

import math
import platform
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from dls import traffic
from dls.comm.base import PROGRAM, Comm, reduce_bytes
from dls.comm.errors import ExchangeError
from dls.comm.lanes import MOST, Tally
from reference.collectives import Gather, Round, Sum, Swap, deliver

T = TypeVar("T")


class Ended(BaseException):
    """Another worker has ended the run with this exit status; this one stops."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the run ends with status {status}")
        self.status = status


class Carried:
    """A round that waits for the other workers. See `dls.comm.base.Pending`."""

    def __init__(self, tally: Tally) -> None:
        self.posted, self.finished = time.perf_counter(), math.nan
        self.tally = tally
        self.answer: Any = None

    def done(self) -> bool:
        """Whether every worker has posted it."""
        return not math.isnan(self.finished)


class Room:
    """What P workers share: whose turn it is, and the rounds that are not complete."""

    def __init__(self, size: int) -> None:
        self.size, self.status = size, None
        self._left = set(range(size))
        self._turns = [threading.Semaphore(rank == 0) for rank in range(size)]
        self._idle = 0
        self._rounds: dict[tuple[int, int], dict[int, tuple[Round, Carried]]] = defaultdict(dict)

    status: int | None

    def enter(self, rank: int) -> None:
        """Return when it is this worker's turn."""
        self._turns[rank].acquire()
        self._check()

    def leave(self, rank: int) -> None:
        """This worker has ended."""
        self._left.discard(rank)
        self._idle = 0
        self._pass_on(rank)

    def give_way(self, rank: int, what: str) -> None:
        """Let the other workers run until it is this one's turn again.

        ExchangeError where all of them wait.
        """
        self._idle += 1
        if self._idle > 2 * len(self._left):
            raise ExchangeError(f"{what}: every worker waits, and nothing arrives")
        self._pass_on(rank)
        self._turns[rank].acquire()
        self._check()

    def went_on(self) -> None:
        """A worker no longer waits."""
        self._idle = 0

    def _pass_on(self, rank: int) -> None:
        if self._left:
            self._turns[min(self._left, key=lambda other: (other - rank - 1) % self.size)].release()

    def _check(self) -> None:
        if self.status is not None:
            raise Ended(self.status)

    def end(self, status: int) -> NoReturn:
        """End all workers."""
        self.status = status
        raise Ended(status)

    def post(self, lane_and_number: tuple[int, int], asked: Round, comm: Comm) -> Carried:
        """Post a worker's round. When the last worker has posted it, all of them get answers.

        lane_and_number: the lane, and the round's number on it.
        """
        carried = Carried(comm.tally)
        comm.count(asked, _expected(asked, comm))
        if (isinstance(asked, Gather) and asked.sizes is None) or (
            isinstance(asked, Swap) and asked.size is None
        ):
            comm.count_sizes(asked)
        waiting = self._rounds[lane_and_number]
        waiting[comm.rank] = asked, carried
        self._idle = 0
        if len(waiting) == self.size:
            del self._rounds[lane_and_number]
            everyone = [waiting[rank] for rank in range(self.size)]
            for (own, theirs), answer in zip(
                everyone, deliver([each for each, _ in everyone]), strict=True
            ):
                theirs.tally.received += _received_now(own, answer)
                theirs.answer, theirs.finished = answer, time.perf_counter()
        return carried


def _expected(asked: Round, comm: Comm) -> int:
    """Bytes from other ranks, as far as they are known when a round is posted."""
    if isinstance(asked, Gather):
        return sum(asked.sizes) - asked.payload.nbytes if asked.sizes is not None else 0
    if isinstance(asked, Swap):
        return asked.size or 0
    n = asked.values.size
    ring = isinstance(asked, Sum)
    return traffic.ring_bytes(n, comm.size) if ring else reduce_bytes(n, comm.rank, comm.size)


def _received_now(asked: Round, answer: Any) -> int:
    """Bytes from other ranks that are known only when a round is answered."""
    if isinstance(asked, Gather) and asked.sizes is None:
        return int(sum(part.nbytes for part in answer) - asked.payload.nbytes)
    return int(answer.nbytes) if isinstance(asked, Swap) and asked.size is None else 0


class Local(Comm):
    """One of P workers in this process."""

    def __init__(self, room: Room, rank: int, timeout: float = math.inf) -> None:
        super().__init__()
        self._room, self.rank, self.size, self.timeout = room, rank, room.size, timeout
        self.host, self.library = platform.node(), f"one process, {room.size} workers"
        self.node, self.rank_on_node = range(room.size), rank
        self._first = 0
        self._posted: dict[int, int] = defaultdict(int)

    def open_lanes(self, count: int) -> None:
        """Lanes need no preparation."""

    def drop_lanes(self) -> None:
        """Lanes that are opened later get new numbers."""
        self._first += MOST + 1

    def post(self, lane: int, asked: Round, what: str) -> Carried:
        """See Comm."""
        lane = lane if lane == PROGRAM else lane + self._first
        number = self._posted[lane] = self._posted[lane] + 1
        return self._room.post((lane, number), asked, self)

    def progress(self) -> None:
        """Nothing can make progress while this worker has its turn."""

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """See Comm; the other workers run meanwhile."""
        while not done():
            self._room.give_way(self.rank, what)
        self._room.went_on()

    def abort(self, status: int) -> NoReturn:
        """End every worker; the process goes on."""
        self._room.end(status)


def alone() -> Local:
    """The communicator of a program with a single rank."""
    return Local(Room(1), 0)


def run(size: int, work: Callable[[Comm], T]) -> list[T]:
    """Run `work` as `size` workers, and return what each returns. This thread is the first one.

    Raises the first error that a worker raises, or Ended if one ends the run by `abort`.
    """
    room = Room(size)
    results: list[Any] = [None] * size
    raised: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            room.enter(rank)
            results[rank] = work(Local(room, rank))
        except BaseException as error:  # also Ended, which the caller must see
            raised.append(error)
            room.status = room.status if room.status is not None else 1
        finally:
            room.leave(rank)

    others: Sequence[threading.Thread] = [
        threading.Thread(target=one, args=(rank,), name=f"worker {rank}", daemon=True)
        for rank in range(1, size)
    ]
    for thread in others:
        thread.start()
    one(0)
    for thread in others:
        thread.join()
    if raised:
        raise raised[0]
    return results
