"""The processes of a study: a number of runs at a time, until all are done or the study is asked
to stop.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from dls.cli import UsageError
from dls.program import signals
from dls.record import lock
from dls.record.files import one_line, reason
from dls.record.lock import State
from dls.study.experiments import Experiment

STOPPED = os.EX_TEMPFAIL
"""The exit status of a run, and of a study, that was asked to stop and can go on."""
ELSEWHERE = 1000
"""Stands for the exit status of a run that was not started, as another process has its folder; no
process ends with it.
"""


class Stop:
    """Whether the study is to stop, and the launchers to tell. Threads share it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal may come while the main thread holds it
        self._launchers: set[subprocess.Popen[bytes]] = set()
        self.made = False

    def make(self, number: int = signal.SIGTERM, frame: FrameType | None = None) -> None:
        """Start no further run, and ask those under way to stop with a checkpoint.

        It is also a signal's handler.
        """
        with self._lock:
            self.made = True
            for launcher in self._launchers:
                launcher.send_signal(signal.SIGUSR1)  # every mpirun passes it to its ranks

    def run(self, command: Sequence[str], log: Path) -> int:
        """Run a command to its end; its output is added to a file.

        Returns its exit status, STOPPED where it was not started any more. It runs in a session of
        its own, so that a terminal's Ctrl-C reaches the study alone, which passes it on once.
        """
        with log.open("ab") as file:
            with self._lock:
                if self.made:
                    return STOPPED
                file.write(f"$ {shlex.join(command)}\n".encode())
                file.flush()
                launcher = _launch(command, file)
                self._launchers.add(launcher)
            try:
                return launcher.wait()
            finally:
                with self._lock:
                    self._launchers.discard(launcher)

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """Within the with block Ctrl-C, SIGTERM and SIGUSR1 stop the study."""
        before = {number: signal.signal(number, self.make) for number in signals.ASKING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _launch(command: Sequence[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )


def last_words(log: Path) -> str:
    """The last line in the log that the run itself wrote since it was last started.

    A killed run may have written none, and mpirun many.
    """
    since = log.read_text(encoding="utf-8", errors="replace").rpartition("\n$ ")[2]
    own = [line for line in since.splitlines() if line.startswith("dls.train: ")]
    return one_line(own[-1]) if own else "it said nothing of its own"


def perform(experiment: Experiment, out: Path, stop: Stop) -> int:
    """Run it, or go on with it, to its end; its output goes to a file beside its folder.

    Returns its exit status, ELSEWHERE where another process has its folder. UsageError where it
    cannot be started.
    """
    log = out / f"{experiment.name}.log"
    if lock.state(out / experiment.name) is State.HELD:
        return ELSEWHERE
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return stop.run(experiment.command(out), log)
    except OSError as error:
        raise UsageError(
            f"cannot start {experiment.name}: {error.filename or log}: {reason(error)}"
        ) from None


def run_all(
    runs: Sequence[Experiment], out: Path, jobs: int, stop: Stop
) -> Iterator[tuple[Experiment, int]]:
    """Yield each run with its exit status, as they end.

    Runs that a stop kept from ending, or from starting, are left out. A run that somebody else
    asked to stop stops the study, as does an error in starting a run or in the caller.
    """
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_unless_stopped, each, out, stop): each for each in runs}
        try:
            for future in as_completed(waiting):
                if (status := future.result()) != STOPPED:
                    yield waiting[future], status
        except BaseException:
            stop.make()
            raise


def _unless_stopped(experiment: Experiment, out: Path, stop: Stop) -> int:
    """Perform a run in a thread of the pool.

    The thread takes the next run at once, so whatever stops the study must be noted here.
    """
    if stop.made:
        return STOPPED
    try:
        status = perform(experiment, out, stop)
    except BaseException:
        stop.make()
        raise
    if status == STOPPED and not stop.made:
        stop.make()
    # A run that was only starting dies of the request to stop; it can go on as well.
    return STOPPED if status and stop.made else status
