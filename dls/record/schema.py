"""A run's trace, HDF5 with schema dls-trace/1: what stands in it, under which names, and in what
units.

trace.h5 holds a run from its first step on, and trace-STEP.h5 goes on after that step where another
number of ranks took over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.exchange import clock
from dls.record import environment

SCHEMA = "dls-trace/1"
ATTRIBUTES = (
    *(
        "config",
        "version",
        "commit",
        "sources",
        "world_size",
        "backend",
        "seed",
        "hosts",
        "started",
        "data",
    ),
    *environment.NAMES,
)
LISTS = ("sources", "hosts")
"""Those that are lists of texts; the others are a text or a number."""
WORDS = ("name", "kind")
LAYER_FIELDS = ("kind", "size", "inputs", "outputs", "kernel", "positions")
SECONDS = (
    "forward",
    "backward",
    "select",
    "exchange",
    "decode",
    "update",
    "adjust",
    "exposed",
    "total",
)
ADDED, ADDED_COLUMN = "diagnostics", "steps/received_bytes"
"""The group, and the column, that older traces of this schema do not have."""
UNKNOWN = -1
"""What stands in that column where it was not recorded."""
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


@dataclass(frozen=True)
class Trace:
    """A trace in memory: its header, and arrays by name below `steps`, `evals` and
    `diagnostics`.
    """

    path: Path
    header: Header
    steps: Mapping[str, NDArray[Any]]
    evals: Mapping[str, NDArray[Any]]
    diagnostics: Mapping[str, NDArray[Any]]


def shapes_of(ranks: int, layers: int) -> dict[str, Shapes]:
    """The datasets of `steps`, of `evals` and of `diagnostics`: name to a row's shape and type."""
    per_layer, per_rank, once = (ranks, layers), (ranks,), ()
    steps: Shapes = {"step": (once, np.int64), "epoch": (once, np.int64), "lr": (once, np.float64)}
    steps |= {"loss": (per_rank, np.float64), "k": (per_layer, np.int64)}
    steps |= {name: (per_rank, np.int64) for name in ("payload_bytes", "received_bytes")}
    steps |= {name: (per_layer, np.float64) for name in ("threshold", "residual_norm")}
    steps |= {f"seconds/{phase}": (per_rank, np.float64) for phase in SECONDS}
    evals: Shapes = {
        "step": (once, np.int64),
        "loss": (once, np.float64),
        "accuracy": (once, np.float64),
    }
    diagnostics: Shapes = {"step": (once, np.int64), "global_share": (per_rank, np.float64)}
    diagnostics |= {
        name: ((*per_layer, len(clock.OF_LAYERS)), np.float64) for name in ("begin", "end")
    }
    return {"steps": steps, "evals": evals, "diagnostics": diagnostics}
