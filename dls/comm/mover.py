"""Progress of MPI operations while Python computes.

MPI moves data only while one of its functions is being called.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from dls.comm.mpi import MPI, losses

TICK = 0.002
"""Seconds between progress calls."""
TESTS = 16
"""MPI_Test calls per progress call. Over TCP one call receives at most 64 KiB."""


class Posted:
    """An operation that is or will be posted, as one request or several.

    post: posts it. It refers to the buffers and so keeps them alive until the end, which mpi4py's
    requests do not. what: describes it in messages. posted, finished: time.perf_counter when it was
    handed to MPI, and when it was complete; NaN before.
    """

    def __init__(self, post: Callable[[], Sequence[MPI.Request]], what: str) -> None:
        self.what, self._post = what, post
        self.posted = self.finished = math.nan
        self._requests: Sequence[MPI.Request] | None = None
        self._error: Exception | None = None

    def post(self) -> None:
        """Hand it to MPI. `done` raises an error that occurs here."""
        self.posted = time.perf_counter()
        try:
            self._requests = self._post()
        except Exception as error:
            self._requests, self._error = [], error

    def test(self) -> bool:
        """Whether it is complete; this also makes progress. `done` raises errors."""
        try:
            complete = self._requests is not None and all(
                request.Test() for request in self._requests
            )
        except MPI.Exception as error:
            self._requests, self._error = [], error
            complete = True
        if complete and math.isnan(self.finished):
            self.finished = time.perf_counter()
        return complete

    def done(self) -> bool:
        """Whether a test has found it complete. Raises the error of one that failed."""
        if math.isnan(self.finished):
            return False
        if self._error is not None:
            with losses(self.what):
                raise self._error
        return True


class Mover:
    """Posts operations in order, and makes progress on them while Python computes.

    Posting a large message may take MPICH as long as the message travels. So a thread posts
    operations, and calls MPI every TICK seconds while any of them is incomplete. If the library
    supports only one thread, `begin` and `move` do this instead. A lock keeps two threads from
    completing the same request.
    """

    def __init__(self) -> None:
        self._new: deque[Posted] = deque()
        self._under_way: list[Posted] = []
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._news = threading.Event()
        self._threaded = MPI.Query_thread() == MPI.THREAD_MULTIPLE and MPI.COMM_WORLD.Get_size() > 1
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._stopped = False
        if self._threaded:
            self._thread.start()

    def begin(self, posted: Posted) -> None:
        """Post an operation, now or soon on the thread, and make progress until it is complete."""
        self._new.append(posted)
        self._news.set()
        self._work.set()
        if not self._threaded:
            self.move()

    def move(self, wait: bool = True, tests: int = TESTS) -> None:
        """Make progress. wait: if another thread does so, wait until it has finished."""
        if not self._lock.acquire(blocking=wait):
            return
        try:
            self._post()
            for _ in range(tests):  # a test of one operation makes progress on all of them
                if self._under_way and self._under_way[0].test():
                    self._under_way.pop(0)
            self._under_way = [posted for posted in self._under_way if not posted.test()]
            self._work.clear()
            if self._under_way or self._new or self._stopped:  # after clear: nothing is missed
                self._work.set()
        finally:
            self._lock.release()

    def stop(self) -> None:
        """Stop the thread."""
        self._stopped = True
        self._work.set()
        if self._threaded:
            self._thread.join()

    def _post(self) -> None:
        self._news.clear()
        while self._new:
            posted = self._new.popleft()
            posted.post()
            self._under_way.append(posted)

    def _run(self) -> None:
        while self._work.wait() and not self._stopped:
            self.move()
            self._news.wait(TICK)
