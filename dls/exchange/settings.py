"""Settings as fields of dataclasses, for command lines, TOML files and programs.

Each field states its text, unit, range and choices once.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

Integers = tuple[int, ...]
"""A setting of several whole numbers."""
CountOrOptimal = int | Literal["optimal"]
"""A setting that is a whole number or the word optimal."""
Field = dataclasses.Field[Any]
"""A setting, as dataclasses describe it."""

LARGEST = 1e12
"""The upper limit of all counts."""

METHOD_GROUP = "method"
"""The group of the methods' settings in help and documentation."""


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may take: low <= x <= high, without the ends that are open."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def holds(self, x: float) -> bool:
        """Whether x is one of them; NaN never is."""
        above = x > self.low if self.low_open else x >= self.low
        return above and (x < self.high if self.high_open else x <= self.high)

    def __str__(self) -> str:
        left = (
            f"{'(' if self.low_open else '['}{_number(self.low)}"
            if self.low > -math.inf
            else "(-inf"
        )
        right = (
            f"{_number(self.high)}{')' if self.high_open else ']'}"
            if self.high < math.inf
            else "inf)"
        )
        return f"{left}, {right}"

    def words(self) -> str:
        """For help texts: "at least 1", "in (0, 1]"."""
        if self.high < LARGEST:
            return f"in {self}"
        return f"above {_number(self.low)}" if self.low_open else f"at least {_number(self.low)}"


def _number(limit: float) -> str:
    return f"{limit:.10g}"


POSITIVE = Range(1, LARGEST)
"""Whole numbers from 1."""
COUNT = Range(0, LARGEST)
"""Whole numbers from 0."""
NOT_NEGATIVE = Range(0)
"""Numbers from 0."""


def setting(
    default: Any,
    text: str,
    *,
    group: str = METHOD_GROUP,
    metavar: str = "",
    unit: str = "",
    allowed: Range | None = None,
    choices: Callable[[], Sequence[str]] | None = None,
    fixed: bool = False,
    of: str = "",
    idle_with: Mapping[str, Callable[[Any], bool]] = MappingProxyType({}),
) -> Any:
    """A field of a frozen dataclass of settings.

    text: what the setting does, for help and documentation. group: its heading there. metavar:
    stands for the value in help, such as FILE; by default it follows from the type. choices: a
    function, as the names come from registries that grow. fixed: a resumed run cannot change it.
    of: the setting ("method", "model" or "dataset") whose value decides whether this one has an
    effect. idle_with: other settings, each with a function that tells from its value whether this
    setting has no effect.
    """
    metadata = {
        "text": text,
        "group": group,
        "metavar": metavar,
        "unit": unit,
        "allowed": allowed,
        "choices": choices,
        "fixed": fixed,
        "of": of,
        "idle_with": idle_with,
    }
    return field(default=default, metadata=metadata)


class SettingError(ValueError):
    """A value that a setting cannot take; its text is one clear line."""


def flag(name: str) -> str:
    """A setting's flag on the command line."""
    return "--" + name.replace("_", "-")


def fields_of(settings: type) -> dict[str, tuple[Field, Any]]:
    """The fields of a dataclass of settings, each with its type, by name."""
    types = typing.get_type_hints(settings)
    return {each.name: (each, types[each.name]) for each in dataclasses.fields(settings)}


def build(settings: type, values: Mapping[str, Any]) -> Any:
    """An instance with these values, each converted and checked.

    SettingError for a bad value or an unknown name.
    """
    known = fields_of(settings)
    if unknown := [name for name in values if name not in known]:
        names = ", ".join(known) or "none"
        raise SettingError(f"there is no setting {unknown[0]!r} here; there are {names}")
    return settings(
        **{name: parse(name, *known[name], value, shown=str) for name, value in values.items()}
    )


def parse(
    name: str, its_field: Field, kind: Any, value: Any, shown: Callable[[str], str] = flag
) -> Any:
    """A TOML value, a flag's text or a program's value, converted to the setting's type.

    shown: how the name is written in messages. SettingError for a value of another type, or one
    that is not allowed.
    """
    try:
        converted = _convert(kind, value)
    except (TypeError, ValueError, OverflowError):
        raise SettingError(f"{shown(name)} {show(value)}: expected {type_words(kind)}") from None
    _check(name, its_field, converted, shown)
    return converted


def _convert(kind: Any, value: Any) -> Any:
    """The value in the type `kind`. TypeError, ValueError or OverflowError where it has none."""
    value = value.item() if isinstance(value, np.generic) else value
    if kind == Integers:
        items = value.replace("x", ",").split(",") if isinstance(value, str) else value
        return tuple(_convert(int, item) for item in items)
    if kind == CountOrOptimal:
        return value if value == "optimal" else _convert(int, value)
    accepted = {bool: bool, int: int | str, float: float | int | str, str: str}[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise TypeError
    if isinstance(value, str) and "\0" in value.encode().decode():
        raise ValueError  # no file has such a name; encode refuses lone surrogates, too
    return kind(value)


def type_words(kind: Any) -> str:
    """What values of a type look like, for messages."""
    if kind == Integers:
        return "whole numbers such as 128,64"
    if kind == CountOrOptimal:
        return "a whole number or 'optimal'"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}[kind]


def _check(name: str, its_field: Field, value: Any, shown: Callable[[str], str]) -> None:
    allowed: Range | None = its_field.metadata["allowed"]
    choices = its_field.metadata["choices"]
    if choices is not None and value not in choices():
        raise UnknownChoice(name, str(value), choices())
    if allowed is None or value == "optimal":
        return
    for number in value if isinstance(value, tuple) else (value,):
        if not allowed.holds(number) or number in (math.inf, -math.inf):
            raise SettingError(f"{shown(name)} {show(number)} is outside {allowed}")


class UnknownChoice(SettingError):
    """A value that is not among a setting's choices."""

    def __init__(self, name: str, value: str, choices: Sequence[str]) -> None:
        super().__init__(
            f"unknown {name.replace('_', ' ')} '{value}': choose one of {', '.join(choices)}"
        )
        self.name, self.value, self.choices = name, value, choices

    def __reduce__(self) -> Any:
        """Pickles as its arguments: it is sent between ranks."""
        return UnknownChoice, (self.name, self.value, self.choices)


def show(value: Any) -> str:
    """A setting's value as a user types it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and value.bit_length() > 1024:
        return "a number of very many digits"  # Python refuses to print it
    return "none" if value == "" else str(value)
