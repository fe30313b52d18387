"""What the figures of `dls.theory` say, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from dls.theory.errors import INNER
from dls.theory.properties import HALF
from dls.theory.rows import ErrorRow, FixedRow, RatioRow, RunRow, of_kind
from dls.tools.rows import Row

SAME = 1e-9
"""Forms whose errors differ by no more say the same."""


def sentences(rows: Sequence[Row]) -> list[str]:
    """Which form is nearest, over all pairs and over inner ones; whether the properties held."""
    errors = [row for row in of_kind(rows, ErrorRow) if row.pairs]
    lines = [_verdict(row) for row in errors if row.of == "all"]
    lines += [_verdict(row) for row in errors if row.name == INNER]
    lines += _diverged(of_kind(rows, RatioRow))
    fixed = of_kind(rows, FixedRow)
    return lines + (_properties(fixed, of_kind(rows, RunRow)) if fixed else [])


def nearest(row: ErrorRow) -> list[str]:
    """The form with the least error, or those that say the same as it."""
    least = min(error.mean for error in row.forms.values())
    return [form for form, error in row.forms.items() if error.mean <= least + SAME]


def _verdict(row: ErrorRow) -> str:
    means = {form: error.mean for form, error in row.forms.items()}
    best = nearest(row)
    others = [form for form in sorted(means, key=lambda form: means[form]) if form not in best]
    rest = "".join(f"; {form} {means[form]:.2f}" for form in others)
    when = "at initialisation" if row.step == 0 else f"after {row.step} steps"
    mean = f"off by {means[best[0]]:.2f} doublings on average over {row.pairs} pairs"
    return f"{row.name}, {when}: nearest is {' = '.join(best)}, {mean}{rest}"


def _diverged(ratios: Sequence[RatioRow]) -> list[str]:
    broken = dict.fromkeys((row.network, row.step) for row in ratios if row.loss is None)
    return [
        f"{network} diverged within {step} steps and is left out there: take a smaller --lr"
        for network, step in broken
    ]


def _properties(fixed: Sequence[FixedRow], runs: Sequence[RunRow]) -> list[str]:
    factors = [each for row in fixed for each in row.pair_factors if each is not None]
    factors += [each for row in runs for each in row.pair_factors if each is not None]
    largest = max(factors, default=0.0)
    done, grew = sum(row.adjustments for row in fixed), sum(row.grew for row in fixed)
    slower = sum(row.slower_than_half for row in fixed)
    equal = sum(row.equal_from is not None for row in fixed)
    return [
        f"Property 2 {_held(largest <= HALF)}: a pair kept at most {largest:.3f} of its difference"
        f" in {len(factors)} adjustments",
        f"Property 1 {_held(grew == 0)}: the set size grew in {grew} of {done} adjustments of a"
        f" gradient that stays, and {slower} left more than half of it; {equal} of {len(fixed)}"
        " gradients reached Global Top-k's choice for good",
    ]


def _held(holds: bool) -> str:
    return "held" if holds else "did NOT hold"
