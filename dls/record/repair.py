"""Going on with the trace of a run that is resumed, and repairing what a killed writer left
behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from dls.record import environment, files, lock
from dls.record.lock import Lock
from dls.record.reader import begins, left_open, read, series
from dls.record.schema import GROUPS, Header, Trace, TraceError
from dls.record.writer import Writer

THEN = " → "
"""What stands between the environments of a run that went on elsewhere."""


def go_on(out: Path, step: int, header: Header) -> Writer:
    """Go on with a run's trace after `step`; what was recorded after it is dropped.

    TraceError, OSError.

    The last file is written anew, up to there. It takes the new rows too where the ranks are as
    many as before; otherwise a file of their own does.
    """
    kept: list[Path] = []
    for path in series(out):
        if begins(path) >= step > 0:
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
    """Remove a trace of later steps.

    OSError: with it there, nobody could tell which of the two is true.
    """
    try:
        path.unlink()
    except OSError as error:
        raise OSError(
            f"{path} is of steps that are done again, and cannot be removed: {files.reason(error)}"
        ) from None


def _inherited(old: Header, new: Header) -> dict[str, Any]:
    """What a trace that goes on keeps of its beginning: when it started, and all that wrote to it,
    in order.

    Where the beginning tells of its commit alone, and not of the sources, so does the whole.
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
