"""Writing a trace while its run goes on: it can be read at any time (HDF5's SWMR)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dls.exchange import clock
from dls.record import files, hdf5
from dls.record.schema import SCHEMA, UNITS, Header, shapes_of


class Writer:
    """Appends recorded steps and evaluations; what was flushed survives a killed process.

    OSError where the file cannot be written; then it is closed, and holds what was flushed before.
    Whoever writes has the folder's lock (`dls.record.lock`): HDF5's own, which some file systems do
    not have, is not asked for.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._datasets: dict[
            str, h5py.Dataset
        ] = {}  # open as long as the file: h5py drops the errors of closing one
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
        self.evaluations(
            {"step": np.array([step]), "loss": np.array([loss]), "accuracy": np.array([accuracy])}
        )

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
        """The step's number comes last, when the rest is in the file: a row counts once its number
        is there.
        """
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
    """Create everything the schema names, steps, evaluations and diagnostics empty.

    Returns the datasets by name.
    """
    for name, value in ({"schema": SCHEMA} | dict(header.attributes)).items():
        file.attrs[name] = value
    datasets = [
        file.create_dataset(f"layers/{name}", data=list(column))
        for name, column in header.layers.items()
    ]
    for dataset in datasets:
        dataset.attrs["unit"] = UNITS.get(dataset.name.rsplit("/", 1)[-1], "1")
    for group, shapes in shapes_of(header.ranks, header.layer_count).items():
        datasets += [_extendable(file, f"{group}/{name}", *shape) for name, shape in shapes.items()]
    _name_axes(file, header, datasets)
    return {dataset.name.removeprefix("/"): dataset for dataset in datasets}


def _name_axes(file: h5py.File, header: Header, datasets: Sequence[h5py.Dataset]) -> None:
    """A name and a scale for each axis, in HDF5's own way.

    It is done before others read: SWMR allows no new attributes.
    """
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


def _extendable(file: h5py.File, name: str, shape: tuple[int, ...], kind: type) -> h5py.Dataset:
    rows = max(1, min(256, 65536 // max(1, 8 * int(np.prod(shape)))))
    dataset = file.create_dataset(
        name, (0, *shape), kind, maxshape=(None, *shape), chunks=(rows, *shape)
    )
    dataset.attrs["unit"] = "s" if "/seconds/" in name else UNITS[name.rsplit("/", 1)[-1]]
    return dataset
