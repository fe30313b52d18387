"""How fast the last steps went.

A step unlike the others, as the first one, which may compile, is soon forgotten.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta

RECENT = 50
"""Steps that count."""


class Pace:
    """The speed of the last steps of `total`, and the time that the others need at this speed."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._ends: deque[float] = deque(maxlen=RECENT + 1)
        self._step = 0

    def step(self, step: int, now: float) -> None:
        """This step has ended, at so many seconds of any clock."""
        self._step = step
        self._ends.append(now)

    def speed(self) -> float:
        """Steps a second, with what came between them; 0 where it is not known, before two steps
        have ended.
        """
        seconds = self._ends[-1] - self._ends[0] if self._ends else 0.0
        return (len(self._ends) - 1) / seconds if seconds > 0 else 0.0

    def left(self) -> str:
        """The time until the end, as 0:01:30; empty where it is not known or nothing is left."""
        speed, steps = self.speed(), self._total - self._step
        return str(timedelta(seconds=round(steps / speed))) if speed and steps else ""

    def __str__(self) -> str:
        left = self.left()
        return (f"{self.speed():.1f} steps/s" if self.speed() else "") + (
            f", {left} left" if left else ""
        )
