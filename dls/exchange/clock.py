"""What a step's time is spent on: seconds of each phase, and when each layer had its turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

PHASES = (
    "forward",
    "backward",
    "select",
    "exchange",
    "decode",
    "update",
    "adjust",
    "exposed",
    "diagnostics",
)
"""What a step's time is divided into. `exposed`: the rank stood waiting for the network;
`diagnostics`: not part of the step.
"""
OF_LAYERS = ("backward", "select", "exchange", "decode")
"""The phases of a timeline. backward: up to the layer's complete gradient; exchange: from posted to
complete, whether or not anybody waited for it."""


class Timeline:
    """Begin and end of each phase for each layer (L, phases), in seconds since the step began; NaN
    for what it left out.

    Layers that leave together have one time.
    """

    def __init__(self, layers: int, started: float) -> None:
        self.begin = np.full((layers, len(OF_LAYERS)), np.nan)
        self.end = np.full((layers, len(OF_LAYERS)), np.nan)
        self._started = started

    def note(self, phase: str, layers: range, begin: float, end: float) -> None:
        """A phase of these layers lasted from one reading of the clock to another."""
        here = slice(layers.start, layers.stop), OF_LAYERS.index(phase)
        self.begin[here], self.end[here] = begin - self._started, end - self._started


class Clock:
    """Seconds of each phase of a step; a phase inside another interrupts it.

    wait: returns when what was asked of a device is done. timeline: where somebody wants to know
    when each layer had its turn. `started`: time.perf_counter when the step began.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self._wait = wait
        self.restart()

    def restart(self, timeline_of: int = 0) -> None:
        """A step begins; with a timeline of so many layers."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._running: list[str] = []
        self.started = self._since = time.perf_counter()
        self.timeline = Timeline(timeline_of, self.started) if timeline_of else None

    @contextmanager
    def phase(self, name: str, layers: range = range(0)) -> Iterator[None]:
        """Book the time of this block to a phase, here of these layers."""
        self._book()
        self._running.append(name)
        begin = self._since
        try:
            yield
        finally:
            self._book()
            self._running.pop()
        if layers:
            self.note(name, layers, begin, self._since)

    def note(self, name: str, layers: range, begin: float, end: float) -> None:
        """For the timeline: a phase of these layers, between two readings of the clock."""
        if self.timeline:
            self.timeline.note(name, layers, begin, end)

    def layer_done(self, layer: int) -> None:
        """The phase that is running is over for this layer, and goes on with others."""
        if self.timeline and self._running:
            begin = self._since
            self._book()
            self.timeline.note(self._running[-1], range(layer, layer + 1), begin, self._since)

    def stop(self) -> None:
        """The step is over: `total` is its wall time without the diagnostics."""
        self.seconds["total"] = time.perf_counter() - self.started - self.seconds["diagnostics"]

    def _book(self) -> None:
        self._wait()  # else the work would count for whoever asks for its result
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
