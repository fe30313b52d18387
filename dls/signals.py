"""Signals that ask a run to stop: an ordinary kill, Slurm's warning before the end of a job, Ctrl-C."""

from __future__ import annotations

import signal
from types import FrameType

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Whether a signal has asked this rank to stop, since this object exists. `made` is all that the first one changes.

    A second Ctrl-C raises KeyboardInterrupt, as Python does by default.
    """

    def __init__(self) -> None:
        self.made = False
        for number in ASKING:
            signal.signal(number, self._make)

    def _make(self, number: int, frame: FrameType | None) -> None:
        self.made = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
