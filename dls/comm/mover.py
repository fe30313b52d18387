"""What moves messages while Python computes: MPI does so only inside its own functions."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from dls.comm.mpi import MPI, losses

TICK = 0.002
"""Seconds between two moves of what is under way."""
TESTS = 16
"""How often each move tests it: over TCP one test takes in 64 KiB at most."""


class Posted:
    """What this rank has begun, or is about to: how to post it, as one request or several, and
    words for what it brings.

    `post` holds the buffers, and so keeps them alive until the end, which mpi4py's request does
    not. posted, finished: time.perf_counter when the library had it, and had completed it; NaN
    before.
    """

    def __init__(self, post: Callable[[], Sequence[MPI.Request]], what: str) -> None:
        self.what, self._post = what, post
        self.posted = self.finished = math.nan
        self._requests: Sequence[MPI.Request] | None = None
        self._error: Exception | None = None

    def post(self) -> None:
        """Hand it to the library; what the library refuses is raised where somebody asks."""
        self.posted = time.perf_counter()
        try:
            self._requests = self._post()
        except Exception as error:
            self._requests, self._error = [], error

    def test(self) -> bool:
        """Whether it is complete; once it is posted, the library moves it.

        An error is raised where somebody asks.
        """
        try:
            complete = self._requests is not None and all(
                [request.Test() for request in self._requests]
            )
        except MPI.Exception as error:
            self._requests, self._error = [], error
            complete = True
        if complete and math.isnan(self.finished):
            self.finished = time.perf_counter()
        return complete

    def done(self) -> bool:
        """Whether it has been found complete. Raises what went wrong."""
        if math.isnan(self.finished):
            return False
        if self._error is not None:
            with losses(self.what):
                raise self._error
        return True


class Mover:
    """Posts exchanges, in the order of their beginning, and moves them while Python computes.

    MPI moves data only while one of its functions is being called, and MPICH's post of a large
    message over a fast network lasts as long as the message travels. So a thread does both, when
    there is something new and every TICK seconds as long as anything is under way; where the
    library lets only one thread in, `begin` and `move` do. One lock keeps two threads from
    completing the same request.
    """

    def __init__(self) -> None:
        self._new: deque[Posted] = deque()
        self._under_way: list[Posted] = []
        self._lock, self._work, self._news = threading.Lock(), threading.Event(), threading.Event()
        self._threaded = MPI.Query_thread() == MPI.THREAD_MULTIPLE and MPI.COMM_WORLD.Get_size() > 1
        self._thread = threading.Thread(target=self._run, name="progress", daemon=True)
        self._stopped = False
        if self._threaded:
            self._thread.start()

    def begin(self, posted: Posted) -> None:
        """Post this, now or as soon as the thread gets to it, and look after it until it is
        complete.
        """
        self._new.append(posted)
        self._news.set()
        self._work.set()
        if not self._threaded:
            self.move()

    def move(self, wait: bool = True, tests: int = TESTS) -> None:
        """Give the library a chance; where another thread is at it, `wait` for that one to be
        done.
        """
        if not self._lock.acquire(blocking=wait):
            return
        try:
            self._post()
            for _ in range(tests):
                self._under_way = [posted for posted in self._under_way if not posted.test()]
            self._work.clear()
            if (
                self._under_way or self._new or self._stopped
            ):  # asked after the flag is down: nothing new is overlooked
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
            posted = self._new.popleft()
            posted.post()
            self._under_way.append(posted)

    def _run(self) -> None:
        while self._work.wait() and not self._stopped:
            self.move()
            self._news.wait(TICK)
