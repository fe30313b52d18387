"""Ranks under MPI: rounds become non-blocking operations on buffers.

The first World starts MPI, where nothing else has.
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
"""Seconds that a rank waits for the others unless told otherwise."""
PATIENCE = 0.001
"""Seconds of waiting without pause; from then on with pauses, which leave the core to other ranks.
"""
WAITED, LONGEST_NAP = 50, 0.005
"""A pause lasts this fraction of the wait so far, and so many seconds at most: to look costs time
that others may compute in.
"""
TOLERANT = "OMPI_MCA_mpi_ft_enable"
"""What mpirun --with-ft ulfm sets."""
Steps = Generator[Posted, None, Any]


class Carried:
    """A round under way, as operations that follow each other. See `dls.comm.base.Pending`."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._current = next(steps)
        self._first = self._current
        self.finished = math.nan
        self.answer: Any = None

    @property
    def posted(self) -> float:
        """When the library had the first of them."""
        return self._first.posted

    def done(self) -> bool:
        """Whether the answer is there; begins the next operation where one is complete."""
        while math.isnan(self.finished) and self._current.done():
            try:
                self._current = next(self._steps)
            except StopIteration as end:
                self.answer, self.finished = end.value, self._current.finished
        return not math.isnan(self.finished)


_shared: dict[float, World] = {}


def shared(timeout: float) -> World:
    """The World of a program's exchanges that wait so long, on a duplicate of COMM_WORLD.

    Every rank calls it.
    """
    if timeout not in _shared:
        _shared[timeout] = World(timeout, guarded=False, private=True)
    return _shared[timeout]


class World(Comm):
    """The ranks that mpirun has started, or those of a communicator of mpi4py.

    MissingMPI where there is no library.

    private: on a duplicate, so that nothing mixes with what the program says. guarded: end this
    process where the library waits for other ranks beyond the timeout, at the start and at the end.

    `outlives_ranks`: the library goes on without a rank that died (mpirun --with-ft ulfm);
    elsewhere it ends the others.
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
        self._before = before  # the library may still write to what was under way there
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
        """Each is a duplicate of the communicator, made as all else is: in turn, and awaited with a
        limit.
        """
        opened: list[MPI.Intracomm] = []

        def duplicate() -> Sequence[MPI.Request]:
            pairs = [self._world.Idup() for _ in range(count - len(self._lane_comms))]
            opened.extend(comm for comm, _ in pairs)
            return [request for _, request in pairs]

        what = "the other ranks to get ready"
        self.wait_until(self._begin(duplicate, what).done, what)
        self._lane_comms += opened

    def drop_lanes(self) -> None:
        """They stay open: the library may still write to what was under way there."""
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
        """Every rank sums a block of its own, from +0.0 in rank order, and tells the others."""
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
        """Sizes first, where they are not known; the tag tells the two apart."""
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
        """Requests of a message to one rank and one from another, or from nobody."""
        receive = [] if source is None else [comm.Irecv(theirs, source, tag)]
        return receive + ([] if to is None else [comm.Isend(own, to, tag)])

    def gather(self, values: NDArray[Any]) -> NDArray[Any] | None:
        """See Comm; the others' arrays travel to rank 0 alone."""
        what, values = "the trace's rows", np.ascontiguousarray(values)
        received = (
            np.empty((self.size, *values.shape), dtype=values.dtype) if self.rank == 0 else None
        )
        posted = self._begin(lambda: [self._world.Igather(values, received, root=0)], what)
        self.wait_until(posted.done, what)
        return received

    def blocking_allgatherv(self, payload: NDArray[np.uint8], sizes: Sequence[int]) -> None:
        """The library's own blocking collective on the bytes of a Gather, for measurements beside
        it.
        """
        self._world.Allgatherv(
            [payload, MPI.BYTE], [np.empty(sum(sizes), dtype=np.uint8), list(sizes), MPI.BYTE]
        )

    def blocking_allreduce(self, values: NDArray[np.float32], total: NDArray[np.float32]) -> None:
        """The library's own blocking collective of a Sum, for measurements beside it."""
        self._world.Allreduce(values, total, op=MPI.SUM)

    def progress(self) -> None:
        """Let the library move what is under way, between two pieces of work."""
        self._mover.move(wait=False)

    def wait_until(self, done: Callable[[], bool], what: str) -> None:
        """Move what is under way; tell other ranks that ask what this one waits for."""
        started = time.monotonic()
        while not done():
            self._mover.move(tests=1)
            if done():  # before the core is left to others
                return
            waited = time.monotonic() - started
            if waited < PATIENCE:
                os.sched_yield()
                continue
            with losses(what):
                self._roll_call.answer(what)
                if waited > self.timeout:
                    words = self._roll_call.missing(what)
                    raise ExchangeError(f"{words} after {self.timeout:g} s of waiting (--timeout)")
            time.sleep(max(NAP, min(waited / WAITED, LONGEST_NAP)))

    def finish(self) -> None:
        """Give back what it holds of MPI; nothing must be under way. Every rank calls it."""
        self._mover.stop()
        self._roll_call.finish()
        for comm in (*self._lane_comms, self._world):
            comm.Free()

    def part(self) -> None:
        """At the end of a run on ranks that outlive each other: return when all are here, so that
        all know of the same losses.

        RankLost, on all ranks, where one was lost.
        """
        with losses("the other ranks' end"):
            if not self._world.Agree(1):
                raise RankLost("another rank goes back")

    def survivors(self) -> tuple[World, list[int]]:
        """The ranks that are left, in their order, and the numbers of those that were lost.

        Every rank that is left calls it.

        It makes all of them, whatever they do, meet RankLost. ExchangeError where those who are
        left are not most of the ranks: the network may have fallen apart, and the others be going
        on elsewhere. Of two halves the one with rank 0 goes on.
        """
        self._mover.stop()
        for comm in (
            *self._dropped,
            *self._lane_comms,
            self._world,
        ):  # a lane does not learn of it through the world
            comm.Revoke()
        with suppress(MPI.Exception):
            self._world.Agree(0)  # for those who are in `part`
        everyone, left = self._world.Get_group(), MPI.Intracomm(self._world.Shrink())
        gone = MPI.Group.Difference(everyone, left.Get_group())
        lost = list(MPI.Group.Translate_ranks(gone, None, everyone))
        if 2 * left.Get_size() - (0 in lost) < self.size:
            self._world = left  # to end these ranks alone
            raise ExchangeError(
                f"{left.Get_size()} of {self.size} ranks are left, which is not most of them"
            )
        return World(self.timeout, left, self), lost

    def end(self, status: int) -> int:
        """The exit status of a rank that is done; where ranks were lost it ends here, as the
        library would wait for them.
        """
        if self._before is not None:
            flush()
            os._exit(status)
        return status

    def abort(self, status: int) -> NoReturn:
        """End every rank at once with this exit status, without the library's own words on this
        rank's stderr.
        """
        try:
            flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if self._world.Get_size() > 1 or not self.outlives_ranks:  # else mpirun would return 0
                self._world.Abort(status)
        finally:
            os._exit(status)  # MPICH's Abort comes back while the others are being ended
