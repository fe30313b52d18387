"""What ranks say to each other: the only home of mpi4py.

Gradients travel in non-blocking collectives on buffers. Small things at start-up travel as Python objects.
"""

from __future__ import annotations

import array
import fcntl
import os
import stat
import sys
import termios
import time
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

T = TypeVar("T")
LAST_WORDS = 2.0
"""Seconds that a failing rank gives the launcher to read what it said, before it ends the run."""


class Pending(Protocol):
    """An exchange under way."""

    def wait(self) -> None:
        """Return when the exchange is complete and its result buffers hold what they should."""


class Comm:
    """This rank's place in the world. `sent_bytes` counts every byte given to MPI to send in a step, each once."""

    def __init__(self) -> None:
        self._world = MPI.COMM_WORLD
        self.rank: int = self._world.Get_rank()
        self.size: int = self._world.Get_size()
        self.host: str = MPI.Get_processor_name()
        self.sent_bytes = 0
        self._requests: list[MPI.Request] = []

    def ranks_on_node(self) -> int:
        """How many ranks share this rank's machine."""
        node = self._world.Split_type(MPI.COMM_TYPE_SHARED)
        size: int = node.Get_size()
        node.Free()
        return size

    def allgatherv(self, payload: NDArray[np.uint8], sizes: Sequence[int]) -> tuple[Pending, list[NDArray[np.uint8]]]:
        """Begin to give every rank every rank's bytes.

        payload: this rank's bytes; sizes (P): the bytes of each rank's message, known to all. Returns the pending exchange and
        the P messages, to be read once it is complete.
        """
        if payload.dtype != np.uint8 or payload.size != sizes[self.rank]:
            raise ValueError(f"rank {self.rank} announced {sizes[self.rank]} bytes and has {payload.nbytes}")
        received = np.empty(sum(sizes), dtype=np.uint8)
        request = self._world.Iallgatherv([payload, MPI.BYTE], [received, list(sizes), MPI.BYTE])
        self.sent_bytes += payload.nbytes
        return self._track(request), np.split(received, np.cumsum(sizes)[:-1])

    def allgather(self, values: NDArray[Any]) -> tuple[Pending, NDArray[Any]]:
        """Begin to give every rank every rank's array, of one shape on all ranks; the result has a leading axis P."""
        received = np.empty((self.size, *values.shape), dtype=values.dtype)
        request = self._world.Iallgather(np.ascontiguousarray(values), received)
        self.sent_bytes += values.nbytes
        return self._track(request), received

    def allreduce(self, values: NDArray[np.float32], total: NDArray[np.float32]) -> Pending:
        """Begin the library's Allreduce: the sum over the ranks lands in `total`, with the same bits on all ranks."""
        request = self._world.Iallreduce(values, total, op=MPI.SUM)
        self.sent_bytes += values.nbytes
        return self._track(request)

    def _track(self, request: MPI.Request) -> Pending:
        self._requests.append(request)
        return _Request(request)

    def progress(self) -> None:
        """Let the library move what is under way; MPI does little while Python computes."""
        self._requests = [request for request in self._requests if not request.Test()]

    def gather(self, values: NDArray[Any]) -> NDArray[Any] | None:
        """On rank 0 every rank's array, of one shape on all ranks, with a leading axis P; None elsewhere. For the trace."""
        received = np.empty((self.size, *values.shape), dtype=values.dtype) if self.rank == 0 else None
        self._world.Gather(np.ascontiguousarray(values), received, root=0)
        return received

    def allgather_objects(self, value: T) -> list[T]:
        """Every rank's object, in rank order. For start-up and the like, never inside a step."""
        return self._world.allgather(value)

    def from_rank_0(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, on all ranks; raises on all ranks what it raises there. `make` must not communicate."""
        own = self.together(lambda: make() if self.rank == 0 else None)
        result: T = self._world.bcast(own, root=0)
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
        for failure in self._world.allgather(error):
            if failure is not None:
                raise failure
        own: T = result
        return own

    def abort(self, status: int) -> NoReturn:
        """End every rank at once with this exit status, without the library's own words on this rank's stderr."""
        try:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
                _wait_until_read(stream.fileno())
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            self._world.Abort(status)
        finally:
            os._exit(status)  # MPICH's Abort comes back while the others are being ended


def _wait_until_read(descriptor: int) -> None:
    """Return when the launcher has read what this rank wrote: it may drop what is left in the pipe of a rank that aborts."""
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return
    deadline, unread = time.monotonic() + LAST_WORDS, array.array("i", [1])
    while unread[0] and time.monotonic() < deadline:
        fcntl.ioctl(descriptor, termios.FIONREAD, unread)
        time.sleep(0.01)


class _Request:
    """A pending exchange of this library."""

    def __init__(self, request: MPI.Request) -> None:
        self._request = request

    def wait(self) -> None:
        self._request.Wait()
