"""Contenders that take turns, so that whatever else the machine does meets them alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

Input = TypeVar("Input")
Result = TypeVar("Result")

WARM_UP = 4
"""Turns that do not count: in them code is compiled, first thresholds and buffers are found, and
the residual fills with what was not sent.
"""


def numbers(steps: int) -> range:
    """The numbers of the turns that are taken, from 0, for so many that count."""
    return range(WARM_UP + steps)


def take(
    contenders: Mapping[str, Callable[[Input], Result]],
    inputs: Iterable[Input],
    warm_up: int | None = None,
) -> dict[str, list[Result]]:
    """Give each input to every contender in turn; return what came back, without the warm-up.

    inputs: one for each of `numbers`. warm_up: turns that do not count, WARM_UP unless told
    otherwise.
    """
    taken: dict[str, list[Result]] = {name: [] for name in contenders}
    for each in inputs:
        for name, turn in contenders.items():
            taken[name].append(turn(each))
    return {
        name: results[WARM_UP if warm_up is None else warm_up :] for name, results in taken.items()
    }


def median(seconds: Sequence[float]) -> float:
    """The median of the turns that count."""
    return float(np.median(seconds))
