"""Signals that ask a run to stop: kill, Slurm's warning before the end of a job, Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""The signals that ask a run to stop."""


class StopRequest:
    """Whether a signal has asked this rank to stop, since this object was made: `made`.

    A second Ctrl-C raises KeyboardInterrupt, as Python does by default. As a context manager it
    restores the signal handlers that it found. Python handles signals in its main thread only: in
    other threads `made` stays false.
    """

    def __init__(self) -> None:
        self.made = False
        self._interrupts = False
        self._before = {number: signal.getsignal(number) for number in ASKING}
        self._set(dict.fromkeys(ASKING, self._make))

    def __enter__(self) -> StopRequest:
        return self

    def __exit__(self, *_: object) -> None:
        self._set(self._before)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Let a signal, also an earlier one, raise KeyboardInterrupt in this block.

        The block may wait for something without a time limit.
        """
        self._interrupts = True
        try:
            if self.made:
                raise KeyboardInterrupt
            yield
        finally:
            self._interrupts = False

    def _set(self, handlers: dict[signal.Signals, Any]) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _make(self, number: int, frame: FrameType | None) -> None:
        self.made = True
        if self._interrupts:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
