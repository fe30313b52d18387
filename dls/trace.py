"""A run's trace, HDF5 with schema dls-trace/1: written while the run goes on, readable at any time (SWMR)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dls.comm import Comm
    from dls.worker import StepResult

SCHEMA = "dls-trace/1"
FLUSH_ROWS = 50
"""Recorded steps that may be lost with a killed process."""
LAYER_FIELDS = ("kind", "size", "inputs", "outputs", "kernel", "positions")
SECONDS = ("forward", "backward", "select", "exchange", "decode", "update", "adjust", "exposed", "total")
UNITS = {
    "step": "finished steps",
    "epoch": "epochs",
    "lr": "1",
    "loss": "nats",
    "payload_bytes": "bytes",
    "k": "values",
    "threshold": "gradient",
    "residual_norm": "gradient",
    "accuracy": "1",
}
"""The unit of each dataset; those of `seconds` are s."""


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

    Raises OSError where the file cannot be written.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._file = h5py.File(path, "x", libver="latest")
        _lay_out(self._file, header)
        self._file.flush()
        self._file.swmr_mode = True

    def steps(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Append T rows to every dataset of `steps`, by name (`seconds/total`, …), and flush."""
        self._append("steps", rows)

    def evals(self, step: int, loss: float, accuracy: float) -> None:
        """Append one evaluation and flush."""
        self._append("evals", {"step": np.array([step]), "loss": np.array([loss]), "accuracy": np.array([accuracy])})

    def _append(self, group: str, rows: Mapping[str, NDArray[Any]]) -> None:
        for name, values in rows.items():
            dataset = self._file[f"{group}/{name}"]
            dataset.resize(dataset.shape[0] + len(values), axis=0)
            dataset[-len(values) :] = values
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _lay_out(file: h5py.File, header: Header) -> None:
    """Create everything the schema names, empty."""
    for name, value in ({"schema": SCHEMA} | dict(header.attributes)).items():
        file.attrs[name] = value
    for name, column in header.layers.items():
        file.create_dataset(f"layers/{name}", data=list(column))
    for group, shapes in zip(("steps", "evals"), _shapes(header.ranks, header.layer_count), strict=True):
        for name, (shape, kind) in shapes.items():
            _extendable(file, f"{group}/{name}", shape, kind)


def _shapes(ranks: int, layers: int) -> tuple[Shapes, Shapes]:
    """The datasets of `steps` and of `evals`: name to a row's shape and type."""
    per_layer, per_rank, once = (ranks, layers), (ranks,), ()
    steps: Shapes = {"step": (once, np.int64), "epoch": (once, np.int64), "lr": (once, np.float64)}
    steps |= {"loss": (per_rank, np.float64), "payload_bytes": (per_rank, np.int64), "k": (per_layer, np.int64)}
    steps |= {name: (per_layer, np.float64) for name in ("threshold", "residual_norm")}
    steps |= {f"seconds/{phase}": (per_rank, np.float64) for phase in SECONDS}
    return steps, {"step": (once, np.int64), "loss": (once, np.float64), "accuracy": (once, np.float64)}


def _extendable(file: h5py.File, name: str, shape: tuple[int, ...], kind: type) -> None:
    rows = max(1, min(256, 65536 // max(1, 8 * int(np.prod(shape)))))
    dataset = file.create_dataset(name, (0, *shape), kind, maxshape=(None, *shape), chunks=(rows, *shape))
    dataset.attrs["unit"] = "s" if "/seconds/" in name else UNITS[name.rsplit("/", 1)[-1]]


class Recorder:
    """Collects recorded steps on every rank and brings them to rank 0's writer, many at a time. Every rank calls all methods."""

    def __init__(self, comm: Comm, writer: Writer | None) -> None:
        self._comm, self._writer = comm, writer
        self._once: list[tuple[int, int, float]] = []
        self._rows: list[StepResult] = []

    def step(self, step: int, epoch: int, lr: float, result: StepResult) -> None:
        """Keep a finished step; every FLUSH_ROWS of them go to the file."""
        self._once.append((step, epoch, lr))
        self._rows.append(result)
        if len(self._rows) >= FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Gather and write what is kept."""
        if not self._rows:
            return
        columns: dict[str, NDArray[Any]] = {
            name: np.array([getattr(row, name) for row in self._rows])
            for name in ("loss", "payload_bytes", "k", "threshold", "residual_norm")
        }
        columns |= {f"seconds/{phase}": np.array([row.seconds[phase] for row in self._rows]) for phase in SECONDS}
        gathered = {name: self._comm.gather(column) for name, column in columns.items()}
        if self._writer is not None:
            rows = {name: np.swapaxes(column, 0, 1) for name, column in gathered.items() if column is not None}
            once = zip(("step", "epoch", "lr"), zip(*self._once, strict=True), strict=True)
            self._writer.steps(rows | {name: np.array(values) for name, values in once})
        self._once.clear()
        self._rows.clear()

    def evaluation(self, step: int, loss: float, accuracy: float) -> None:
        """Write an evaluation, after the steps before it."""
        self.flush()
        if self._writer is not None:
            self._writer.evals(step, loss, accuracy)

    def close(self) -> None:
        """Write what is kept and close the file."""
        self.flush()
        if self._writer is not None:
            self._writer.close()


@dataclass(frozen=True)
class Trace:
    """A trace in memory: its header, and arrays by name below `steps` and `evals`."""

    path: Path
    header: Header
    steps: Mapping[str, NDArray[Any]]
    evals: Mapping[str, NDArray[Any]]


def read(path: Path) -> Trace:
    """Read a trace, also one that is being written or whose writer was killed. TraceError."""
    if not path.is_file():
        raise TraceError(f"{path}: no such file; a run's folder holds a trace.h5")
    try:
        if _cut_short(path):
            raise TraceError(f"{path} is cut short; copy it again from where it was written")
        with h5py.File(path, "r", libver="latest", swmr=True) as file:
            return _read(path, file)
    except OSError as error:
        raise TraceError(f"{path} cannot be read as HDF5: {str(error).splitlines()[0]}") from None
    except KeyError as error:
        raise TraceError(f"{path} is not a trace of this program: {error.args[0]}") from None


def _cut_short(path: Path) -> bool:
    """Whether the file ends before the end that its superblock states; HDF5 would wait for the rest in SWMR mode for ever.

    The end-of-file address stands at byte 28 of a superblock of version 2 or 3 with 8-byte offsets (HDF5 File Format, II.A).
    """
    with path.open("rb") as file:
        head = file.read(36)
    if len(head) < 10 or head[:8] != b"\x89HDF\r\n\x1a\n" or head[8] not in (2, 3) or head[9] != 8:
        return False
    return len(head) < 36 or int.from_bytes(head[28:36], "little") > path.stat().st_size


def _read(path: Path, file: h5py.File) -> Trace:
    schema = file.attrs.get("schema")
    if str(schema) != SCHEMA:
        raise TraceError(f"{path} has the schema {schema!r}; this program reads {SCHEMA}")
    attributes = dict(file.attrs)
    layers = {name: _column(file, f"layers/{name}", 1)[()] for name in ("name", *LAYER_FIELDS)}
    words = {name: _strings(layers.pop(name)) for name in ("name", "kind")}
    header = Header(attributes, words | {name: list(column) for name, column in layers.items()})
    steps, evals = _shapes(_world_size(path, attributes), header.layer_count)
    return Trace(path, header, _rows(file, "steps", steps), _rows(file, "evals", evals))


def _world_size(path: Path, attributes: Mapping[str, Any]) -> int:
    size = attributes.get("world_size")
    if not isinstance(size, int | np.integer) or size < 1:
        raise TraceError(f"{path} is not a trace of this program: its world_size is {size!r}")
    return int(size)


def _column(file: h5py.File, name: str, dimensions: int) -> h5py.Dataset:
    """A dataset of so many dimensions; KeyError for anything else."""
    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.ndim != dimensions:
        raise KeyError(f"{name} is no table of {dimensions} dimensions")
    return dataset


def _rows(file: h5py.File, group: str, shapes: Shapes) -> dict[str, NDArray[Any]]:
    """A group's columns, cut to the rows that all of them hold: a writer may be between two of them."""
    columns = {name: _column(file, f"{group}/{name}", 1 + len(shape)) for name, (shape, _) in shapes.items()}
    for name, column in columns.items():
        if column.shape[1:] != shapes[name][0]:
            raise KeyError(f"{group}/{name} has rows of {column.shape[1:]}, not of {shapes[name][0]}")
    complete = min(column.shape[0] for column in columns.values())
    return {name: column[:complete] for name, column in columns.items()}


def _strings(values: Iterable[Any]) -> list[str]:
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


def resume(path: Path, step: int, header: Header) -> Writer:
    """Go on with a trace after `step`: rows up to there are copied into a new file, which replaces the old one. TraceError."""
    old = read(path)
    fresh = path.with_suffix(".h5.new")
    fresh.unlink(missing_ok=True)
    writer = Writer(fresh, Header(dict(header.attributes) | {"started": old.header.attributes["started"]}, header.layers))
    kept = old.steps["step"] <= step
    if kept.any():
        writer.steps({name: column[kept] for name, column in old.steps.items()})
    for eval_step, loss, accuracy in zip(*(old.evals[name] for name in ("step", "loss", "accuracy")), strict=True):
        if eval_step <= step:
            writer.evals(int(eval_step), float(loss), float(accuracy))
    os.replace(fresh, path)
    return writer
