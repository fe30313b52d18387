"""How a step's time is measured: seconds of each phase, and a timeline of the layers."""

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
"""The phases of a step. `exposed`: waiting for the network; `diagnostics`: not part of the step."""
OF_LAYERS = ("backward", "select", "exchange", "decode")
"""The phases of a timeline.

backward ends with the layer's complete gradient; exchange lasts from the posting of its message to
its completion, whether or not the rank waited for it.
"""


class Timeline:
    """Begin and end of each phase of each layer (L, phases), in seconds since the step began.

    NaN stands for a phase that did not take place. Layers that share a bucket share its times.
    """

    def __init__(self, layers: int, started: float) -> None:
        self.begin = np.full((layers, len(OF_LAYERS)), np.nan)
        self.end = np.full((layers, len(OF_LAYERS)), np.nan)
        self._started = started

    def note(self, phase: str, layers: range, begin: float, end: float) -> None:
        """Record a phase of these layers, between two readings of time.perf_counter."""
        here = slice(layers.start, layers.stop), OF_LAYERS.index(phase)
        self.begin[here], self.end[here] = begin - self._started, end - self._started


class Clock:
    """Seconds of each phase of a step; a phase inside another interrupts the outer one.

    wait: returns when a device has finished its work. timeline: of the present step, where one was
    asked for. `started`: time.perf_counter when the step began.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        self._wait = wait
        self.restart()

    def restart(self, timeline_of: int = 0) -> None:
        """Begin a step; timeline_of: record a timeline of so many layers, 0: none."""
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._running: list[str] = []
        self.started = self._since = time.perf_counter()
        self.timeline = Timeline(timeline_of, self.started) if timeline_of else None

    @contextmanager
    def phase(self, name: str, layers: range = range(0)) -> Iterator[None]:
        """Count the time of this block as that phase, of these layers."""
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
        """Record a phase of these layers in the timeline, if there is one."""
        if self.timeline:
            self.timeline.note(name, layers, begin, end)

    def layer_done(self, layer: int) -> None:
        """End the running phase for this layer in the timeline; it continues for others."""
        if self.timeline and self._running:
            begin = self._since
            self._book()
            self.timeline.note(self._running[-1], range(layer, layer + 1), begin, self._since)

    def stop(self) -> None:
        """End the step: `total` is its wall time without the diagnostics."""
        self.seconds["total"] = time.perf_counter() - self.started - self.seconds["diagnostics"]

    def _book(self) -> None:
        self._wait()  # otherwise a device's work would count where its result is first needed
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
