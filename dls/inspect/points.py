"""What the figures show, as numbers: a table with a row for each point, of each run for itself."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dls.exchange import clock
from dls.inspect.groups import Group
from dls.inspect.panels import STEP, Column
from dls.inspect.series import Closest, Series
from dls.inspect.summary import summarise
from dls.record import files

HEADS = ("figure", "group", "run", "method", "seed", "part", "x", "y", "x_name", "y_name")
"""part: the layer, the phase, or what else a figure shows of one run beside each other; x_name and
y_name with the units.
"""
Point = tuple[Any, ...]
BYTES = {
    "sent": "bytes_per_step",
    "received": "received_bytes_per_step",
    "ring Allreduce": "ring_bytes_per_step",
}


def _point(
    figure: str, group: Group, run: Series, part: str, x: Any, y: Any, x_name: str, y_name: str
) -> Point:
    return (
        figure,
        group.label,
        run.run["path"],
        run.run["method"],
        run.run["seed"],
        part,
        x,
        y,
        x_name,
        y_name,
    )


def of_curves(groups: Sequence[Group], column: Column) -> Iterator[Point]:
    """Each run's own curve, at the steps that are drawn."""
    for group in groups:
        steps, values = group.values(column.table, column.y.name, column.table == "steps")
        x = np.tile(steps, (len(values), 1)).astype(np.float64)
        if column.x != STEP:
            x = column.x.factor * group.values(column.table, column.x.name)[1]
        for run, places, heights in zip(group.runs, x, column.y.factor * values, strict=True):
            for place, height in zip(places.tolist(), heights.tolist(), strict=True):
                yield _point(
                    column.figure, group, run, "", place, height, column.x.label, column.y.label
                )


def of_layers(group: Group, figure: str, name: str, label: str) -> Iterator[Point]:
    """Each run's own curve of each layer."""
    steps, values = group.values("steps", name)
    for run, rows in zip(group.runs, values, strict=True):
        for layer, heights in zip(run.layers["name"], rows.T.tolist(), strict=True):
            for step, height in zip(steps.tolist(), heights, strict=True):
                yield _point(figure, group, run, layer, step, height, STEP.label, label)


def of_bytes(groups: Sequence[Group]) -> Iterator[Point]:
    """Bytes of a rank in a mean step; x counts the groups."""
    for row, group in enumerate(groups):
        for run in group.runs:
            traffic = summarise(run).traffic
            for part, name in BYTES.items():
                yield _point(
                    "bytes",
                    group,
                    run,
                    part,
                    row,
                    traffic[name],
                    "group",
                    "bytes of a rank in a step",
                )


def of_times(groups: Sequence[Group]) -> Iterator[Point]:
    """Milliseconds of each phase; x counts the groups."""
    for row, group in enumerate(groups):
        for run in group.runs:
            for phase, seconds in summarise(run).timing["seconds"].items():
                yield _point("time", group, run, phase, row, 1e3 * seconds, "group", "time (ms)")


def of_timeline(group: Group, closest: Closest, rank: int) -> Iterator[Point]:
    """Begin, as x, and end, as y, of each layer's phases."""
    run = group.runs[-1]
    for layer, begins, ends in zip(
        run.layers["name"], closest.begin[rank], closest.end[rank], strict=True
    ):
        for phase, begin, end in zip(clock.OF_LAYERS, begins.tolist(), ends.tolist(), strict=True):
            part = f"{phase} of {layer}"
            yield _point(
                f"timeline-{rank}",
                group,
                run,
                part,
                1e3 * begin,
                1e3 * end,
                "begin (ms)",
                "end (ms)",
            )


def write(rows: Iterable[Point], path: Path) -> None:
    """The table as CSV, in UTF-8; a cell is empty where there is no number. OSError."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADS)
    for row in rows:
        table.writerow("" if cell is None or cell != cell else _plain(cell) for cell in row)
    files.write_text(path, text.getvalue())


def _plain(cell: Any) -> Any:
    """What comes from a trace is no formula to the program that opens the table, and no second
    line.
    """
    if not isinstance(cell, str):
        return cell
    words = files.one_line(cell)
    return f"'{words}" if words.startswith(("=", "+", "-", "@")) else words
