"""A rank's place among the ranks, whatever carries their words: what programs and exchanges may ask
of it.
"""

from __future__ import annotations

import os
import pickle
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from dls.comm.lanes import Lanes, Message, Tally
from reference.collectives import COUNT, Gather, Net, Round, Swap, blocks

T = TypeVar("T")
PROGRAM = -1
"""The lane of what the program says, in the order of its calls; exchanges have lanes of their own,
from 0 on.
"""


class Pending(Protocol):
    """A round under way. posted, finished: time.perf_counter when the carrier had it, and had
    completed it; NaN before.
    """

    finished: float
    answer: Any

    @property
    def posted(self) -> float:
        """See above."""

    def done(self) -> bool:
        """Whether the answer is there. Raises what has gone wrong on the way."""


class Waiting:
    """What a program has asked for, and will wait for."""

    def __init__(self, comm: Comm, pending: Pending, what: str, make: Callable[[Any], Any]) -> None:
        self._comm, self._pending, self._what, self._make = comm, pending, what, make

    def wait(self) -> Any:
        """The answer, when it is there. ExchangeError past the timeout."""
        self._comm.wait_until(self._done, self._what)
        return self._make(self._pending.answer)

    def note_in(self, message: Message) -> None:
        """Keep there when the network had it, and when it was complete."""
        message.note(self._pending)

    def _done(self) -> bool:
        self._comm.lanes.advance()
        return self._pending.done()


class Comm(ABC):
    """A rank's place in the world. `tally` counts what it gives away and what comes, as `counting`
    has it.

    `node`: the ranks that share its machine, itself included; `rank_on_node`: its place among them.
    `timeout`: seconds that a rank waits for the others at most, anywhere. `outlives_ranks`: whether
    a rank's death is a RankLost on the others. `library`: what carries the words, with its version.
    `any_thread`: whether calls may come from several threads, one at a time.
    """

    rank: int
    size: int
    host: str
    library: str
    node: Sequence[int]
    rank_on_node: int
    timeout: float
    outlives_ranks: bool = False
    any_thread: bool = True

    def __init__(self) -> None:
        self.tally = Tally()
        self.lanes = Lanes(self)

    @property
    def net(self) -> Net:
        """This rank among the ranks, for collectives."""
        return Net(self.rank, self.size)

    @property
    def alone(self) -> bool:
        """Whether this rank can end, or fail, without a word to others or to a launcher that would
        go on without it.
        """
        return self.size == 1 and not self.outlives_ranks

    @abstractmethod
    def post(self, lane: int, asked: Round, what: str) -> Pending:
        """Begin to carry a round; all ranks post the same rounds on a lane, in the same order.

        lane: PROGRAM, or one of those that `open_lanes` has opened; what: words for what is under
        way.
        """

    @abstractmethod
    def open_lanes(self, count: int) -> None:
        """Let there be so many lanes, numbers 0 to count − 1. Every rank calls it."""

    @abstractmethod
    def drop_lanes(self) -> None:
        """Use the present lanes no more; what is under way there may never end."""

    @abstractmethod
    def progress(self) -> None:
        """Let what is under way move, between two pieces of work."""

    @abstractmethod
    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Return when `done` says so, which is asked again and again.

        ExchangeError past the timeout.
        """

    @abstractmethod
    def abort(self, status: int) -> NoReturn:
        """End every rank at once with this exit status."""

    @contextmanager
    def counting(self, tally: Tally) -> Iterator[None]:
        """Count what is posted in this block there."""
        before, self.tally = self.tally, tally
        try:
            yield
        finally:
            self.tally = before

    def count(self, asked: Round, received: int) -> None:
        """Add a round's bytes: what this rank gives away, and what comes of other ranks."""
        given = asked.payload if isinstance(asked, Swap | Gather) else asked.values
        self.tally.sent += given.nbytes
        self.tally.received += received

    def count_sizes(self, asked: Gather | Swap) -> None:
        """Add the bytes of a message's size, which travels ahead of it where it is not known."""
        to, source = (
            (asked.to is not None, asked.source is not None)
            if isinstance(asked, Swap)
            else (True, self.size - 1)
        )
        self.tally.sent += COUNT * to
        self.tally.received += COUNT * source

    def ask(self, asked: Round, what: str) -> Any:
        """A round's answer, on the program's lane: post it, and wait."""
        return Waiting(self, self.post(PROGRAM, asked, what), what, lambda answer: answer).wait()

    def allgather(self, values: NDArray[Any], what: str) -> Waiting:
        """Begin to give every rank every rank's array, of one shape on all ranks; its answer has a
        leading axis P.
        """
        payload = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        pending = self.post(PROGRAM, Gather(payload, [payload.size] * self.size), what)
        return Waiting(self, pending, what, lambda parts: _stacked(parts, values))

    def gather(self, values: NDArray[Any]) -> NDArray[Any] | None:
        """On rank 0 every rank's array, of one shape on all ranks, with a leading axis P; None
        elsewhere. For the trace.
        """
        gathered: NDArray[Any] = self.allgather(values, "the trace's rows").wait()
        return None if self.rank else gathered

    def allgather_objects(self, value: T, what: str = "the other ranks' settings") -> list[T]:
        """Every rank's object, in rank order. For start-up and the like, never inside a step."""
        payload = np.frombuffer(pickle.dumps(value), dtype=np.uint8)
        sizes = self.allgather(np.array(payload.size), what).wait()
        received = self.ask(Gather(payload, sizes.tolist()), what)
        return [pickle.loads(message.tobytes()) for message in received]

    def from_rank_0(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on all ranks; raises on all ranks what it raises there.
        `make` must not communicate.
        """
        own = self.together(lambda: make() if self.rank == 0 else None)
        result: T = self.allgather_objects(own)[0]  # type: ignore[assignment]  # rank 0's is what make gave
        return result

    def together(self, make: Callable[[], T]) -> T:
        """Run `make` on every rank and return its own result; an error on any rank is raised on
        all, the lowest rank's first.

        `make` must not communicate. This is how bad input that only one rank sees ends every rank,
        in one clear line.
        """
        error: Exception | None = None
        result: Any = None
        try:
            result = make()
        except Exception as caught:
            error = caught
            error.add_note(_place(error))  # which travels with it, as its traceback does not
        for failure in self.allgather_objects(error, "the other ranks to get ready"):
            if failure is not None:
                raise failure
        own: T = result
        return own

    def finish(self) -> None:
        """Give back what it holds; nothing must be under way. Every rank calls it."""
        return

    def difference(self, mine: Mapping[str, Any]) -> str:
        """Words for the first thing, by name, in which a rank differs from rank 0; "" where none
        does. Every rank calls it.
        """
        everyone = self.allgather_objects(dict(mine))
        for rank, other in enumerate(everyone):
            for name, value in everyone[0].items():
                if other[name] != value:
                    what = name.replace("_", " ")
                    return (
                        f"rank {rank} differs from rank 0 in {what}: {other[name]} instead of"
                        f" {value}"
                    )
        return ""

    def part(self) -> None:
        """At the end of a run on ranks that outlive each other: return when all are here.

        RankLost where one was lost.
        """
        return

    def survivors(self) -> tuple[Comm, list[int]]:
        """The ranks that are left, and the numbers of those that were lost, where ranks outlive
        each other.
        """
        raise NotImplementedError

    def end(self, status: int) -> int:
        """The exit status of a rank that is done."""
        return status


def reduce_bytes(values: int, rank: int, ranks: int) -> int:
    """Bytes that a Reduce of so many float32 values brings a rank.

    Its own block from all others, then the sums of the other blocks.
    """
    own = int(np.diff(blocks(values, ranks))[rank])
    return 4 * own * (ranks - 1) + 4 * (values - own)


def _stacked(parts: Sequence[NDArray[np.uint8]], like: NDArray[Any]) -> NDArray[Any]:
    return np.stack([part.view(like.dtype).reshape(like.shape) for part in parts])


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}, line {frame.lineno}, in {frame.name}"
