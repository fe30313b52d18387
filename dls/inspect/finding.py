"""Finding runs: those that are named, and all below a folder that is not a run itself."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from dls.inspect.reading import load
from dls.inspect.run import Run
from dls.record import reader
from dls.record.files import one_line
from dls.record.schema import TraceError


def find(paths: Sequence[Path]) -> list[tuple[Path, bool]]:
    """Runs, in the order of their names below each path, and whether each was named itself.

    TraceError where there is none.
    """
    return [each for path in paths for each in _find(path)]


def _find(path: Path) -> list[tuple[Path, bool]]:
    if not path.is_dir() or reader.trace_files(path):
        return [(path, True)]
    below = [(folder, False) for folder in _below(path)]
    if not below:
        raise TraceError(
            f"{path} holds no trace.h5, and no folder below it does; give the folder of a run, or"
            " of several"
        )
    return below


def _below(path: Path) -> Iterator[Path]:
    """The folders of runs; neither the inside of a run's folder nor hidden folders are searched."""
    seen: set[str] = set()
    for folder, names, _ in os.walk(path, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:
            names.clear()
            continue
        seen.add(real)
        if reader.trace_files(Path(folder)):
            names.clear()
            yield Path(folder)
        names[:] = sorted(name for name in names if not name.startswith("."))


def load_all(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs, and why others that were found below a folder are left out.

    TraceError for one that was named, or for all.
    """
    runs, skipped = [], []
    for path, was_named in find(paths):
        try:
            runs.append(load(path))
        except TraceError as error:
            if was_named:
                raise
            skipped.append(one_line(str(error)))
    if not runs:
        raise TraceError(f"of the {len(skipped)} runs there none can be read: {skipped[0]}")
    return runs, skipped
