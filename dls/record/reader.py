"""Reading traces: also while they are written, after their writer was killed, and damaged ones."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dls.exchange.columns import PER_LAYER, Column
from dls.record import files, hdf5, lock
from dls.record.lock import State
from dls.record.schema import (
    ATTRIBUTES,
    GROUPS,
    KNOWN,
    LAYER_FIELDS,
    LISTS,
    NAME,
    READ,
    WORDS,
    Header,
    Trace,
    TraceError,
)

ATTEMPTS = 40
"""How often a trace that is in use is read again where it looks damaged."""
PAUSE = 0.05
"""Seconds between two of these."""
MAGIC = b"\x89HDF\r\n\x1a\n"
"""How a file of HDF5 begins."""
MOST = 65_536
"""The most ranks, or layers, of a trace that is read."""


def trace_files(out: Path) -> list[Path]:
    """The trace files of a run's folder, in the order of their steps."""
    found = [path for path in out.glob("trace*.h5") if path.name == "trace.h5" or after_step(path)]
    return sorted(found, key=after_step)


def files_of(run: Path) -> list[Path]:
    """The trace files of a run's folder, or the one trace file itself. TraceError."""
    files = trace_files(run) if run.is_dir() else [run]
    if not files:
        raise TraceError(f"{run} holds no trace.h5; give the folder of a run")
    return files


def after_step(path: Path) -> int:
    """The step after which a trace file continues; 0 for trace.h5, and for any other name."""
    number = path.stem.removeprefix("trace-")
    return int(number) if number.isascii() and number.isdigit() and len(number) < 20 else 0


def read(path: Path, own: bool = False) -> Trace:
    """Read a trace, also one that is being written or whose writer was killed. TraceError.

    own: no other process writes to it. A file in the middle of being written looks damaged, and is
    read again. HDF5's SWMR mode for readers would do that as well, but it takes any damage for a
    writer's work in progress, and waits for ever.
    """
    for _ in range(0 if own else ATTEMPTS - 1):
        written = state(path)
        try:
            return _read_file(path)
        except TraceError:
            if written is State.FREE:
                raise
        time.sleep(PAUSE)
    return _read_file(path)


def _read_file(path: Path) -> Trace:
    """Read a trace as it is at this moment."""
    if not os.path.isfile(path):
        words = "it is no plain file" if os.path.exists(path) else "no such file"
        raise TraceError(f"{path}: {words}; a run's folder holds a trace.h5")
    try:
        if path.stat().st_size == 0:
            raise TraceError(
                f"{path} is empty: it was never written, or the disk was full; remove it and start"
                " its run again"
            )
        if _cut_short(path):
            raise TraceError(f"{path} is cut short; copy it again from where it was written")
        # through Python's own file HDF5 accepts one that a writer left marked as open
        with path.open("rb") as raw:
            hdf5.check_heaps(raw)
            with h5py.File(raw, "r") as file:
                return _parse(path, file)
    except TraceError:
        raise
    except OSError as error:
        raise TraceError(f"{path} cannot be read as HDF5: {files.reason(error)}") from None
    except KeyError as error:
        raise TraceError(f"{path} is not a trace of this program: {error.args[0]}") from None
    except hdf5.ERRORS as error:
        raise TraceError(f"{path} is damaged: {files.reason(error)}") from None


def state(path: Path) -> State:
    """Whether a running process has the trace's folder; a trace that was closed is free."""
    found = lock.state(path.parent)
    return State.FREE if found is State.UNKNOWN and not left_open(path) else found


def left_open(path: Path) -> bool:
    """Whether its writer has not closed it: bits 0 and 2 of a superblock's byte 11.

    HDF5 refuses to open such a file.
    """
    try:
        with files.open_plain(path) as file:
            head = file.read(12)
    except OSError:  # reading it will say why
        return False
    return head[:8] == MAGIC and head[8:9] == b"\3" and bool(head[11] & 5)


def _cut_short(path: Path) -> bool:
    """Whether the file ends before the end that its superblock states; HDF5 says so in a long text,
    or in SWMR mode waits.

    The end-of-file address stands at byte 28 of a superblock of version 2 or 3 with 8-byte offsets
    (HDF5 File Format, II.A).
    """
    with path.open("rb") as file:
        head = file.read(36)
    if len(head) < 10 or head[:8] != MAGIC or head[8] not in (2, 3) or head[9] != 8:
        return False
    return len(head) < 36 or int.from_bytes(head[28:36], "little") > path.stat().st_size


def _parse(path: Path, file: h5py.File) -> Trace:
    schema, size = _attribute(file, "schema"), path.stat().st_size
    if schema not in [f"{NAME}/{version}" for version in READ]:
        known = f"{NAME}/{READ[0]} to {READ[-1]}"
        raise TraceError(
            f"{path} has the schema {str(schema)[:40]!r}, and this program reads {known}"
            f"{_advice(file, schema)}"
        )
    found = {name: _attribute(file, name) for name in ATTRIBUTES}
    attributes = {
        name: value
        for name, value in found.items()
        if value is not None and (name in LISTS) == _is_texts(value)
    }
    ranks = attributes.get("world_size")
    if not isinstance(ranks, int) or not 1 <= ranks <= MOST:
        found_ranks = str(ranks)[:40]
        raise TraceError(
            f"{path} is not a trace of this program: its world_size is {found_ranks!r}"
        )
    layers = _layers(file, size)
    version = int(str(schema).rpartition("/")[2])
    header = Header(attributes, layers, (*KNOWN, *_of_method(file)))
    there = [column for column in header.columns if _is_there(file, column, version)]
    header = replace(header, columns=tuple(there))
    groups = {name: _rows(file, name, header, size) for name in GROUPS}
    return Trace(path, header, **groups)


def _of_method(file: h5py.File) -> Iterator[Column]:
    """The columns of `steps` that are the method's own, as their shapes tell."""
    known = {column.name for column in KNOWN}
    for key in file["steps"] if _is_own_group(file, "steps") else ():
        name = f"steps/{key}"
        stored = file["steps"].get(key, getlink=True)
        if name in known or key == "seconds" or not isinstance(stored, h5py.HardLink):
            continue
        found = file[name]
        if isinstance(found, h5py.Dataset) and found.dtype.kind in "if" and 1 <= found.ndim <= 3:
            kind = np.int64 if found.dtype.kind == "i" else np.float64
            unit, meaning = (str(_attribute(found, each) or "") for each in ("units", "comment"))
            axes = PER_LAYER[: found.ndim]
            yield Column(name, axes, kind, unit, meaning, since=1, optional=True)


def _is_there(file: h5py.File, column: Column, version: int) -> bool:
    """Whether the file has the column, or must have it."""
    if not column.optional and column.since <= version:
        return True
    if file.get(column.group, getlink=True) is None:
        return False
    return not _is_own_group(file, column.group) or column.key in file[column.group]


def _is_own_group(file: h5py.File, name: str) -> bool:
    """Whether the file has a group of that name, which lies in this very file."""
    link = file.get(name, getlink=True)
    return isinstance(link, h5py.HardLink) and isinstance(file[name], h5py.Group)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _advice(file: h5py.File, schema: Any) -> str:
    """What to do about a trace of another schema."""
    if not re.fullmatch(r"dls-trace/[0-9]+", str(schema)):
        return "; give the trace.h5 of a run"
    version = _attribute(file, "version")
    return "; look at it with the version of this program that wrote it" + (
        f", {str(version)[:40]}" if version else ""
    )


def _attribute(file: h5py.HLObject, name: str) -> Any:
    """A text, a number or a list of them, as Python's own; None where it is missing, or anything
    else.
    """
    if name not in file.attrs:
        return None
    stored = file.attrs.get_id(name)
    text = h5py.check_string_dtype(stored.dtype) is not None
    if (
        len(stored.shape) > 1
        or max(stored.shape, default=1) > MOST
        or not (text or stored.dtype.kind in "iuf")
    ):
        return None
    value = file.attrs[name]
    if isinstance(value, np.ndarray):
        return [_text(item) if text else item for item in value.tolist()]
    return _text(value) if text else value.item()


def _layers(file: h5py.File, size: int) -> dict[str, list[Any]]:
    """A column for each field of the layers, with one entry a layer."""
    columns: dict[str, list[Any]] = {name: _texts(file, f"layers/{name}", size) for name in WORDS}
    for name in LAYER_FIELDS:
        if name not in WORDS:
            columns[name] = _column(file, f"layers/{name}", (), size)[()].tolist()
    if (
        len({len(column) for column in columns.values()}) != 1
        or min(columns["size"], default=0) < 1
    ):
        raise KeyError("its layers are not described")
    return columns


def _texts(file: h5py.File, name: str, size: int) -> list[str]:
    """A column of texts, one by one: all may refer to the same long one."""
    stored = hdf5.dataset(file, name, size)
    if stored.ndim != 1 or len(stored) > MOST or h5py.check_string_dtype(stored.dtype) is None:
        raise KeyError(f"{name} is no list of texts")
    texts: list[str] = []
    for row in range(len(stored)):
        texts.append(_text(stored[row]))
        size -= len(texts[-1])
        if size < 0:
            raise KeyError(f"{name} claims more than the file can hold")
    return texts


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _column(file: h5py.File, name: str, row: tuple[int, ...], size: int) -> h5py.Dataset:
    """A dataset of numbers whose rows have that shape; KeyError for anything else."""
    stored = hdf5.dataset(file, name, size)
    if stored.ndim != 1 + len(row) or stored.dtype.kind not in "iuf":
        raise KeyError(f"{name} is no table of numbers with {1 + len(row)} dimensions")
    if stored.shape[1:] != row:
        raise KeyError(f"{name} has rows of {stored.shape[1:]}, not of {row}")
    return stored


def _rows(file: h5py.File, group: str, header: Header, size: int) -> dict[str, NDArray[Any]]:
    """A group's columns, cut to the rows that are complete.

    A writer may be between two columns, or have met a full disk. What the file has no column of
    counts as not recorded.
    """
    there = {column for column in header.columns if column.group == group}
    stored = {
        column: _column(file, column.name, column.row_shape(header.sizes), size) for column in there
    }
    complete = _complete(group, {column.key: each for column, each in stored.items()})
    rows: dict[str, NDArray[Any]] = {}
    for column in (*(each for each in KNOWN if each.group == group), *there):
        if column in stored:
            rows[column.key] = stored[column][:complete].astype(column.kind, copy=False)
        else:
            shape = (complete, *column.row_shape(header.sizes))
            rows[column.key] = np.full(shape, column.missing, column.kind)
    return rows


def _complete(group: str, columns: Mapping[str, h5py.Dataset]) -> int:
    """How many rows all columns have, up to the first whose step is out of order."""
    if "step" not in columns:
        return 0
    claimed = min(column.shape[0] for column in columns.values())
    steps = columns["step"][:claimed].astype(np.int64)
    least = 0 if group == "messages" else 1
    ascending = np.diff(steps, prepend=least - 1) >= least
    return claimed if ascending.all() else int(ascending.argmin())
