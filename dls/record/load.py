"""`dls.load`: a run's trace as arrays, and as tables of xarray and pandas."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.exchange.clock import OF_LAYERS
from dls.exchange.columns import PER_LAYER, PER_RANK, PER_STEP, Column
from dls.record import reader
from dls.record.schema import GROUPS, GROWING_AXIS, KNOWN, Trace


class Recording:
    """What a run has recorded: arrays by name, as docs/trace.md lists them.

    recording["steps/threshold"] is an array, and so is recording.steps["threshold"]; evals,
    diagnostics and messages likewise. layers: a list for each column of the layers; attributes:
    those of the trace; config: the run's settings; ranks: P. Where a run went on with another
    number of ranks the rank axis has the largest, and what was not recorded is NaN, or -1 in a
    column of integers.
    """

    def __init__(self, parts: Sequence[Trace]) -> None:
        last = parts[-1].header
        self.attributes: Mapping[str, Any] = last.attributes
        self.layers: Mapping[str, Sequence[Any]] = last.layers
        self.config: Mapping[str, Any] = tomllib.loads(str(last.attributes.get("config", "")))
        self.ranks = max(part.header.ranks for part in parts)
        known = {column.name: column for part in parts for column in part.header.columns}
        self.columns = {column.name: column for column in KNOWN} | known
        """What each array is: its axes, unit and meaning, by its full name."""
        groups = {group: _joined(parts, group, self.columns, self.ranks) for group in GROUPS}
        self.steps = groups["steps"]
        self.evals = groups["evals"]
        self.diagnostics = groups["diagnostics"]
        self.messages = groups["messages"]
        self.messages["message"] = np.arange(len(self.messages["step"]))  # each part counts from 0

    def __getitem__(self, name: str) -> NDArray[Any]:
        """An array by its full name, such as "steps/loss". KeyError."""
        group, _, key = name.partition("/")
        if group == "layers" and key in self.layers:
            return np.array(self.layers[key])
        if group not in GROUPS or key not in getattr(self, group):
            raise KeyError(f"there is no {name!r}; there are {', '.join(self.names())}")
        found: NDArray[Any] = getattr(self, group)[key]
        return found

    def names(self) -> list[str]:
        """The full names of all arrays."""
        growing = [f"{group}/{key}" for group in GROUPS for key in getattr(self, group)]
        return [*(f"layers/{key}" for key in self.layers), *growing]

    def __repr__(self) -> str:
        method = self.config.get("method", "an unknown method")
        steps, layers = len(self.steps["step"]), len(self.layers["name"])
        return f"<recording of {method}: steps={steps}, ranks={self.ranks}, layers={layers}>"

    def xarray(self, group: str = "steps") -> Any:
        """A group as xarray.Dataset, with step, rank, layer and phase as its coordinates."""
        library = _library("xarray")
        rows = self._group(group)
        first = GROWING_AXIS[group]
        variables = {}
        for key, values in rows.items():
            column = self.columns[f"{group}/{key}"]
            about = {"units": column.unit, "comment": column.meaning}
            variables[key] = ((first, *column.axes[1:]), values, about)
        axes = {axis for dims, *_ in variables.values() for axis in dims}
        labels = {
            "rank": np.arange(self.ranks),
            "layer": list(self.layers["name"]),
            "phase": list(OF_LAYERS),
        }
        coordinates = {axis: label for axis, label in labels.items() if axis in axes}
        return library.Dataset(variables, coords=coordinates, attrs={"group": group})

    def pandas(self, group: str = "steps", per: str = "rank") -> Any:
        """A group as pandas.DataFrame, one row for each step and rank.

        per: "step" for what is the same on all ranks, "rank", or "layer" for one row for each step,
        rank and layer. What has fewer axes is repeated. Of messages each is one row.
        """
        rows = self._group(group)
        if GROWING_AXIS[group] != "step":
            return _library("pandas").DataFrame(dict(rows)).set_index(GROWING_AXIS[group])
        wanted = {"step": PER_STEP, "rank": PER_RANK, "layer": PER_LAYER}
        if per not in wanted:
            raise ValueError(f"per is {per!r}, not one of {', '.join(wanted)}")
        axes = wanted[per]
        keys = [key for key in rows if self._fits(f"{group}/{key}", axes)]
        frame = self.xarray(group)[keys].to_dataframe()
        order = [axis for axis in axes if axis in (frame.index.names or ())]
        return frame.reorder_levels(order).sort_index() if len(order) > 1 else frame

    def _fits(self, name: str, axes: tuple[str, ...]) -> bool:
        return set(self.columns[name].axes) <= set(axes)

    def _group(self, group: str) -> Mapping[str, NDArray[Any]]:
        if group not in GROUPS:
            raise ValueError(f"there is no group {group!r}; there are {', '.join(GROUPS)}")
        found: Mapping[str, NDArray[Any]] = getattr(self, group)
        return found


def load(run: str | os.PathLike[str]) -> Recording:
    """What a run has recorded: of its folder, or of one trace file. TraceError.

    It may still go on; then this is what was written until now.
    """
    return Recording([reader.read(file) for file in reader.files_of(Path(run))])


def _joined(
    parts: Sequence[Trace], group: str, columns: Mapping[str, Column], ranks: int
) -> dict[str, NDArray[Any]]:
    """A group's columns of all parts, one after the other."""
    names = dict.fromkeys(key for part in parts for key in part.group(group))
    return {
        key: np.concatenate([_padded(part, columns[f"{group}/{key}"], ranks) for part in parts])
        for key in names
    }


def _padded(part: Trace, column: Column, ranks: int) -> NDArray[Any]:
    """A part's column with so many ranks."""
    rows = part.group(column.group)
    sizes = {**part.header.sizes, "rank": ranks}
    shape = (len(rows["step"]), *column.row_shape(sizes))
    padded: NDArray[Any] = np.full(shape, column.missing, dtype=column.kind)
    if column.key in rows:
        own = rows[column.key]
        padded[tuple(slice(length) for length in own.shape)] = own
    return padded


def _library(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        raise ImportError(f"{name} is not installed; pip install 'dls[analysis]'") from None
