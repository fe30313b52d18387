"""How numbers are written for people."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

MISSING = "-"
"""What stands in a table where there is no number."""


def cell(value: Any) -> str:
    """A table's cell: three digits of a float, thousands apart in a whole number given as text."""
    if isinstance(value, str) and value.isdigit():
        return f"{int(value):,}"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def or_missing(value: Any) -> Any:
    """The value, or MISSING for None."""
    return MISSING if value is None else value


def spread(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None of a single value."""
    return stdev(values) if len(values) > 1 else None


def plus_minus(middle: float, width: float | None, form: str) -> str:
    """`middle ± width`, the middle as `form` says and the width with two decimals.

    The width is left out where it is None.
    """
    return f"{middle:{form}}" + ("" if width is None else f" ± {width:.2f}")


def percent(shares: Sequence[float]) -> str:
    """The mean of shares in percent, ± their standard deviation where there are several."""
    values = [100 * share for share in shares]
    return plus_minus(fmean(values), spread(values), ".2f")
