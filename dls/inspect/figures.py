"""The figures of a run, or of runs that differ only in their seed, that have one value each."""

from __future__ import annotations

from typing import Any

import numpy as np

from dls.inspect.groups import Group, mean_and_sd
from dls.inspect.summary import Summary, summarise

COMPARED = (
    "method",
    "density",
    "ranks",
    "steps",
    "accuracy",
    "test_loss",
    "train_loss",
    "set_size",
    "threshold_ratio",
    "global_share",
    "bytes_per_step",
    "share_of_dense",
    "received_bytes_per_step",
    "ring_bytes_per_step",
    "share_of_ring",
    "total_ms",
    "exposed_ms",
    "hidden_share",
)
"""The figures that stand side by side where runs are compared."""


def of_run(summary: Summary) -> dict[str, Any]:
    """A run's figures by name; of the lists over time their last values."""
    last = {name: values[-1] for name, values in summary.curve.to_json().items() if values}
    figures = {**last, **summary.run.to_json(), **summary.final.to_json()}
    figures |= summary.traffic.to_json() if summary.traffic else {}
    if summary.timing:
        figures |= {f"{name}_ms": 1e3 * each for name, each in summary.timing.seconds.items()}
    figures["hidden_share"] = summary.timing.hidden_share if summary.timing else None
    return figures


def of_group(group: Group) -> dict[str, Any]:
    """A group's figures by name: what is the same in all of its runs, or no number, as it is.

    Elsewhere the mean and the standard deviation over the runs. None is what one of them does not
    have, or has no number for: the mean of the others would be that of another group.
    """
    of_runs = [of_run(summarise(run)) for run in group.runs]
    return {name: _together([each.get(name) for each in of_runs]) for name in of_runs[0]}


def _together(values: list[Any]) -> Any:
    """One figure of all runs from those of each."""
    if any(value is None or value != value for value in values):
        return None
    if values == [values[0]] * len(values) or not all(map(_is_number, values)):
        return values[0]
    return tuple(float(x) for x in mean_and_sd(np.array(values, dtype=np.float64)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
