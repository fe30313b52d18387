"""The short form of `make chaos`."""

from __future__ import annotations

from tests.chaos import disturb


def test_nothing_is_lost_whatever_happens() -> None:
    report = disturb(3, seed=8)
    assert not report.problems
    assert report.equal == report.runs > 0
    assert report.survived == report.faults
    assert report.faults.total() >= 3
