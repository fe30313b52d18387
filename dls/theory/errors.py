"""How far the theory's predictions are off."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dls.theory.forms import FORMS
from dls.theory.rows import ErrorRow, FormError, RatioRow

INNER = "inner"
"""The place of pairs that have no other: neither first nor last, and with no other kernel, stride,
pooling or batch norm.
"""
BATCH_NORM = "batch norm"
"""The place of pairs with batch norm in front of the second layer."""


def error(measured: float, predicted: float) -> float:
    """|log2(measured / predicted)|: by how many doublings a prediction is off.

    0 is exact, 1 a factor of two either way.
    """
    return abs(math.log2(measured / predicted))


def summarise(ratios: Sequence[RatioRow]) -> Iterator[ErrorRow]:
    """Yield the errors after each number of steps: of all pairs, of those of each network, of each
    two kinds of layers, and in each place.

    Eq. 8 speaks of conv2d to conv2d, Eq. 9 of linear to linear, neither of conv2d to linear.
    """
    for step in dict.fromkeys(row.step for row in ratios):
        rows = [row for row in ratios if row.step == step]
        yield errors(step, "all", "all pairs", rows)
        for network in dict.fromkeys(row.network for row in rows):
            yield errors(step, "network", network, [r for r in rows if r.network == network])
        for kinds in dict.fromkeys(row.kinds for row in rows):
            yield errors(step, "kinds", kinds, [row for row in rows if row.kinds == kinds])
        for place, there in _by_place(rows).items():
            yield errors(step, "place", place, there)


def errors(step: int, of: str, name: str, ratios: Sequence[RatioRow]) -> ErrorRow:
    """The errors of all forms over these pairs; those that have no measured ratio do not count."""
    known = [row for row in ratios if row.measured is not None]
    noise = [row.log2_error for row in known if row.log2_error is not None]
    return ErrorRow(
        step=step,
        of=of,
        name=name,
        pairs=len(known),
        noise=float(np.mean(noise)) if noise else None,
        forms={form: _form_error(form, known) for form in FORMS} if known else {},
    )


def _form_error(form: str, known: Sequence[RatioRow]) -> FormError:
    pairs = [(row.measured or 0.0, row.predicted[form]) for row in known]
    off = [error(measured, predicted) for measured, predicted in pairs]
    worst = known[int(np.argmax(off))]
    logarithms = [math.log2(measured / predicted) for measured, predicted in pairs]
    return FormError(
        mean=float(np.mean(off)),
        factor=float(2 ** np.mean(logarithms)),
        worst=f"{worst.network} {worst.layer}",
        worst_by=max(off),
    )


def _by_place(rows: Sequence[RatioRow]) -> Mapping[str, Sequence[RatioRow]]:
    """The pairs in each place, inner ones first.

    A pair counts in each place that it has; with batch norm `other kernel` and the like are places
    of their own.
    """
    places: dict[str, list[RatioRow]] = {INNER: []}
    for row in rows:
        for place in row.where or [INNER]:
            apart = BATCH_NORM in row.where and place != BATCH_NORM
            places.setdefault(f"{place}, {BATCH_NORM}" if apart else place, []).append(row)
    return {name: there for name, there in places.items() if there}
