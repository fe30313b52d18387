"""The clock of a training step."""

from __future__ import annotations

import time

import pytest

from dls.exchange.clock import Clock


def test_work_of_a_device_counts_for_the_phase_that_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where another phase interrupts it."""
    now, asked = 0.0, 0.0

    def wait() -> None:
        nonlocal now, asked
        now, asked = now + asked, 0.0

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    clock = Clock(wait)
    with clock.phase("backward"):
        asked = 1.0
        with clock.phase("select"):
            asked = 2.0
        asked = 4.0
    assert [clock.seconds[name] for name in ("backward", "select", "update")] == [5.0, 2.0, 0.0]
