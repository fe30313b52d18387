"""Signals that ask a run to stop: an ordinary kill, Slurm's warning before the end of a job,
Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether a signal has asked this rank to stop, since this object exists. `made` is all that
    the first one changes.

    A second Ctrl-C raises KeyboardInterrupt, as Python does by default. As a context it leaves the
    signals to whoever had them before. Python hears signals in its main thread alone: elsewhere
    nothing asks.
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
        """Let a signal, also an earlier one, end this block with KeyboardInterrupt: it may wait for
        something without a limit.
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
