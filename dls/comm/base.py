"""The interface of a communicator, over MPI or within one process."""

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
"""The lane of the program's own messages, in the order of its calls.

Exchanges have lanes of their own, from 0.
"""


class Pending(Protocol):
    """A round that was posted.

    posted, finished: time.perf_counter when it was handed to the network, and when it was complete;
    NaN before.
    """

    finished: float
    answer: Any

    @property
    def posted(self) -> float:
        """When it was handed to the network."""

    def done(self) -> bool:
        """Whether the answer is there. Raises the error of a round that failed."""


class Waiting:
    """The answer to a round, for which the program will wait. make: converts it."""

    def __init__(self, comm: Comm, pending: Pending, what: str, make: Callable[[Any], Any]) -> None:
        self._comm, self._pending, self._what, self._make = comm, pending, what, make

    def wait(self) -> Any:
        """Wait for the answer and return it. ExchangeError after the timeout."""
        self._comm.wait_until(self._done, self._what)
        return self._make(self._pending.answer)

    def note_in(self, message: Message) -> None:
        """Record in `message` when the round was posted, and when it was complete."""
        message.note(self._pending)

    def _done(self) -> bool:
        self._comm.lanes.advance()
        return self._pending.done()


class Comm(ABC):
    """One rank's communicator.

    `rank`, `size`: its number, from 0, and the number of ranks. `host`: the name of its machine.
    `library`: the MPI library with its version, or what takes its place. `node`: the ranks on its
    machine, itself included; `rank_on_node`: its index among them. `timeout`: seconds for which a
    rank waits for the others. `outlives_ranks`: whether the death of a rank raises RankLost on the
    others. `any_thread`: whether calls may come from several threads, one at a time. `tally`:
    counts bytes, see `counting`.
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
        """Rank and size, for collectives."""
        return Net(self.rank, self.size)

    @property
    def alone(self) -> bool:
        """Whether this rank may end or fail by itself, with no other rank to abort."""
        return self.size == 1 and not self.outlives_ranks

    @abstractmethod
    def post(self, lane: int, asked: Round, what: str) -> Pending:
        """Start a round. All ranks post the same rounds on a lane, in the same order.

        lane: PROGRAM, or one that `open_lanes` has opened. what: describes the round in messages.
        """

    @abstractmethod
    def open_lanes(self, count: int) -> None:
        """Open the lanes 0 to count − 1. Every rank calls it."""

    @abstractmethod
    def drop_lanes(self) -> None:
        """Give up the present lanes, whose rounds may never complete."""

    @abstractmethod
    def progress(self) -> None:
        """Let posted rounds make progress, between two pieces of work."""

    @abstractmethod
    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Call `done` again and again until it returns true. ExchangeError after the timeout."""

    @abstractmethod
    def abort(self, status: int) -> NoReturn:
        """End all ranks at once with this exit status."""

    @contextmanager
    def counting(self, tally: Tally) -> Iterator[None]:
        """Count in `tally` what is posted in this block."""
        before, self.tally = self.tally, tally
        try:
            yield
        finally:
            self.tally = before

    def count(self, asked: Round, received: int) -> None:
        """Count a round's bytes: those that this rank sends, and `received` from the others."""
        given = asked.payload if isinstance(asked, Swap | Gather) else asked.values
        self.tally.sent += given.nbytes
        self.tally.received += received

    def count_sizes(self, asked: Gather | Swap) -> None:
        """Count the bytes of sizes that are exchanged before messages of unknown sizes."""
        if isinstance(asked, Swap):
            sent, received = int(asked.to is not None), int(asked.source is not None)
        else:
            sent, received = 1, self.size - 1
        self.tally.sent += COUNT * sent
        self.tally.received += COUNT * received

    def ask(self, asked: Round, what: str) -> Any:
        """Post a round on the program's lane, wait, and return its answer."""
        return Waiting(self, self.post(PROGRAM, asked, what), what, lambda answer: answer).wait()

    def allgather(self, values: NDArray[Any], what: str) -> Waiting:
        """Start to gather every rank's array on all ranks. The shape is the same on all ranks.

        The answer has a leading axis P.
        """
        payload = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        pending = self.post(PROGRAM, Gather(payload, [payload.size] * self.size), what)
        return Waiting(self, pending, what, lambda parts: _stacked(parts, values))

    def gather(self, values: NDArray[Any]) -> NDArray[Any] | None:
        """Every rank's array on rank 0, with a leading axis P; None on the others. For the trace.

        The shape is the same on all ranks.
        """
        gathered: NDArray[Any] = self.allgather(values, "the trace's rows").wait()
        return None if self.rank else gathered

    def allgather_objects(self, value: T, what: str = "the other ranks' settings") -> list[T]:
        """Every rank's object, in rank order. For the start and the like, not within steps."""
        payload = np.frombuffer(pickle.dumps(value), dtype=np.uint8)
        sizes = self.allgather(np.array(payload.size), what).wait()
        received = self.ask(Gather(payload, sizes.tolist()), what)
        return [pickle.loads(message.tobytes()) for message in received]

    def from_rank_0(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, on all ranks. An error there is raised on all ranks.

        `make` must not communicate.
        """
        own = self.together(lambda: make() if self.rank == 0 else None)
        result: T = self.allgather_objects(own)[0]  # type: ignore[assignment]  # a T on rank 0
        return result

    def together(self, make: Callable[[], T]) -> T:
        """Call `make` on every rank, and return what it returns on this one.

        An error on any rank is raised on all ranks, that of the lowest rank if there are several.
        So bad input that only one rank sees ends all of them with one clear line. `make` must not
        communicate.
        """
        error: Exception | None = None
        result: Any = None
        try:
            result = make()
        except Exception as caught:
            error = caught
            error.add_note(_location(error))  # the traceback is not sent to other ranks
        for failure in self.allgather_objects(error, "the other ranks to get ready"):
            if failure is not None:
                raise failure
        own: T = result
        return own

    def finish(self) -> None:
        """Release its resources. No round may be pending. Every rank calls it."""
        return

    def difference(self, mine: Mapping[str, Any]) -> str:
        """A message that names the first value in which a rank differs from rank 0, or "".

        Every rank calls it, with the same names.
        """
        everyone = self.allgather_objects(dict(mine))
        for rank, theirs in enumerate(everyone):
            for name, value in everyone[0].items():
                if theirs[name] != value:
                    what = name.replace("_", " ")
                    other = theirs[name]
                    return f"rank {rank} differs from rank 0 in {what}: {other} instead of {value}"
        return ""

    def part(self) -> None:
        """At the end of a run on ranks that outlive each other, wait for all of them.

        RankLost where one has died.
        """
        return

    def survivors(self) -> tuple[Comm, list[int]]:
        """A communicator of the ranks that are left, and the numbers of those that died."""
        raise NotImplementedError

    def end(self, status: int) -> int:
        """The exit status of a rank that is done."""
        return status


def reduce_bytes(values: int, rank: int, ranks: int) -> int:
    """Bytes that a rank receives in a Reduce of so many float32 values.

    These are its own block from all other ranks, then the sums of the other blocks.
    """
    own = int(np.diff(blocks(values, ranks))[rank])
    return 4 * own * (ranks - 1) + 4 * (values - own)


def _stacked(parts: Sequence[NDArray[np.uint8]], like: NDArray[Any]) -> NDArray[Any]:
    return np.stack([part.view(like.dtype).reshape(like.shape) for part in parts])


def _location(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}, line {frame.lineno}, in {frame.name}"
