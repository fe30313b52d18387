"""Watching runs that still go on."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live

from dls.inspect import figures
from dls.inspect.formats import written
from dls.inspect.groups import by_seed, labels
from dls.inspect.reading import load
from dls.inspect.run import Run
from dls.inspect.summary import Summary, summarise
from dls.inspect.tables import comparison, over_time, time_of_a_step
from dls.program import output
from dls.record import reader
from dls.record.files import one_line
from dls.record.lock import State

EVERY = 1.0
"""Seconds between two looks; more where a look takes long."""
SHOWN = ("step", "loss", "accuracy", "set_size", "global_share", "total_ms")
"""The figures of a plain line."""


def follow(paths: Sequence[Path], console: Console) -> None:
    """Show runs as long as one of them goes on, or may go on.

    On a terminal: tables that change; elsewhere: a line for what is new. TraceError where one
    cannot be read.
    """
    if not console.is_terminal:
        _lines(paths, console)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        for runs in _looks(paths):
            live.update(Group(*_tables(runs)), refresh=True)


def _looks(paths: Sequence[Path]) -> Iterator[list[Run]]:
    """The runs as they are, again and again, and once more when the last writer is gone.

    It ends when nobody reads the output any more.
    """
    going_on = True
    while going_on and output.heard():
        began = time.monotonic()
        going_on = any(
            reader.state(file) is not State.FREE for path in paths for file in reader.files_of(path)
        )
        yield [load(path) for path in paths]
        if going_on:
            time.sleep(max(EVERY, 4 * (time.monotonic() - began)))


def _tables(runs: Sequence[Run]) -> list[RenderableType]:
    if len(runs) > 1:
        return comparison(by_seed(runs))
    summary = summarise(runs[0])
    head = f"{summary.run.path}: {_line(summary)}"
    if summary.timing is None:
        return [head]
    return [head, "", *over_time(summary), *time_of_a_step(summary.timing)]


def _lines(paths: Sequence[Path], console: Console) -> None:
    """Print a line for each run in which something is new."""
    names = labels([str(path) for path in paths])
    beginnings = [f"{name}: " for name in names] if len(paths) > 1 else [""]
    printed = [""] * len(paths)
    for runs in _looks(paths):
        for i, run in enumerate(runs):
            line = one_line(beginnings[i] + _line(summarise(run)))
            if line != printed[i]:
                console.out(line, highlight=False)
                printed[i] = line
        console.file.flush()


def _line(summary: Summary) -> str:
    if not summary.recorded:
        return "nothing recorded yet"
    known = figures.of_run(summary)
    return ", ".join(
        f"{name.replace('_', ' ')} {written(name, known[name])}"
        for name in SHOWN
        if known.get(name) is not None
    )
