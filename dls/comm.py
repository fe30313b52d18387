"""What ranks say to each other: the only home of mpi4py.

Gradients travel in non-blocking collectives on buffers. Small things at start-up travel as Python objects. The first Comm starts
MPI, where nothing else has.
"""

from __future__ import annotations

import array
import atexit
import fcntl
import math
import os
import pickle
import stat
import sys
import termios
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NoReturn, Protocol, TypeVar

import mpi4py
import numpy as np
from numpy.typing import NDArray

from dls import traffic

mpi4py.rc(initialize=False, finalize=True)  # it is a Comm that starts MPI, with a limit to its waiting
try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # programs that start no ranks, and --help, do without
    MPI = None  # type: ignore[assignment]
    MISSING = str(error).partition("\n")[0]

T = TypeVar("T")
TIMEOUT = 600.0
"""Seconds that a rank waits for the others unless told otherwise."""
TICK, TESTS = 0.002, 16
"""Seconds between two moves of what is under way, and how often each move tests it: over TCP one test takes in 64 KiB at most."""
PATIENCE, NAP = 0.001, 0.0001
"""Seconds of waiting without pause, and of each pause from then on, which leaves the core to other ranks."""
GRACE = 2.0
"""Seconds that the others have to say that they wait too."""
LOSSES = {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED} - {MPI.ERR_UNKNOWN} if MPI else set()
"""What tells that a rank has died, or that another rank has found so; nothing where the library knows no such thing."""
TOLERANT = "OMPI_MCA_mpi_ft_enable"
"""What mpirun --with-ft ulfm sets."""
WATCHER = 'timeout "$1" cat; [ $? != 124 ] || { echo "$2" >&2; kill -KILL "$PPID"; }'
"""Reads nothing from the rank until that closes the pipe or ends; after so many seconds it says why, and ends the rank."""
LAST_WORDS = 2.0
"""Seconds that a failing rank gives the launcher to read what it said, before it ends the run."""


class MissingMPI(RuntimeError):
    """There is no MPI library on this machine, or none that can be loaded."""


class ExchangeError(RuntimeError):
    """An exchange that cannot come to its end, or brought something damaged."""


class RankLost(ExchangeError):
    """A rank has died, and the library can go on without it (Open MPI's fault tolerance, ULFM)."""


class Pending(Protocol):
    """An exchange under way. posted, finished: time.perf_counter when the library had it, and had completed it; NaN before."""

    posted: float
    finished: float

    def wait(self) -> None:
        """Return when the exchange is complete and its result buffers hold what they should. ExchangeError past the timeout."""


class Comm:
    """This rank's place in the world. `sent_bytes` counts every byte given to MPI to send in a step, each once.

    `received_bytes` counts those that the other ranks' messages bring, and of an Allreduce what a ring would.
    `node`: the ranks that share its machine, itself included; `rank_on_node`: its place among them.
    `timeout`: seconds that a rank waits for the others at most, anywhere, before it ends the run.
    `outlives_ranks`: whether a rank's death is a RankLost on the others; elsewhere the library ends them.
    `library`: the MPI library's name and version. MissingMPI where there is none.
    """

    outlives_ranks = bool(LOSSES) and os.environ.get(TOLERANT, "0").lower() in ("1", "true", "yes")

    def __init__(
        self, timeout: float = TIMEOUT, world: MPI.Intracomm | None = None, before: Comm | None = None
    ) -> None:
        if not MPI:
            words = "pip install 'dls[mpich]', or load the cluster's MPI (module load …)"
            raise MissingMPI(f"there is no MPI library: {words}; {MISSING}")
        self._world, self.timeout = MPI.COMM_WORLD if world is None else world, timeout
        self._before = before  # the library may still write to what was under way there
        self.sent_bytes = self.received_bytes = 0
        with _watched(timeout, "start"), _losses("the start"):
            if not MPI.Is_initialized():
                MPI.Init_thread()
            self._roll_call = _RollCall(self._world)
            node = self._world.Split_type(MPI.COMM_TYPE_SHARED)
            self.rank_on_node: int = node.Get_rank()
            self.node: list[int] = node.allgather(self._world.Get_rank())
            node.Free()
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()
        self.host: str = MPI.Get_processor_name()
        name, version = MPI.get_vendor()
        self.library = f"{name} {'.'.join(map(str, version))}"
        self._mover = _Mover()
        if self.size > 1 and before is None:
            atexit.register(lambda: _watch(self.timeout, "end"))

    @property
    def alone(self) -> bool:
        """Whether this rank can end, or fail, without a word to others or to a launcher that would go on without it."""
        return self.size == 1 and not self.outlives_ranks

    def allgatherv(
        self, payload: NDArray[np.uint8], sizes: Sequence[int], what: str
    ) -> tuple[Pending, list[NDArray[np.uint8]]]:
        """Begin to give every rank every rank's bytes.

        payload: this rank's bytes; sizes (P): the bytes of each rank's message, known to all; what: words for what is under way.
        Returns the pending exchange and the P messages, to be read once it is complete.
        """
        if payload.dtype != np.uint8 or payload.size != sizes[self.rank]:
            raise ValueError(f"rank {self.rank} announced {sizes[self.rank]} bytes and has {payload.nbytes}")
        received = np.empty(sum(sizes), dtype=np.uint8)
        self.sent_bytes += payload.nbytes
        self.received_bytes += received.nbytes - payload.nbytes
        target = [received, list(sizes), MPI.BYTE]
        pending = self._begin(lambda: self._world.Iallgatherv([payload, MPI.BYTE], target), what)
        return pending, np.split(received, np.cumsum(sizes)[:-1])

    def allgather(self, values: NDArray[Any], what: str) -> tuple[Pending, NDArray[Any]]:
        """Begin to give every rank every rank's array, of one shape on all ranks; the result has a leading axis P."""
        received = np.empty((self.size, *values.shape), dtype=values.dtype)
        values = np.ascontiguousarray(values)
        self.sent_bytes += values.nbytes
        self.received_bytes += received.nbytes - values.nbytes
        return self._begin(lambda: self._world.Iallgather(values, received), what), received

    def allreduce(self, values: NDArray[np.float32], total: NDArray[np.float32], what: str) -> Pending:
        """Begin the library's Allreduce: the sum over the ranks lands in `total`, with the same bits on all ranks."""
        self.sent_bytes += values.nbytes
        self.received_bytes += traffic.ring_bytes(values.size, self.size)
        return self._begin(lambda: self._world.Iallreduce(values, total, op=MPI.SUM), what)

    def blocking_allgatherv(self, payload: NDArray[np.uint8], sizes: Sequence[int]) -> None:
        """The library's own blocking collective on the bytes of `allgatherv`, for measurements beside it."""
        self._world.Allgatherv([payload, MPI.BYTE], [np.empty(sum(sizes), dtype=np.uint8), list(sizes), MPI.BYTE])

    def blocking_allreduce(self, values: NDArray[np.float32], total: NDArray[np.float32]) -> None:
        """The library's own blocking collective of `allreduce`, for measurements beside it."""
        self._world.Allreduce(values, total, op=MPI.SUM)

    def _begin(self, post: Callable[[], MPI.Request], what: str) -> _Exchange:
        exchange = _Exchange(post, what, self)
        self._mover.begin(exchange)
        return exchange

    def progress(self) -> None:
        """Let the library move what is under way, between two pieces of work."""
        self._mover.move(wait=False)

    def wait_for(self, exchange: _Exchange) -> None:
        """Return when the exchange is complete; tell other ranks that ask what this one waits for."""
        started = time.monotonic()
        while not self._mover.complete(exchange):
            waited = time.monotonic() - started
            if waited < PATIENCE:
                os.sched_yield()
                continue
            with _losses(exchange.what):
                self._roll_call.answer(exchange.what)
                if waited > self.timeout:
                    words = self._roll_call.missing(exchange.what)
                    raise ExchangeError(f"{words} after {self.timeout:g} s of waiting (--timeout)")
            time.sleep(NAP)

    def gather(self, values: NDArray[Any]) -> NDArray[Any] | None:
        """On rank 0 every rank's array, of one shape on all ranks, with a leading axis P; None elsewhere. For the trace."""
        received = np.empty((self.size, *values.shape), dtype=values.dtype) if self.rank == 0 else None
        values = np.ascontiguousarray(values)
        self._begin(lambda: self._world.Igather(values, received, root=0), "the trace's rows").wait()
        return received

    def allgather_objects(self, value: T, what: str = "the other ranks' settings") -> list[T]:
        """Every rank's object, in rank order. For start-up and the like, never inside a step."""
        payload = np.frombuffer(pickle.dumps(value), dtype=np.uint8)
        pending, sizes = self.allgather(np.array(payload.size), what)
        pending.wait()
        pending, received = self.allgatherv(payload, sizes.tolist(), what)
        pending.wait()
        return [pickle.loads(message.tobytes()) for message in received]

    def from_rank_0(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on all ranks; raises on all ranks what it raises there. `make` must not communicate."""
        own = self.together(lambda: make() if self.rank == 0 else None)
        result: T = self.allgather_objects(own)[0]  # type: ignore[assignment]  # rank 0's is what make gave
        return result

    def together(self, make: Callable[[], T]) -> T:
        """Run `make` on every rank and return its own result; an error on any rank is raised on all, the lowest rank's first.

        `make` must not communicate. This is how bad input that only one rank sees ends every rank, in one clear line.
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

    def part(self) -> None:
        """At the end of a run on ranks that outlive each other: return when all are here, so that all know of the same losses.

        RankLost, on all ranks, where one was lost.
        """
        with _losses("the other ranks' end"):
            if not self._world.Agree(1):
                raise RankLost("another rank goes back")

    def survivors(self) -> tuple[Comm, list[int]]:
        """The ranks that are left, in their order, and the numbers of those that were lost. Every rank that is left calls it.

        It makes all of them, whatever they do, meet RankLost. ExchangeError where those who are left are not most of the ranks:
        the network may have fallen apart, and the others be going on elsewhere. Of two halves the one with rank 0 goes on.
        """
        self._mover.stop()
        self._world.Revoke()
        with suppress(MPI.Exception):
            self._world.Agree(0)  # for those who are in `part`
        everyone, left = self._world.Get_group(), MPI.Intracomm(self._world.Shrink())
        gone = MPI.Group.Difference(everyone, left.Get_group())
        lost = list(MPI.Group.Translate_ranks(gone, None, everyone))
        if 2 * left.Get_size() - (0 in lost) < self.size:
            self._world = left  # to end these ranks alone
            raise ExchangeError(f"{left.Get_size()} of {self.size} ranks are left, which is not most of them")
        return Comm(self.timeout, left, self), lost

    def end(self, status: int) -> int:
        """The exit status of a rank that is done; where ranks were lost it ends here, as the library would wait for them."""
        if self._before is not None:
            _flush()
            os._exit(status)
        return status

    def abort(self, status: int) -> NoReturn:
        """End every rank at once with this exit status, without the library's own words on this rank's stderr."""
        try:
            _flush()
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            if self._world.Get_size() > 1 or not self.outlives_ranks:  # else mpirun would return 0
                self._world.Abort(status)
        finally:
            os._exit(status)  # MPICH's Abort comes back while the others are being ended


def _place(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{os.path.basename(frame.filename)}, line {frame.lineno}, in {frame.name}"


def _watch(timeout: float, when: str) -> tuple[int, int]:
    """Let this process live for so many seconds at most; returns the process that watches it, and what to close to stop that.

    At the start and at the end the library waits for other ranks without a limit, and keeps Python from running.
    """
    words = f"dls: no word from other ranks at the {when} after {timeout:g} s of waiting (--timeout)"
    reader, writer = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, reader, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    watcher = os.posix_spawnp("sh", ["sh", "-c", WATCHER, "watcher", str(timeout), words], os.environ, file_actions=actions)
    os.close(reader)
    return watcher, writer


@contextmanager
def _watched(timeout: float, when: str) -> Iterator[None]:
    """Let this block take so many seconds at most."""
    watcher, writer = _watch(timeout, when)
    try:
        yield
    finally:
        os.close(writer)
        os.waitpid(watcher, 0)


@contextmanager
def _losses(what: str) -> Iterator[None]:
    """Tell the loss of a rank from the library's other errors."""
    try:
        yield
    except MPI.Exception as error:
        if error.Get_error_class() not in LOSSES:
            raise
        raise RankLost(f"{what}: a rank is lost") from None


class _Exchange:
    """What this rank has begun, or is about to: how to post it, and words for what it brings.

    `post` holds the buffers, and so keeps them alive until the end, which mpi4py's request does not.
    """

    def __init__(self, post: Callable[[], MPI.Request], what: str, comm: Comm) -> None:
        self.what, self._post, self._comm = what, post, comm
        self.posted = self.finished = math.nan
        self._request: MPI.Request | None = None
        self._error: Exception | None = None

    def post(self) -> None:
        """Hand it to the library; what the library refuses is raised where somebody waits."""
        self.posted = time.perf_counter()
        try:
            self._request = self._post()
        except Exception as error:
            self._request, self._error = MPI.REQUEST_NULL, error

    def complete(self) -> bool:
        """Test it, once it is posted; an error is raised where somebody waits."""
        try:
            complete = self._request is not None and bool(self._request.Test())
        except MPI.Exception as error:
            self._request, self._error = MPI.REQUEST_NULL, error
            complete = True
        if complete and math.isnan(self.finished):
            self.finished = time.perf_counter()
        return complete

    def wait(self) -> None:
        """See Pending."""
        self._comm.wait_for(self)
        if self._error is not None:
            with _losses(self.what):
                raise self._error


class _Mover:
    """Posts exchanges, in the order of their beginning, and moves them while Python computes.

    MPI moves data only while one of its functions is being called, and MPICH's post of a large message over a fast network lasts
    as long as the message travels. So a thread does both, when there is something new and every TICK seconds as long as anything
    is under way; where the library lets only one thread in, `begin` and `move` do. One lock keeps two threads from completing the
    same request.
    """

    def __init__(self) -> None:
        self._new: deque[_Exchange] = deque()
        self._under_way: list[_Exchange] = []
        self._lock, self._work, self._news = threading.Lock(), threading.Event(), threading.Event()
        self._threaded = MPI.Query_thread() == MPI.THREAD_MULTIPLE and MPI.COMM_WORLD.Get_size() > 1
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._stopped = False
        if self._threaded:
            self._thread.start()

    def begin(self, exchange: _Exchange) -> None:
        """Post this exchange, now or as soon as the thread gets to it, and look after it until it is complete."""
        self._new.append(exchange)
        self._news.set()
        self._work.set()
        if not self._threaded:
            self.move()

    def complete(self, exchange: _Exchange) -> bool:
        """Whether it is."""
        with self._lock:
            self._post()
            return exchange.complete()

    def move(self, wait: bool = True) -> None:
        """Give the library a chance; where another thread is at it, `wait` for that one to be done."""
        if not self._lock.acquire(blocking=wait):
            return
        try:
            self._post()
            for _ in range(TESTS):
                self._under_way = [exchange for exchange in self._under_way if not exchange.complete()]
            self._work.clear()
            if self._under_way or self._new or self._stopped:  # asked after the flag is down: nothing new is overlooked
                self._work.set()
        finally:
            self._lock.release()

    def stop(self) -> None:
        """Move nothing any more."""
        self._stopped = True
        self._work.set()
        if self._threaded:
            self._thread.join()

    def _post(self) -> None:
        self._news.clear()
        while self._new:
            exchange = self._new.popleft()
            exchange.post()
            self._under_way.append(exchange)

    def _run(self) -> None:
        while self._work.wait() and not self._stopped:
            self.move()
            self._news.wait(TICK)


class _RollCall:
    """Finds out which ranks are missing: whoever has waited too long asks all others, and who is waiting answers."""

    ASK, ANSWER = 1, 2

    def __init__(self, world: MPI.Comm) -> None:
        self._comm = world.Dup()
        self._sent: list[MPI.Request] = []

    def answer(self, what: str) -> None:
        """Tell those who ask that this rank waits for `what`."""
        while self._comm.Iprobe(tag=self.ASK):
            asking = MPI.Status()
            self._comm.recv(tag=self.ASK, status=asking)
            self._sent.append(self._comm.isend(what, dest=asking.Get_source(), tag=self.ANSWER))

    def missing(self, what: str) -> str:
        """One line that names the ranks that do not answer, and what those that do wait for if it is something else."""
        others = [rank for rank in range(self._comm.Get_size()) if rank != self._comm.Get_rank()]
        self._sent += [self._comm.isend(None, dest=rank, tag=self.ASK) for rank in others]
        answers: dict[int, str] = {}
        deadline = time.monotonic() + GRACE
        while len(answers) < len(others) and time.monotonic() < deadline:
            self.answer(what)
            if self._comm.Iprobe(tag=self.ANSWER):
                answered = MPI.Status()
                words = self._comm.recv(tag=self.ANSWER, status=answered)
                answers[answered.Get_source()] = words
            time.sleep(NAP)
        silent = [str(rank) for rank in others if rank not in answers]
        elsewhere = [f"rank {rank} waits for {theirs}" for rank, theirs in answers.items() if theirs != what]
        found = ([f"no word from rank{'s' * (len(silent) > 1)} {', '.join(silent)}"] if silent else []) + elsewhere
        return f"{what}: " + ("; ".join(found) or "all ranks wait, and nothing arrives")


def _flush() -> None:
    """Send off what this rank has said."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        _wait_until_read(stream.fileno())


def _wait_until_read(descriptor: int) -> None:
    """Return when the launcher has read what this rank wrote: it may drop what is left in the pipe of a rank that aborts."""
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return
    deadline, unread = time.monotonic() + LAST_WORDS, array.array("i", [1])
    while unread[0] and time.monotonic() < deadline:
        fcntl.ioctl(descriptor, termios.FIONREAD, unread)
        time.sleep(0.01)

