"""What is recorded of a step: columns, each with its axes, type, unit and meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

PER_STEP = ("step",)
"""Axes of a column with one value a step, the same on all ranks."""
PER_RANK = ("step", "rank")
"""Axes of a column with a value of each rank."""
PER_LAYER = ("step", "rank", "layer")
"""Axes of a column with a value of each rank and layer."""


@dataclass(frozen=True)
class Column:
    """A dataset of a trace.

    name: its group and its name in there, such as "steps/loss"; axes: the names of its dimensions,
    the growing one first; kind: the type of its values, of numpy or str; unit: what it counts in;
    meaning: one sentence for people; since: the version of the trace's schema that brought it;
    optional: a trace of that version may be without it.
    """

    name: str
    axes: tuple[str, ...]
    kind: type
    unit: str
    meaning: str
    since: int = 1
    optional: bool = False

    @property
    def group(self) -> str:
        """Its group."""
        return self.name.partition("/")[0]

    @property
    def key(self) -> str:
        """Its name within the group."""
        return self.name.partition("/")[2]

    def row_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape of one row: all axes but the first, of these sizes."""
        return tuple(sizes[axis] for axis in self.axes[1:])

    @property
    def missing(self) -> Any:
        """What stands for a value that was not recorded: NaN, or -1 in a column of integers."""
        return np.nan if np.issubdtype(self.kind, np.floating) else -1


K = Column(
    "steps/k",
    PER_LAYER,
    np.int64,
    "values",
    "how many values of the layer the rank sent in the step, before any adjustment; dense: n_l;"
    " global-topk: its counts per layer",
    optional=True,
)
"""How many values of each layer a rank sends."""
THRESHOLD = Column(
    "steps/threshold",
    PER_LAYER,
    np.float64,
    "gradient",
    "the layer's threshold in the step, before any adjustment; dense: 0; global-topk: one for all",
    optional=True,
)
"""The threshold of each layer."""
RESIDUAL_NORM = Column(
    "steps/residual_norm",
    PER_LAYER,
    np.float64,
    "gradient",
    "the L2 norm of what stays behind after the step",
    optional=True,
)
"""The L2 norm of each layer's residual."""
