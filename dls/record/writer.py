"""Writing a trace while its run goes on: it can be read at any time (HDF5's SWMR)."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dls.exchange.clock import OF_LAYERS
from dls.exchange.columns import Column
from dls.record import files, hdf5
from dls.record.schema import GROUPS, GROWING_AXIS, SCHEMA, Header
from reference.collectives import ROUNDS

SIGNALS = {
    "steps": ("loss", "payload_bytes"),
    "evals": ("accuracy",),
    "diagnostics": ("global_share",),
    "messages": ("received",),
}
"""What viewers draw of a group at first: the first of these columns that there is."""


class Writer:
    """Appends recorded steps and evaluations; what was flushed survives a killed process.

    OSError where the file cannot be written; then it is closed, and holds what was flushed before.
    The writing process holds the folder's lock (`dls.record.lock`); HDF5's own lock, which some
    file systems lack, is not used.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        # open as long as the file: h5py drops the errors of closing one
        self._datasets: dict[str, h5py.Dataset] = {}
        self._rows: dict[str, slice] = {}
        self._file = h5py.File(path, "x", libver="latest", locking=False)
        try:
            with self._or_give_up():
                self._datasets = _lay_out(self._file, header)
                self._file.flush()
                self._file.swmr_mode = True
        except OSError:
            path.unlink(missing_ok=True)
            raise

    def append(self, group: str, rows: Mapping[str, NDArray[Any]]) -> None:
        """Append rows to a group, by its columns' names; those not named are not recorded."""
        self.grow(group, len(rows["step"]))
        for name in rows.keys() - {"step"}:
            self.put(group, name, rows[name])
        self.commit(group, rows["step"])

    def evaluation(self, step: int, loss: float, accuracy: float) -> None:
        """Append one evaluation."""
        rows = {"step": [step], "loss": [loss], "accuracy": [accuracy]}
        self.append("evals", {name: np.array(values) for name, values in rows.items()})

    def grow(self, group: str, rows: int) -> int:
        """Make room for so many rows in all columns of a group but `step`.

        Returns how many there were before. What is not put into them counts as not recorded.
        """
        with self._or_give_up():
            if os.fstat(self._file.id.get_vfd_handle()).st_nlink == 0:
                raise OSError("it was removed")
            before = int(self._datasets[f"{group}/step"].shape[0])
            for name, dataset in self._datasets.items():
                if name.startswith(f"{group}/") and name != f"{group}/step":
                    dataset.resize(before + rows, axis=0)
        self._rows[group] = slice(before, before + rows)
        return before

    def put(self, group: str, name: str, values: NDArray[Any], layers: slice = slice(None)) -> None:
        """Fill in a column's new rows; layers: those that the values are of, its third axis."""
        dataset, rows = self._datasets[f"{group}/{name}"], self._rows[group]
        if name == "step":
            return
        with self._or_give_up():
            if dataset.ndim > 2:
                dataset[rows, :, layers] = values
            else:
                dataset[rows] = values

    def commit(self, group: str, steps: NDArray[Any]) -> None:
        """Write the new rows' `step`, when the rest is in the file: a row counts once it has it."""
        dataset, rows = self._datasets[f"{group}/step"], self._rows[group]
        with self._or_give_up():
            self._file.flush()
            dataset.resize(rows.stop, axis=0)
            dataset[rows] = steps
            self._file.flush()

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

    @contextmanager
    def _or_give_up(self) -> Iterator[None]:
        """HDF5 names a full disk in a long text, and tries again at the close, where it crashes."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            hdf5.give_up(self._file)
            raise OSError(f"cannot write {self._path}: {files.reason(error)}") from None


def _lay_out(file: h5py.File, header: Header) -> dict[str, h5py.Dataset]:
    """Create every column of the header, those that grow empty. Returns them by name."""
    for name, value in ({"schema": SCHEMA} | dict(header.attributes)).items():
        file.attrs[name] = value
    datasets = {column.name: _create(file, column, header) for column in header.columns}
    scales = _scales(file, header, datasets)
    for column in header.columns:
        _describe(datasets[column.name], column, scales)
    _make_plottable(file, datasets)
    return datasets


def _create(file: h5py.File, column: Column, header: Header) -> h5py.Dataset:
    if column.group == "layers":
        return file.create_dataset(column.name, data=list(header.layers[column.key]))
    shape = column.row_shape(header.sizes)
    rows = max(1, min(256, 65536 // max(1, 8 * int(np.prod(shape)))))
    return file.create_dataset(
        column.name,
        (0, *shape),
        column.kind,
        maxshape=(None, *shape),
        chunks=(rows, *shape),
        fillvalue=column.missing,
    )


def _scales(
    file: h5py.File, header: Header, datasets: Mapping[str, h5py.Dataset]
) -> dict[str, h5py.Dataset]:
    """HDF5's scale of each axis, by its name, or by its group's where each group has its own.

    netCDF looks for them in the group of a dataset and above it, under the axis's name.
    """
    file["rank"] = np.arange(header.ranks)
    file["layer"] = list(header.layers["name"])
    file["phase"] = list(OF_LAYERS)
    scales = {name: file[name] for name in ("rank", "layer", "phase")}
    for group in GROUPS:
        scales[group] = datasets.get(f"{group}/{GROWING_AXIS[group]}")
    found = {name: scale for name, scale in scales.items() if scale is not None}
    for scale in found.values():
        scale.make_scale(scale.name.rsplit("/", 1)[-1])
    return found


def _describe(dataset: h5py.Dataset, column: Column, scales: Mapping[str, h5py.Dataset]) -> None:
    """Its unit and meaning, and a name and a scale for each axis.

    It is done before others read: SWMR allows no new attributes.
    """
    dataset.attrs["units"] = column.unit
    dataset.attrs["long_name"] = column.meaning
    if column.name == "messages/kind":
        dataset.attrs["flag_values"] = np.arange(len(ROUNDS))
        dataset.attrs["flag_meanings"] = " ".join(ROUNDS)
    for place, (dimension, axis) in enumerate(zip(dataset.dims, column.axes, strict=True)):
        dimension.label = axis
        scale = scales[column.group if place == 0 and column.group in GROUPS else axis]
        if dataset != scale:  # a scale has none of its own
            dimension.attach_scale(scale)


def _make_plottable(file: h5py.File, datasets: Mapping[str, h5py.Dataset]) -> None:
    """Say what to draw, as NeXus has it (NXdata), for viewers such as silx and h5web."""
    file.attrs["NX_class"] = "NXroot"
    file.attrs["default"] = "steps"
    for group, signals in SIGNALS.items():
        signal = next((each for each in signals if f"{group}/{each}" in datasets), None)
        if signal is None:
            continue
        axes = [GROWING_AXIS[group], *["."] * (datasets[f"{group}/{signal}"].ndim - 1)]
        attributes = {"NX_class": "NXdata", "signal": signal, "axes": axes}
        for name, value in attributes.items():
            file[group].attrs[name] = value
