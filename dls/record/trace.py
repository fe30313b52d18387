"""A run's trace, HDF5 with schema dls-trace/1: written while the run goes on, readable at any time (SWMR).

trace.h5 holds a run from its first step on, and trace-STEP.h5 goes on after that step where another number of ranks took over.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dls.exchange import clock
from dls.program import environment, lock
from dls.program.lock import Lock, State
from dls.record import files, hdf5

if TYPE_CHECKING:
    from dls.comm.base import Comm
    from dls.exchange.exchanger import Diagnosis, Row

SCHEMA = "dls-trace/1"
FLUSH_ROWS = 50
"""Recorded steps that may be lost with a killed process."""
ATTRIBUTES = (
    *("config", "version", "commit", "sources", "world_size", "backend", "seed", "hosts", "started", "data"),
    *environment.NAMES,
)
LISTS = ("sources", "hosts")
"""Those that are lists of texts; the others are a text or a number."""
WORDS = ("name", "kind")
THEN = " → "
"""What stands between the environments of a run that went on elsewhere."""
LAYER_FIELDS = ("kind", "size", "inputs", "outputs", "kernel", "positions")
SECONDS = ("forward", "backward", "select", "exchange", "decode", "update", "adjust", "exposed", "total")
ATTEMPTS, PAUSE = 40, 0.05
"""How often a trace that is in use is looked at again, and the seconds in between."""
MAGIC = b"\x89HDF\r\n\x1a\n"
"""How a file of HDF5 begins."""
ADDED, ADDED_COLUMN = "diagnostics", "steps/received_bytes"
"""The group, and the column, that older traces of this schema do not have."""
UNKNOWN = -1
"""What stands in that column where it was not recorded."""
MOST = 65_536
"""Ranks, or layers, of a trace that is read."""
UNITS = {
    "step": "finished steps",
    "epoch": "epochs",
    "lr": "1",
    "loss": "nats",
    "payload_bytes": "bytes",
    "received_bytes": "bytes",
    "k": "values",
    "threshold": "gradient",
    "residual_norm": "gradient",
    "accuracy": "1",
    "global_share": "1",
    "begin": "s",
    "end": "s",
    "size": "values",
    "inputs": "channels",
    "outputs": "channels",
    "kernel": "pixels",
    "positions": "pixels",
}
"""The unit of each dataset; those of `seconds` are s, and what is not here has none: 1."""


Shapes = dict[str, tuple[tuple[int, ...], type]]


class TraceError(ValueError):
    """A file that is not a trace this program can read: one clear line that says what to do."""


@dataclass(frozen=True)
class Header:
    """What a trace says about its run, once: attributes, and a row for each layer."""

    attributes: Mapping[str, Any]
    layers: Mapping[str, Sequence[Any]]

    @property
    def ranks(self) -> int:
        """P."""
        return int(self.attributes["world_size"])

    @property
    def layer_count(self) -> int:
        """L."""
        return len(self.layers["name"])


class Writer:
    """Appends recorded steps and evaluations; what was flushed survives a killed process.

    OSError where the file cannot be written; then it is closed, and holds what was flushed before. Whoever writes has the
    folder's lock (`dls.program.lock`): HDF5's own, which some file systems do not have, is not asked for.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._datasets: dict[str, h5py.Dataset] = {}  # open as long as the file: h5py drops the errors of closing one
        self._file = h5py.File(path, "x", libver="latest", locking=False)
        try:
            with self._or_give_up():
                self._datasets = _lay_out(self._file, header)
                self._file.flush()
                self._file.swmr_mode = True
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def steps(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Append T rows to every dataset of `steps`, by name (`seconds/total`, …), and flush."""
        self._append("steps", rows)

    def evals(self, step: int, loss: float, accuracy: float) -> None:
        """Append one evaluation and flush."""
        self.evaluations({"step": np.array([step]), "loss": np.array([loss]), "accuracy": np.array([accuracy])})

    def evaluations(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Append several."""
        self._append("evals", rows)

    def rename(self, path: Path) -> None:
        """Take the place of another file. OSError."""
        try:
            files.publish(self._path, path)
        except OSError as error:
            raise OSError(f"cannot replace {path}: {files.reason(error)}") from None
        self._path = path

    def close(self) -> None:
        """Close the file."""
        if self._file:
            with self._or_give_up():
                self._file.close()

    def diagnostics(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Append D rows to every dataset of `diagnostics`, and flush."""
        self._append("diagnostics", rows)

    def _append(self, group: str, rows: Mapping[str, NDArray[Any]]) -> None:
        """The step's number comes last, when the rest is in the file: a row counts once its number is there."""
        with self._or_give_up():
            if os.fstat(self._file.id.get_vfd_handle()).st_nlink == 0:
                raise OSError("it was removed")
            for name in rows.keys() - {"step"}:
                self._extend(f"{group}/{name}", rows[name])
            self._file.flush()
            self._extend(f"{group}/step", rows["step"])
            self._file.flush()

    def _extend(self, name: str, values: NDArray[Any]) -> None:
        dataset = self._datasets[name]
        dataset.resize(dataset.shape[0] + len(values), axis=0)
        dataset[-len(values) :] = values

    @contextmanager
    def _or_give_up(self) -> Iterator[None]:
        """HDF5 names a full disk in a long text, and tries again at the close, where it crashes."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            hdf5.give_up(self._file)
            raise OSError(f"cannot write {self._path}: {files.reason(error)}") from None


def _lay_out(file: h5py.File, header: Header) -> dict[str, h5py.Dataset]:
    """Create everything the schema names, steps, evaluations and diagnostics empty. Returns the datasets by name."""
    for name, value in ({"schema": SCHEMA} | dict(header.attributes)).items():
        file.attrs[name] = value
    datasets = [file.create_dataset(f"layers/{name}", data=list(column)) for name, column in header.layers.items()]
    for dataset in datasets:
        dataset.attrs["unit"] = UNITS.get(dataset.name.rsplit("/", 1)[-1], "1")
    for group, shapes in _shapes(header.ranks, header.layer_count).items():
        datasets += [_extendable(file, f"{group}/{name}", *shape) for name, shape in shapes.items()]
    _name_axes(file, header, datasets)
    return {dataset.name.removeprefix("/"): dataset for dataset in datasets}


def _name_axes(file: h5py.File, header: Header, datasets: Sequence[h5py.Dataset]) -> None:
    """A name and a scale for each axis, in HDF5's own way. It is done before others read: SWMR allows no new attributes."""
    file["axes/rank"] = np.arange(header.ranks)
    file["axes/phase"] = list(clock.OF_LAYERS)
    scales = {"rank": file["axes/rank"], "layer": file["layers/name"], "phase": file["axes/phase"]}
    for group in ("steps", "evals", "diagnostics"):
        scales[group] = file[f"{group}/step"]
    for name, scale in scales.items():
        scale.make_scale("step" if name == scale.name.split("/")[1] else name)
        scale.attrs.setdefault("unit", "1")
    for dataset in datasets:
        group = dataset.name.split("/")[1]
        axes = ("layer",) if group == "layers" else (group, "rank", "layer", "phase")
        for dimension, name in zip(dataset.dims, axes, strict=False):
            dimension.label = "step" if name == group else name
            if dataset != scales[name]:  # a scale has none of its own
                dimension.attach_scale(scales[name])


def _shapes(ranks: int, layers: int) -> dict[str, Shapes]:
    """The datasets of `steps`, of `evals` and of `diagnostics`: name to a row's shape and type."""
    per_layer, per_rank, once = (ranks, layers), (ranks,), ()
    steps: Shapes = {"step": (once, np.int64), "epoch": (once, np.int64), "lr": (once, np.float64)}
    steps |= {"loss": (per_rank, np.float64), "k": (per_layer, np.int64)}
    steps |= {name: (per_rank, np.int64) for name in ("payload_bytes", "received_bytes")}
    steps |= {name: (per_layer, np.float64) for name in ("threshold", "residual_norm")}
    steps |= {f"seconds/{phase}": (per_rank, np.float64) for phase in SECONDS}
    evals: Shapes = {"step": (once, np.int64), "loss": (once, np.float64), "accuracy": (once, np.float64)}
    diagnostics: Shapes = {"step": (once, np.int64), "global_share": (per_rank, np.float64)}
    diagnostics |= {name: ((*per_layer, len(clock.OF_LAYERS)), np.float64) for name in ("begin", "end")}
    return {"steps": steps, "evals": evals, "diagnostics": diagnostics}


def _extendable(file: h5py.File, name: str, shape: tuple[int, ...], kind: type) -> h5py.Dataset:
    rows = max(1, min(256, 65536 // max(1, 8 * int(np.prod(shape)))))
    dataset = file.create_dataset(name, (0, *shape), kind, maxshape=(None, *shape), chunks=(rows, *shape))
    dataset.attrs["unit"] = "s" if "/seconds/" in name else UNITS[name.rsplit("/", 1)[-1]]
    return dataset


class Recorder:
    """Collects recorded steps on every rank and brings them to rank 0's writer, many at a time. Every rank calls all methods."""

    def __init__(self, comm: Comm, writer: Writer | None) -> None:
        self._comm, self._writer = comm, writer
        self._once: list[tuple[int, int, float]] = []
        self._rows: list[Row] = []
        self._diagnoses: list[tuple[int, Diagnosis]] = []

    def step(self, step: int, epoch: int, lr: float, result: Row) -> None:
        """Keep a finished step; every FLUSH_ROWS of them go to the file."""
        self._once.append((step, epoch, lr))
        self._rows.append(result)
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def diagnosis(self, step: int, found: Diagnosis) -> None:
        """Keep what a close look at a step found; it goes to the file with the recorded steps, or when there are as many."""
        self._diagnoses.append((step, found))
        if len(self._diagnoses) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Gather and write what is kept."""
        if self._rows:
            self._flush_steps()
        if self._diagnoses:
            self._flush_diagnoses()

    def _flush_steps(self) -> None:
        columns: dict[str, NDArray[Any]] = {
            name: np.array([getattr(row, name) for row in self._rows])
            for name in ("loss", "payload_bytes", "received_bytes", "k", "threshold", "residual_norm")
        }
        columns |= {f"seconds/{phase}": np.array([row.seconds[phase] for row in self._rows]) for phase in SECONDS}
        rows = self._gathered(columns)
        if self._writer is not None:
            once = zip(("step", "epoch", "lr"), zip(*self._once, strict=True), strict=True)
            self._writer.steps(rows | {name: np.array(values) for name, values in once})
        self._once.clear()
        self._rows.clear()

    def _flush_diagnoses(self) -> None:
        names = ("global_share", "begin", "end")
        rows = self._gathered({name: np.array([getattr(found, name) for _, found in self._diagnoses]) for name in names})
        if self._writer is not None:
            self._writer.diagnostics(rows | {"step": np.array([step for step, _ in self._diagnoses])})
        self._diagnoses.clear()

    def _gathered(self, columns: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """On rank 0 every rank's columns, as axis 1; nothing elsewhere."""
        gathered = {name: self._comm.gather(column) for name, column in columns.items()}
        return {name: np.swapaxes(column, 0, 1) for name, column in gathered.items() if column is not None}

    def evaluation(self, step: int, loss: float, accuracy: float) -> None:
        """Write an evaluation, after the steps before it."""
        self.flush()
        if self._writer is not None:
            self._writer.evals(step, loss, accuracy)

    def close(self) -> None:
        """Write what is kept and close the file."""
        self.flush()
        self.leave()

    def leave(self) -> None:
        """Close the file without what is kept. This rank alone may call it, also once more."""
        if self._writer is not None:
            self._writer.close()


@dataclass(frozen=True)
class Trace:
    """A trace in memory: its header, and arrays by name below `steps`, `evals` and `diagnostics`."""

    path: Path
    header: Header
    steps: Mapping[str, NDArray[Any]]
    evals: Mapping[str, NDArray[Any]]
    diagnostics: Mapping[str, NDArray[Any]]


def series(out: Path) -> list[Path]:
    """The trace files of a run's folder, in the order of their steps."""
    return sorted((p for p in out.glob("trace*.h5") if p.name == "trace.h5" or _begins(p)), key=_begins)


def _begins(path: Path) -> int:
    """The step after which a trace file goes on; 0 for trace.h5, and for what is none."""
    number = path.stem.removeprefix("trace-")
    return int(number) if number.isascii() and number.isdigit() and len(number) < 20 else 0


def read(path: Path, own: bool = False) -> Trace:
    """Read a trace, also one that is being written or whose writer was killed. TraceError. own: nobody writes but this process.

    What a living writer is in the middle of looks damaged, and is read again. HDF5's own SWMR mode for readers would do that too,
    but takes any damage for a writer's work, and waits for ever.
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
            raise TraceError(f"{path} is empty: it was never written, or the disk was full; remove it and start its run again")
        if _cut_short(path):
            raise TraceError(f"{path} is cut short; copy it again from where it was written")
        with path.open("rb") as raw:  # through Python's own file HDF5 does not mind that a writer left it marked as open
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
    """Whether a run that lives has the trace's folder; what its writer has closed is free in any case."""
    found = lock.state(path.parent)
    return State.FREE if found is State.UNKNOWN and not left_open(path) else found


def left_open(path: Path) -> bool:
    """Whether its writer has not closed it; HDF5 then refuses to open it: bits 0 and 2 of a superblock's byte 11."""
    try:
        with files.open_plain(path) as file:
            head = file.read(12)
    except OSError:  # what it is like shows when it is read
        return False
    return head[:8] == MAGIC and head[8:9] == b"\3" and bool(head[11] & 5)


def _cut_short(path: Path) -> bool:
    """Whether the file ends before the end that its superblock states; HDF5 says so in a long text, or in SWMR mode waits.

    The end-of-file address stands at byte 28 of a superblock of version 2 or 3 with 8-byte offsets (HDF5 File Format, II.A).
    """
    with path.open("rb") as file:
        head = file.read(36)
    if len(head) < 10 or head[:8] != MAGIC or head[8] not in (2, 3) or head[9] != 8:
        return False
    return len(head) < 36 or int.from_bytes(head[28:36], "little") > path.stat().st_size


def _parse(path: Path, file: h5py.File) -> Trace:
    schema, size = _attribute(file, "schema"), path.stat().st_size
    if schema != SCHEMA:
        raise TraceError(f"{path} has the schema {str(schema)[:40]!r}, and this program reads {SCHEMA}{_advice(file, schema)}")
    found = {name: _attribute(file, name) for name in ATTRIBUTES}
    attributes = {name: value for name, value in found.items() if value is not None and (name in LISTS) == _is_texts(value)}
    ranks = attributes.get("world_size")
    if not isinstance(ranks, int) or not 1 <= ranks <= MOST:
        raise TraceError(f"{path} is not a trace of this program: its world_size is {str(ranks)[:40]!r}")
    header = Header(attributes, _layers(file, size))
    groups = {name: _rows(file, name, shapes, size) for name, shapes in _shapes(ranks, header.layer_count).items()}
    return Trace(path, header, groups["steps"], groups["evals"], groups["diagnostics"])


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _advice(file: h5py.File, schema: Any) -> str:
    """What to do about a trace of another schema."""
    if not re.fullmatch(r"dls-trace/[0-9]+", str(schema)):
        return "; give the trace.h5 of a run"
    version = _attribute(file, "version")
    return "; look at it with the version of this program that wrote it" + (f", {str(version)[:40]}" if version else "")


def _attribute(file: h5py.File, name: str) -> Any:
    """A text, a number or a list of them, as Python's own; None where it is missing, or anything else."""
    if name not in file.attrs:
        return None
    stored = file.attrs.get_id(name)
    text = h5py.check_string_dtype(stored.dtype) is not None
    if len(stored.shape) > 1 or max(stored.shape, default=1) > MOST or not (text or stored.dtype.kind in "iuf"):
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
    if len({len(column) for column in columns.values()}) != 1 or min(columns["size"], default=0) < 1:
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


def _rows(file: h5py.File, group: str, shapes: Shapes, size: int) -> dict[str, NDArray[Any]]:
    """A group's columns, cut to the rows that are complete: a writer may be between two columns, or have met a full disk."""
    if group == ADDED and file.get(group, getlink=True) is None:
        return {name: np.zeros((0, *row), kind) for name, (row, kind) in shapes.items()}
    there = {name: row for name, (row, _) in shapes.items() if not _was_added(file, f"{group}/{name}")}
    columns = {name: _column(file, f"{group}/{name}", row, size) for name, row in there.items()}
    claimed = min(column.shape[0] for column in columns.values())
    ascending = np.diff(columns["step"][:claimed].astype(np.int64), prepend=0) > 0
    complete = claimed if ascending.all() else int(ascending.argmin())
    rows = {name: column[:complete].astype(shapes[name][1], copy=False) for name, column in columns.items()}
    return {name: rows.get(name, np.full((complete, *row), UNKNOWN, kind)) for name, (row, kind) in shapes.items()}


def _was_added(file: h5py.File, name: str) -> bool:
    """Whether it is the column that an older trace does not have, and this one does not."""
    return name == ADDED_COLUMN and ADDED_COLUMN.split("/")[1] not in file["steps"]


# --- going on with a trace, and repairing one ------------------------------------------------


def go_on(out: Path, step: int, header: Header) -> Writer:
    """Go on with a run's trace after `step`; what was recorded after it is dropped. TraceError, OSError.

    The last file is written anew, up to there. It takes the new rows too where the ranks are as many as before; otherwise a file
    of their own does.
    """
    kept: list[Path] = []
    for path in series(out):
        if _begins(path) >= step > 0:
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
    return _rewrite(old, step, Header({**header.attributes, **_inherited(old.header, header)}, header.layers))


def _drop(path: Path) -> None:
    """Remove a trace of later steps. OSError: with it there, nobody could tell which of the two is true."""
    try:
        path.unlink()
    except OSError as error:
        raise OSError(f"{path} is of steps that are done again, and cannot be removed: {files.reason(error)}") from None


def _inherited(old: Header, new: Header) -> dict[str, Any]:
    """What a trace that goes on keeps of its beginning: when it started, and all that wrote to it, in order.

    Where the beginning tells of its commit alone, and not of the sources, so does the whole.
    """
    kept = {name: old.attributes[name] for name in ("started",) if name in old.attributes}
    for name in environment.NAMES:
        words = [*str(old.attributes.get(name, "")).split(THEN), str(new.attributes.get(name, ""))]
        kept |= {name: THEN.join(dict.fromkeys(filter(None, words)))} if any(words) else {}
    commits = [*str(old.attributes.get("commit", "")).split(), *str(new.attributes["commit"]).split()]
    before, now = (list(each.attributes.get("sources") or []) for each in (old, new))
    read = list(dict.fromkeys([*before, *now])) if before and now else []
    return kept | {"commit": " ".join(dict.fromkeys(commits)), "sources": read}


def repair(path: Path) -> str:
    """Make a trace that a killed writer left behind open in any viewer. Returns what there was to do. TraceError, OSError."""
    found = read(path)
    if not left_open(path):
        return f"{path} is in order, with {_extent(found)}"
    own = Lock()
    try:
        own.take(path.parent)
        if own.missing:
            raise TraceError(f"whether a run still writes {path} cannot be told here ({own.missing}); copy it and repair that")
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
    """Write a trace anew, up to `step`, and let that take its place. The old one stays where this fails."""
    aside = files.aside(old.path)
    try:
        writer = Writer(aside, header)
        for rows, write in (
            (old.steps, writer.steps),
            (old.evals, writer.evaluations),
            (old.diagnostics, writer.diagnostics),
        ):
            kept = _until(step, rows)
            if len(kept["step"]):
                write(kept)
        writer.rename(old.path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return writer


def _until(step: int | None, rows: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    kept = slice(None) if step is None else rows["step"] <= step
    return {name: column[kept] for name, column in rows.items()}
