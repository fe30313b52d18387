"""Options of command lines: lists, numbers in a range, and options that several tools have."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from dls import backends
from dls.cli import UsageError

T = TypeVar("T")
Number = TypeVar("Number", int, float)
Convert = Callable[[str], T]
"""Makes a value of an option's text. ValueError for a text that it cannot read."""

LARGEST = 2**31 - 1
"""The largest whole number that an option takes."""


# Types of options ---------------------------------------------------------------------------------


def list_of(convert: Convert[T], words: str) -> Convert[list[T]]:
    """An option's type: values with commas between them, each kept once.

    words: what is expected, for the error.
    """

    def parse(text: str) -> list[T]:
        try:
            return list(dict.fromkeys(convert(item.strip()) for item in text.split(",")))
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text}: expected {words}") from None

    return parse


def number(
    kind: Callable[[str], Number], holds: Callable[[Number], bool], words: str
) -> Convert[Number]:
    """An option's type: a number for which `holds` is true. words: what is expected."""

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: expected {words}") from None
        if not holds(value):
            raise argparse.ArgumentTypeError(f"{text}: expected {words}")
        return value

    return parse


def one_of(names: Sequence[str]) -> Convert[str]:
    """An option's type: one of these names. ValueError for another."""

    def parse(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return parse


positive = number(int, lambda n: 1 <= n <= LARGEST, "a whole number from 1 up")
"""A whole number from 1 up."""
count = number(int, lambda n: 0 <= n <= LARGEST, "a whole number from 0 up")
"""A whole number from 0 up."""
density = number(float, lambda share: 0 < share <= 1, "a number in (0, 1]")
"""A share of the gradient."""
rate = number(float, lambda x: 0 < x < math.inf, "a number above 0")
"""A learning rate."""
seconds = number(float, lambda x: 0 <= x < math.inf, "a number from 0 up")
"""A time; 0 for none."""


def size(text: str) -> int:
    """A number of values, from 1 up. ValueError."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def threads(text: str) -> int:
    """A number of threads that this machine has cores for."""
    cores = core_count()
    if not 1 <= int(text) <= cores:
        raise argparse.ArgumentTypeError(f"{text} is outside [1, {cores}], the number of cores")
    return int(text)


def core_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


# Options that several tools have ------------------------------------------------------------------


class Group(Protocol):
    """What options are added to: a parser, or a group of its options."""

    @property
    def add_argument(self) -> Callable[..., Any]:
        """As argparse has it."""
        ...


def add_list(
    group: Group, flag: str, convert: Convert[T], default: Sequence[T], metavar: str, words: str
) -> None:
    """Add an option that takes a list, and says what it takes unless told otherwise."""
    shown = ",".join(f"{each:g}" if isinstance(each, float) else str(each) for each in default)
    group.add_argument(
        flag,
        type=list_of(convert, words),
        default=list(default),
        metavar=f"{metavar},…",
        help=f"{words} (default {shown})",
    )


def add_number(
    group: Group, flag: str, convert: Convert[T], default: T, metavar: str, words: str
) -> None:
    """Add an option that takes one number, and says what it is unless told otherwise."""
    group.add_argument(
        flag,
        type=convert,
        default=default,
        metavar=metavar,
        help=f"{words} (default %(default)s)",
    )


def add_densities(group: Group, default: Sequence[float] = (0.01, 0.001)) -> None:
    """Add --densities."""
    add_list(group, "--densities", density, default, "X", "shares of the gradient that are sent")


def add_batch(group: Group, flag: str = "--batch", default: int = 32) -> None:
    """Add the number of images in a mini-batch."""
    add_number(group, flag, positive, default, "N", "images in a mini-batch of one rank")


def add_backend(group: Group) -> None:
    """Add --backend."""
    group.add_argument(
        "--backend",
        choices=backends.names(),
        default=backends.default(),
        help="compute backend (default %(default)s)",
    )


def add_thread_counts(group: Group) -> None:
    """Add --threads, a list of numbers of threads, each of which is measured."""
    default = sorted({1, min(2, core_count())})
    add_list(group, "--threads", threads, default, "N", "numbers of threads")
