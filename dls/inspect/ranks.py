"""The columns of a trace, which has a value for each rank, reduced to one value."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dls import traffic
from dls.exchange import clock
from dls.inspect.run import Columns
from dls.record.schema import Trace

OF_NO_RANK = ("step", "epoch", "lr")
"""Columns that have one value a step."""


def reduce(steps: Columns, values: int) -> Columns:
    """The steps of a Run from those of one trace, whose gradient has so many values."""
    low, high = steps["threshold"].min(axis=2), steps["threshold"].max(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = high / low
    shape = steps["loss"].shape
    known = steps["received_bytes"] >= 0  # what an older trace did not record is schema.UNKNOWN
    of_ranks = {name: column for name, column in steps.items() if name not in OF_NO_RANK}
    of_ranks |= {
        "received_bytes": np.where(known, steps["received_bytes"], np.nan),
        "ring_bytes": np.full(shape, traffic.ring_bytes(values, shape[1])),
        "set_size": high - low,
        "threshold_ratio": ratio,
        "residual": np.sqrt((steps["residual_norm"] ** 2).sum(axis=2)),
    }
    own = {
        "step": steps["step"],
        "k_rank0": steps["k"][:, 0],
        "warm": np.arange(len(low)) >= min(1, len(low) - 1),
    }
    return own | {name: column.mean(axis=1) for name, column in of_ranks.items()}


def hidden_share(part: Trace) -> NDArray[np.float64]:
    """Of the time that a rank's messages were under way, the share in which it did not wait [D, P].

    NaN where a diagnosed step was not recorded as well, or sent nothing.
    """
    diagnosed, steps = part.diagnostics, part.steps["step"]
    exchange = clock.OF_LAYERS.index("exchange")
    under_way = _covered(diagnosed["begin"][..., exchange], diagnosed["end"][..., exchange])
    recorded = np.isin(diagnosed["step"], steps)
    rows = np.searchsorted(steps, diagnosed["step"][recorded])
    waited = np.full(under_way.shape, np.nan)
    waited[recorded] = part.steps["seconds/exposed"][rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(under_way > 0, np.clip(1 - waited / under_way, 0, 1), np.nan)


def _covered(begin: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much time the intervals of the last axis cover together; NaN is none."""
    order = begin.argsort(axis=-1)  # NaN last
    begin, end = (np.take_along_axis(each, order, axis=-1) for each in (begin, end))
    before = np.roll(np.fmax.accumulate(end, axis=-1), 1, axis=-1)
    before[..., 0] = -np.inf
    covered: NDArray[np.float64] = np.nansum(np.maximum(end - np.fmax(begin, before), 0), axis=-1)
    return covered
