"""Continuing the trace of a resumed run, and repairing what a killed writer left behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dls.record import environment, files, lock
from dls.record.lock import Lock
from dls.record.reader import after_step, left_open, read, trace_files
from dls.record.schema import GROUPS, Header, Trace, TraceError
from dls.record.writer import Writer

THEN = " → "
"""What separates the environments of a run that went on elsewhere."""


def go_on(out: Path, step: int, header: Header) -> Writer:
    """Continue a run's trace after `step`; rows of later steps are dropped. TraceError, OSError.

    The last file is rewritten up to that step. With as many ranks as before it takes the new rows
    as well; otherwise they get a file of their own.
    """
    kept: list[Path] = []
    for path in trace_files(out):
        if after_step(path) >= step > 0:
            _drop(path)
        else:
            kept.append(path)
    if not kept:
        return Writer(out / "trace.h5", header)
    old = read(kept[-1], own=True)
    if old.header.layers["size"] != list(header.layers["size"]):
        raise TraceError(f"{old.path} is the trace of another model; move it away")
    if old.header.ranks != header.ranks:
        _rewrite(old, step, old.header).close()
        return Writer(out / f"trace-{step:08d}.h5", header)
    attributes = {**header.attributes, **_inherited(old.header, header)}
    columns = {column.name: column for column in (*old.header.columns, *header.columns)}
    return _rewrite(old, step, Header(attributes, header.layers, tuple(columns.values())))


def _drop(path: Path) -> None:
    """Remove a trace of later steps. OSError: otherwise two files would claim the same steps."""
    try:
        path.unlink()
    except OSError as error:
        raise OSError(
            f"{path} is of steps that are done again, and cannot be removed: {files.reason(error)}"
        ) from None


def _inherited(old: Header, new: Header) -> dict[str, Any]:
    """What a continued trace keeps of its beginning: its start, and what wrote to it, in order.

    If the beginning names its commit alone, and no sources, then so does the whole.
    """
    kept = {name: old.attributes[name] for name in ("started",) if name in old.attributes}
    for name in environment.NAMES:
        words = [*str(old.attributes.get(name, "")).split(THEN), str(new.attributes.get(name, ""))]
        kept |= {name: THEN.join(dict.fromkeys(filter(None, words)))} if any(words) else {}
    commits = [
        *str(old.attributes.get("commit", "")).split(),
        *str(new.attributes["commit"]).split(),
    ]
    before, now = (list(each.attributes.get("sources") or []) for each in (old, new))
    read = list(dict.fromkeys([*before, *now])) if before and now else []
    return kept | {"commit": " ".join(dict.fromkeys(commits)), "sources": read}


def repair(path: Path) -> str:
    """Make a trace that a killed writer left behind open in any viewer.

    Returns what there was to do. TraceError, OSError.
    """
    found = read(path)
    if not left_open(path):
        return f"{path} is in order, with {_extent(found)}"
    own = Lock()
    try:
        own.take(path.parent)
        if own.missing:
            raise TraceError(
                f"whether a run still writes {path} cannot be told here ({own.missing}); copy it"
                " and repair that"
            )
        found = read(path, own=True)
        _rewrite(found, None, found.header).close()
    except lock.InUse as error:
        raise TraceError(str(error)) from None
    finally:
        own.release()
    return f"{path} is repaired, with {_extent(found)}"


def _extent(found: Trace) -> str:
    return f"{len(found.steps['step'])} recorded steps"


def _rewrite(old: Trace, step: int | None, header: Header) -> Writer:
    """Write a trace anew, up to `step`, and let that take its place.

    The old one stays where this fails.
    """
    aside = files.aside(old.path)
    try:
        writer = Writer(aside, header)
        for group in GROUPS:
            kept = _until(step, old.group(group))
            if len(kept["step"]):
                there = {column.key for column in header.columns if column.group == group}
                writer.append(group, {name: kept[name] for name in kept.keys() & there})
        writer.rename(old.path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return writer


def _until(step: int | None, rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    kept = slice(None) if step is None else rows["step"] <= step
    return {name: column[kept] for name, column in rows.items()}
