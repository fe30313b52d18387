"""The speed of the latest steps.

An unusual step, such as the first one, which may include compilation, soon stops counting.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta

RECENT = 50
"""The number of steps that count."""


class Pace:
    """The speed of the latest steps, and the time until `total` steps at this speed."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._ends: deque[float] = deque(maxlen=RECENT + 1)
        self._step = 0

    def step(self, step: int, now: float) -> None:
        """Step number `step` ended at `now`, in seconds of any clock."""
        self._step = step
        self._ends.append(now)

    def speed(self) -> float:
        """Steps per second, evaluations and the like included; 0 before two steps have ended."""
        seconds = self._ends[-1] - self._ends[0] if self._ends else 0.0
        return (len(self._ends) - 1) / seconds if seconds > 0 else 0.0

    def left(self) -> str:
        """The time until the end, as 0:01:30; "" where it is unknown or over."""
        speed, steps = self.speed(), self._total - self._step
        return str(timedelta(seconds=round(steps / speed))) if speed and steps else ""

    def __str__(self) -> str:
        left = self.left()
        return (f"{self.speed():.1f} steps/s" if self.speed() else "") + (
            f", {left} left" if left else ""
        )
