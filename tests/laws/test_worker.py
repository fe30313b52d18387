"""The stopwatch of a training step."""

from __future__ import annotations

import time

import pytest
from dls.worker import Stopwatch


def test_work_of_a_device_counts_for_the_phase_that_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another phase interrupts it."""
    now, asked = 0.0, 0.0

    def wait() -> None:
        nonlocal now, asked
        now, asked = now + asked, 0.0

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    watch = Stopwatch(wait)
    with watch.phase("backward"):
        asked = 1.0
        with watch.phase("select"):
            asked = 2.0
        asked = 4.0
    assert [watch.seconds[name] for name in ("backward", "select", "update")] == [5.0, 2.0, 0.0]
