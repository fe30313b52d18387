"""Few cases for many factors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any


def pairwise(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases, each with a value of every factor, in which every two values of two factors meet.

    Of all cases the one that has the most pairs still missing is next.
    """
    cases = list(product(*(range(len(values)) for values in factors)))
    pairs = {case: set(combinations(enumerate(case), 2)) for case in cases}
    missing, chosen = set().union(*pairs.values()), []
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs[case] & missing)))
        missing -= pairs[chosen[-1]]
    return [tuple(values[i] for values, i in zip(factors, case, strict=True)) for case in chosen]
