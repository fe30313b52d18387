"""Few cases for many factors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any

Choice = tuple[int, int]
"""A factor, and which of its values."""
Pair = tuple[Choice, Choice]


def pairwise(*factors: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Cases, each with a value of every factor, in which every two values of two factors meet.

    Each begins with a pair still missing; factor by factor the value comes to it that brings
    most of the others. The work grows with the pairs, not with the product of all factors.
    """
    choices = [[(number, i) for i in range(len(values))] for number, values in enumerate(factors)]
    if len(choices) < 2:
        return [(value,) for values in factors for value in values]
    both = combinations(choices, 2)
    missing = dict.fromkeys(pair for one, other in both for pair in product(one, other))
    cases = []
    while missing:
        case = _case(choices, missing)
        for pair in combinations(case, 2):
            missing.pop(pair, None)
        cases.append(tuple(factors[number][i] for number, i in case))
    return cases


def _case(choices: Sequence[Sequence[Choice]], missing: dict[Pair, None]) -> list[Choice]:
    """A choice of every factor, in their order."""
    one, other = next(iter(missing))
    case = {one[0]: one, other[0]: other}
    for of_factor in sorted(choices, key=len, reverse=True):
        number = of_factor[0][0]
        if number not in case:
            case[number] = max(of_factor, key=lambda each: _brings(each, case, missing))
    return [case[number] for number in range(len(choices))]


def _brings(choice: Choice, case: dict[int, Choice], missing: dict[Pair, None]) -> int:
    """How many missing pairs a choice makes with those of a case."""
    return sum((min(choice, other), max(choice, other)) in missing for other in case.values())
