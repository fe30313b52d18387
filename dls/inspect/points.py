"""What the figures show, as numbers: a table with a row for each point of each run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from dls.exchange import clock
from dls.inspect.curves import STEP, CurveFigure, LayerFigure
from dls.inspect.groups import Group
from dls.inspect.run import Run, Timeline
from dls.inspect.summary import summarise
from dls.record import files


@dataclass(frozen=True)
class Point:
    """A point of a figure.

    part: the layer, the phase, or what else a figure shows of one run beside each other. x_name and
    y_name: with their units.
    """

    figure: str
    group: str
    run: str
    method: Any
    seed: Any
    part: str
    x: Any
    y: Any
    x_name: str
    y_name: str


HEADS = tuple(field.name for field in fields(Point))
"""The heads of the table."""


@dataclass(frozen=True)
class Source:
    """What the points of a run have in common: where they come from, and what they show."""

    figure: str
    group: Group
    run: Run
    x_name: str
    y_name: str

    def point(self, part: str, x: Any, y: Any) -> Point:
        """A point of the run."""
        about = self.run.about
        return Point(
            figure=self.figure,
            group=self.group.label,
            run=about.path,
            method=about.method,
            seed=about.seed,
            part=part,
            x=x,
            y=y,
            x_name=self.x_name,
            y_name=self.y_name,
        )


def of_curves(groups: Sequence[Group], figure: CurveFigure) -> Iterator[Point]:
    """Each run's own curve, at the steps that are drawn."""
    for group in groups:
        steps, values = group.values(figure.table, figure.y.name, figure.table == "steps")
        x = np.tile(steps, (len(values), 1)).astype(np.float64)
        if figure.x != STEP:
            x = figure.x.factor * group.values(figure.table, figure.x.name)[1]
        y = figure.y.factor * values
        for run, of_x, of_y in zip(group.runs, x.tolist(), y.tolist(), strict=True):
            source = Source(figure.name, group, run, figure.x.label, figure.y.label)
            for each in zip(of_x, of_y, strict=True):
                yield source.point("", *each)


def of_layers(group: Group, figure: LayerFigure) -> Iterator[Point]:
    """Each run's own curve of each layer."""
    steps, values = group.values("steps", figure.y.name)
    for run, rows in zip(group.runs, values, strict=True):
        source = Source(figure.name, group, run, STEP.label, figure.y.label)
        for layer, curve in zip(run.layers["name"], rows.T.tolist(), strict=True):
            for step, y in zip(steps.tolist(), curve, strict=True):
                yield source.point(layer, step, y)


def of_bytes(groups: Sequence[Group]) -> Iterator[Point]:
    """Bytes of a rank in a mean step; x counts the groups."""
    for row, group in enumerate(groups):
        for run in group.runs:
            traffic = summarise(run).traffic
            if traffic is None:
                continue
            source = Source("bytes", group, run, "group", "bytes of a rank in a step")
            yield source.point("sent", row, traffic.bytes_per_step)
            yield source.point("received", row, traffic.received_bytes_per_step)
            yield source.point("ring Allreduce", row, traffic.ring_bytes_per_step)


def of_times(groups: Sequence[Group]) -> Iterator[Point]:
    """Milliseconds of each phase; x counts the groups."""
    for row, group in enumerate(groups):
        for run in group.runs:
            timing = summarise(run).timing
            source = Source("time", group, run, "group", "time (ms)")
            for phase, seconds in timing.seconds.items() if timing else ():
                yield source.point(phase, row, 1e3 * seconds)


def of_timeline(group: Group, timeline: Timeline, rank: int) -> Iterator[Point]:
    """Begin, as x, and end, as y, of each layer's phases."""
    run = group.runs[-1]
    source = Source(f"timeline-{rank}", group, run, "begin (ms)", "end (ms)")
    begin, end = 1e3 * timeline.begin[rank], 1e3 * timeline.end[rank]
    for layer, begins, ends in zip(run.layers["name"], begin.tolist(), end.tolist(), strict=True):
        for phase, *times in zip(clock.OF_LAYERS, begins, ends, strict=True):
            yield source.point(f"{phase} of {layer}", *times)


def write(rows: Iterable[Point], path: Path) -> None:
    """The table as CSV, in UTF-8; a cell is empty where there is no number. OSError."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(HEADS)
    for row in rows:
        table.writerow(plain(cell) for cell in astuple(row))
    files.write_text(path, text.getvalue())


def plain(cell: Any) -> Any:
    """A cell that is no formula to the program that opens the table, and has one line.

    "" where there is no number.
    """
    if cell is None or cell != cell:
        return ""
    if not isinstance(cell, str):
        return cell
    words = files.one_line(cell)
    return f"'{words}" if words.startswith(("=", "+", "-", "@")) else words
