"""Communication over MPI: rounds become non-blocking operations on buffers.

The first World starts MPI, unless it is running.
"""

from __future__ import annotations

import atexit
import math
import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext, suppress
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from dls import traffic
from dls.comm.base import PROGRAM, Comm, reduce_bytes
from dls.comm.errors import ExchangeError, MissingMPI, RankLost
from dls.comm.mover import Mover, Posted
from dls.comm.mpi import LOSSES, MISSING, MPI, losses
from dls.comm.rollcall import NAP, RollCall
from dls.comm.watch import flush, watch, watched
from reference.collectives import Gather, Reduce, Round, Sum, Swap, blocks

TIMEOUT = 600.0
"""Seconds for which a rank waits for the others by default."""
BUSY_WAIT = 0.001
"""Seconds for which a rank waits without pauses; pauses leave its core to other ranks."""
NAP_SHARE = 1 / 50
"""Each pause lasts this share of the time waited so far, as every look takes time from others."""
LONGEST_NAP = 0.005
"""The longest pause, in seconds."""
TOLERANT = "OMPI_MCA_mpi_ft_enable"
"""The variable that mpirun --with-ft ulfm sets."""
Steps = Generator[Posted, None, Any]
"""The MPI operations of a round, one after the other; it returns the round's answer."""


class Carried:
    """A posted round, as a sequence of MPI operations. See `dls.comm.base.Pending`."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._current = next(steps)
        self._first = self._current
        self.finished = math.nan
        self.answer: Any = None

    @property
    def posted(self) -> float:
        """When the first of them was handed to MPI."""
        return self._first.posted

    def done(self) -> bool:
        """Whether the answer is there. Starts the next operation when one is complete."""
        while math.isnan(self.finished) and self._current.done():
            try:
                self._current = next(self._steps)
            except StopIteration as end:
                self.answer, self.finished = end.value, self._current.finished
        return not math.isnan(self.finished)


_shared: dict[float, World] = {}


def shared(timeout: float) -> World:
    """The World for a program's exchanges with this timeout, on a duplicate of COMM_WORLD.

    Every rank calls it.
    """
    if timeout not in _shared:
        _shared[timeout] = World(timeout, guarded=False, private=True)
    return _shared[timeout]


class World(Comm):
    """The ranks that mpirun has started, or those of a communicator of mpi4py.

    private: use a duplicate, so that its messages do not mix with the program's own. before: the
    World of which these ranks survived. guarded: end this process if MPI waits for other ranks
    longer than the timeout, at the start and at the end. MissingMPI where there is no MPI library.

    `outlives_ranks`: MPI goes on without a rank that died (mpirun --with-ft ulfm); otherwise it
    ends the others.
    """

    outlives_ranks = bool(LOSSES) and os.environ.get(TOLERANT, "0").lower() in ("1", "true", "yes")

    def __init__(
        self,
        timeout: float = TIMEOUT,
        world: MPI.Intracomm | None = None,
        before: World | None = None,
        guarded: bool = True,
        private: bool = False,
    ) -> None:
        if not MPI:
            words = "pip install 'dls[mpich]', or load the cluster's MPI (module load …)"
            raise MissingMPI(f"there is no MPI library: {words}; {MISSING}")
        super().__init__()
        self._world, self.timeout = MPI.COMM_WORLD if world is None else world, timeout
        self._before = before  # kept, as MPI may still write to its buffers
        self._lane_comms: list[MPI.Intracomm] = []
        self._dropped: list[MPI.Intracomm] = []
        with watched(timeout, "start") if guarded else nullcontext(), losses("the start"):
            if not MPI.Is_initialized():
                MPI.Init_thread()
            self._world = self._world.Dup() if private else self._world
            self._roll_call = RollCall(self._world)
            node = self._world.Split_type(MPI.COMM_TYPE_SHARED)
            self.rank_on_node = node.Get_rank()
            self.node = node.allgather(self._world.Get_rank())
            node.Free()
        self.rank = self._world.Get_rank()
        self.size = self._world.Get_size()
        self.any_thread = MPI.Query_thread() >= MPI.THREAD_SERIALIZED
        self.host = MPI.Get_processor_name()
        name, version = MPI.get_vendor()
        self.library = f"{name} {'.'.join(map(str, version))}"
        self._mover = Mover()
        if self.size > 1 and before is None and guarded:
            atexit.register(lambda: watch(self.timeout, "end"))

    def open_lanes(self, count: int) -> None:
        """Make a duplicate of the communicator for each, with the usual time limit."""
        opened: list[MPI.Intracomm] = []

        def duplicate() -> Sequence[MPI.Request]:
            pairs = [self._world.Idup() for _ in range(count - len(self._lane_comms))]
            opened.extend(comm for comm, _ in pairs)
            return [request for _, request in pairs]

        what = "the other ranks to get ready"
        self.wait_until(self._begin(duplicate, what).done, what)
        self._lane_comms += opened

    def drop_lanes(self) -> None:
        """See Comm. They stay open, as MPI may still write to the buffers of their operations."""
        self._dropped += self._lane_comms
        self._lane_comms = []

    def post(self, lane: int, asked: Round, what: str) -> Carried:
        """See Comm."""
        comm = self._world if lane == PROGRAM else self._lane_comms[lane]
        carriers: dict[type, Callable[..., Steps]] = {
            Gather: self._gather,
            Sum: self._sum,
            Reduce: self._reduce,
            Swap: self._swap,
        }
        return Carried(carriers[type(asked)](comm, asked, what))

    def _begin(self, post: Callable[[], Sequence[MPI.Request]], what: str) -> Posted:
        posted = Posted(post, what)
        self._mover.begin(posted)
        return posted

    def _gather(self, comm: MPI.Intracomm, asked: Gather, what: str) -> Steps:
        payload, sizes = asked
        if sizes is None:
            own, every = (
                np.array([payload.size], dtype=np.int64),
                np.empty(self.size, dtype=np.int64),
            )
            self.count_sizes(asked)
            yield self._begin(lambda: [comm.Iallgather(own, every)], what)
            sizes = every.tolist()
        if payload.dtype != np.uint8 or payload.size != sizes[self.rank]:
            raise ValueError(
                f"rank {self.rank} announced {sizes[self.rank]} bytes and has {payload.nbytes}"
            )
        received, equal = np.empty(sum(sizes), dtype=np.uint8), len(set(sizes)) == 1
        self.count(asked, received.nbytes - payload.nbytes)
        target = [received, list(sizes), MPI.BYTE]
        if equal and comm is self._world:
            yield self._begin(
                lambda: [comm.Iallgather([payload, MPI.BYTE], [received, MPI.BYTE])], what
            )
        else:
            yield self._begin(lambda: [comm.Iallgatherv([payload, MPI.BYTE], target)], what)
        received.flags.writeable = False
        return np.split(received, np.cumsum(sizes)[:-1])

    def _sum(self, comm: MPI.Intracomm, asked: Sum, what: str) -> Steps:
        values = np.ascontiguousarray(asked.values)
        total = np.empty_like(values)
        self.count(asked, traffic.ring_bytes(values.size, self.size))
        yield self._begin(lambda: [comm.Iallreduce(values, total, op=MPI.SUM)], what)
        total.flags.writeable = False
        return total

    def _reduce(self, comm: MPI.Intracomm, asked: Reduce, what: str) -> Steps:
        """Every rank sums one block, from +0.0 in rank order, and sends the sum to the others."""
        values = np.ascontiguousarray(asked.values)
        cuts = blocks(values.size, self.size)
        sizes, own = np.diff(cuts), int(np.diff(cuts)[self.rank])
        parts, total = np.empty((self.size, own), dtype=np.float32), np.empty_like(values)
        self.count(asked, reduce_bytes(values.size, self.rank, self.size))
        block = [values, (sizes, cuts[:-1]), MPI.FLOAT]
        theirs = [parts, ([own] * self.size, [own * rank for rank in range(self.size)]), MPI.FLOAT]
        yield self._begin(lambda: [comm.Ialltoallv(block, theirs)], what)
        mine = np.zeros(own, dtype=np.float32)
        for part in parts:
            mine += part
        yield self._begin(
            lambda: [comm.Iallgatherv([mine, MPI.FLOAT], [total, (sizes, cuts[:-1]), MPI.FLOAT])],
            what,
        )
        total.flags.writeable = False
        return total

    def _swap(self, comm: MPI.Intracomm, asked: Swap, what: str) -> Steps:
        """Swap sizes first, where they are unknown, with another tag."""
        to, source, payload, size = asked
        if size is None:
            own, theirs = np.array([payload.size], dtype=np.int64), np.zeros(1, dtype=np.int64)
            self.count_sizes(asked)
            yield self._begin(lambda: self._pair(comm, own, to, theirs, source, 0), what)
            size = int(theirs[0])
        received = np.empty(0 if source is None else size, dtype=np.uint8)
        self.count(asked, received.nbytes)
        yield self._begin(lambda: self._pair(comm, payload, to, received, source, 1), what)
        received.flags.writeable = False
        return received

    def _pair(
        self,
        comm: MPI.Intracomm,
        own: NDArray[Any],
        to: int | None,
        theirs: NDArray[Any],
        source: int | None,
        tag: int,
    ) -> list[MPI.Request]:
        """Requests for a message to a rank, and one from a rank; None: no such message."""
        receive = [] if source is None else [comm.Irecv(theirs, source, tag)]
        return receive + ([] if to is None else [comm.Isend(own, to, tag)])

    def gather(self, values: NDArray[Any]) -> NDArray[Any] | None:
        """See Comm; arrays are sent to rank 0 only."""
        what, values = "the trace's rows", np.ascontiguousarray(values)
        received = (
            np.empty((self.size, *values.shape), dtype=values.dtype) if self.rank == 0 else None
        )
        posted = self._begin(lambda: [self._world.Igather(values, received, root=0)], what)
        self.wait_until(posted.done, what)
        return received

    def blocking_allgatherv(self, payload: NDArray[np.uint8], sizes: Sequence[int]) -> None:
        """MPI's own blocking collective for the bytes of a Gather, for comparisons."""
        self._world.Allgatherv(
            [payload, MPI.BYTE], [np.empty(sum(sizes), dtype=np.uint8), list(sizes), MPI.BYTE]
        )

    def blocking_allreduce(self, values: NDArray[np.float32], total: NDArray[np.float32]) -> None:
        """MPI's own blocking collective for a Sum, for comparisons."""
        self._world.Allreduce(values, total, op=MPI.SUM)

    def progress(self) -> None:
        """See Comm."""
        self._mover.move(wait=False)

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """See Comm. Meanwhile make progress, and tell other ranks what this one waits for."""
        started = time.monotonic()
        while not done():
            self._mover.move(tests=1)
            if done():  # before a pause
                return
            waited = time.monotonic() - started
            if waited < BUSY_WAIT:
                os.sched_yield()
                continue
            with losses(what):
                self._roll_call.answer(what)
                if waited > self.timeout:
                    words = self._roll_call.missing(what)
                    raise ExchangeError(f"{words} after {self.timeout:g} s of waiting (--timeout)")
            time.sleep(max(NAP, min(waited * NAP_SHARE, LONGEST_NAP)))

    def finish(self) -> None:
        """See Comm."""
        self._mover.stop()
        self._roll_call.finish()
        for comm in (*self._lane_comms, self._world):
            comm.Free()

    def part(self) -> None:
        """See Comm. All ranks learn of the same deaths: RankLost on all, or on none."""
        with losses("the other ranks' end"):
            if not self._world.Agree(1):
                raise RankLost("another rank goes back")

    def survivors(self) -> tuple[World, list[int]]:
        """A World of the ranks that are left, in their order, and the numbers of the dead ones.

        Every rank that is left calls it. It raises RankLost in whatever else these ranks are doing.
        ExchangeError where they are not the majority: the network may have split, and the other
        ranks may go on elsewhere. Of two halves the one with rank 0 is the majority.
        """
        self._mover.stop()
        for comm in (*self._dropped, *self._lane_comms, self._world):  # each by itself
            comm.Revoke()
        with suppress(MPI.Exception):
            self._world.Agree(0)  # for ranks that are in `part`
        everyone, left = self._world.Get_group(), MPI.Intracomm(self._world.Shrink())
        gone = MPI.Group.Difference(everyone, left.Get_group())
        lost = list(MPI.Group.Translate_ranks(gone, None, everyone))
        if 2 * left.Get_size() - (0 in lost) < self.size:
            self._world = left  # so that abort ends these ranks only
            raise ExchangeError(
                f"{left.Get_size()} of {self.size} ranks are left, which is not most of them"
            )
        return World(self.timeout, left, self), lost

    def end(self, status: int) -> int:
        """See Comm. Where ranks died, end the process here: MPI itself would wait for them."""
        if self._before is not None:
            flush()
            os._exit(status)
        return status

    def abort(self, status: int) -> NoReturn:
        """See Comm. What MPI itself prints on this rank is discarded."""
        try:
            flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if self._world.Get_size() > 1 or not self.outlives_ranks:  # else mpirun would return 0
                self._world.Abort(status)
        finally:
            os._exit(status)  # MPICH's Abort may return while it ends the other ranks
