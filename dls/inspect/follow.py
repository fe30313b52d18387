"""Watching runs that still go on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live

from dls.inspect.groups import by_seed, labels
from dls.inspect.series import Series, files_of, load
from dls.inspect.summary import Summary, single_figures, summarise, written
from dls.inspect.tables import comparison, over_time, time_of_a_step
from dls.program import output
from dls.record import reader
from dls.record.files import one_line
from dls.record.lock import State

EVERY = 1.0
"""Seconds between two looks; more where a look takes long."""
TOLD = ("step", "loss", "accuracy", "set_size", "global_share", "total_ms")
"""The figures of a plain line."""


def follow(paths: Sequence[Path], console: Console) -> None:
    """Show runs while one of them goes on, or may: tables that change on a terminal, a line for
    what is new elsewhere.

    TraceError where one cannot be read.
    """
    if not console.is_terminal:
        _lines(paths, console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for runs in _looks(paths):
            live.update(Group(*_tables(runs)), refresh=True)


def _looks(paths: Sequence[Path]) -> Iterator[list[Series]]:
    """The runs as they are, again and again; once more when the last writer is gone.

    No more when nobody reads.
    """
    going_on = True
    while going_on and output.heard():
        began = time.monotonic()
        going_on = any(
            reader.state(file) is not State.FREE for path in paths for file in files_of(path)
        )
        yield [load(path) for path in paths]
        if going_on:
            time.sleep(max(EVERY, 4 * (time.monotonic() - began)))


def _tables(runs: Sequence[Series]) -> list[RenderableType]:
    if len(runs) > 1:
        return comparison(by_seed(runs))
    summary = summarise(runs[0])
    head = f"{summary.run['path']}: {_line(summary)}"
    return [head, "", *over_time(summary), *time_of_a_step(summary)] if summary.recorded else [head]


def _lines(paths: Sequence[Path], console: Console) -> None:
    names, said = labels([str(path) for path in paths]), [""] * len(paths)
    for runs in _looks(paths):
        for i, run in enumerate(runs):
            line = one_line(f"{names[i]}: " * (len(paths) > 1) + _line(summarise(run)))
            if line != said[i]:
                console.out(line, highlight=False)
                said[i] = line
        console.file.flush()


def _line(summary: Summary) -> str:
    if not summary.recorded:
        return "nothing recorded yet"
    figures = single_figures(summary)
    return ", ".join(
        f"{name.replace('_', ' ')} {written(name, figures[name])}"
        for name in TOLD
        if figures.get(name) is not None
    )
