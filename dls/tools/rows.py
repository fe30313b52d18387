"""Typed rows of measurements, and the one place where they become JSON and are read back.

A row is a frozen dataclass that inherits from `Row`. A field has a name for the code and, where
that differs, a title for JSON and for the head of a table's column:

    @dataclass(frozen=True)
    class StepRow(Row):
        method: str
        step_ms: Annotated[float, Title("step, ms")]
        against_dense: Annotated[float | None, Title("step / dense")] = None

A field whose default is None is left out of the JSON where it is None.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Self, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Title:
    """A field's name in JSON and at the head of a column."""

    text: str


@dataclass(frozen=True)
class Spread:
    """Marks a field that holds a mapping whose entries stand in the JSON object itself.

    An entry that is a number stands under its name; one that is a row of class `kind` has its
    columns under `NAME, TITLE`, and the column without a title under NAME.
    """

    names: tuple[str, ...]
    kind: type[Row] | None = None


class Row:
    """One row of a measurement: a frozen dataclass that becomes a JSON object."""

    def to_json(self) -> dict[str, Any]:
        """The row by its titles, in the order of its fields."""
        record: dict[str, Any] = {}
        for column in columns_of(type(self)):
            value = getattr(self, column.name)
            if column.spread:
                record |= _spread(value or {})
            elif value is not None or not column.may_be_left_out:
                record[column.title] = value
        return record

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The row of a JSON object. KeyError for a title that is missing and has no default."""
        values: dict[str, Any] = {}
        for column in columns_of(cls):
            if column.spread:
                values[column.name] = _gathered(column.spread, record)
            elif column.title in record:
                values[column.name] = record[column.title]
            elif not column.has_default:
                raise KeyError(column.title)
        given = {each.name for each in dataclasses.fields(cls) if each.init}  # type: ignore[arg-type]
        return cls(**{name: value for name, value in values.items() if name in given})


@dataclass(frozen=True)
class Column:
    """A field of a row class, and how it stands in JSON."""

    name: str
    title: str
    spread: Spread | None
    has_default: bool
    may_be_left_out: bool


def columns_of(kind: type[Row]) -> tuple[Column, ...]:
    """The columns of a row class, in order."""
    hints = get_type_hints(kind, include_extras=True)
    return tuple(_column(each, hints[each.name]) for each in dataclasses.fields(kind))  # type: ignore[arg-type]


def _column(field: dataclasses.Field[Any], hint: Any) -> Column:
    marks = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    title = next((mark.text for mark in marks if isinstance(mark, Title)), field.name)
    spread = next((mark for mark in marks if isinstance(mark, Spread)), None)
    factory = field.default_factory is not dataclasses.MISSING
    has_default = factory or field.default is not dataclasses.MISSING
    return Column(field.name, title, spread, has_default, field.default is None)


def _spread(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a mapping that stands in its row."""
    record: dict[str, Any] = {}
    for name, entry in entries.items():
        if isinstance(entry, Row):
            columns = entry.to_json().items()
            record |= {_joined(name, title): value for title, value in columns}
        else:
            record[name] = entry
    return record


def _gathered(spread: Spread, record: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping that stands in a row's JSON object; names that are not there are left out."""
    entries: dict[str, Any] = {}
    for name in spread.names:
        if name not in record:
            continue
        if spread.kind is None:
            entries[name] = record[name]
        else:
            titles = [column.title for column in columns_of(spread.kind)]
            own = {title: record[_joined(name, title)] for title in titles}
            entries[name] = spread.kind.from_json(own)
    return entries


def _joined(name: str, title: str) -> str:
    return f"{name}, {title}" if title else name
