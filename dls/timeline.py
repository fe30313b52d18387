"""When one training step did what for each layer."""

from __future__ import annotations

import numpy as np

PHASES = ("backward", "select", "exchange", "decode")
"""backward: up to the layer's complete gradient; exchange: from posted to complete, whether or not anybody waited for it."""


class Timeline:
    """Begin and end of each phase for each layer (L, phases), in seconds since the step began; NaN for what it left out.

    Layers that leave together have one time.
    """

    def __init__(self, layers: int, started: float) -> None:
        self.begin = np.full((layers, len(PHASES)), np.nan)
        self.end = np.full((layers, len(PHASES)), np.nan)
        self._started = started

    def note(self, phase: str, layers: range, begin: float, end: float) -> None:
        """A phase of these layers lasted from one reading of the clock to another."""
        here = slice(layers.start, layers.stop), PHASES.index(phase)
        self.begin[here], self.end[here] = begin - self._started, end - self._started
