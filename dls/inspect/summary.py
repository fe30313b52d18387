"""The figures that sum a run up."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls import traffic
from dls.inspect.run import About, Columns, Run
from dls.record import files
from dls.record.schema import SECONDS
from dls.tools.rows import Row

POINTS = 8
"""Rows of the table over time."""
MAX_WINDOW = 50
"""The most recorded steps that a smoothed value looks back."""


# The figures, each of which dls.inspect describes ------------------------------------------------


@dataclass(frozen=True)
class Final(Row):
    """Where a run ended."""

    train_loss: float | None
    test_loss: float | None
    accuracy: float | None
    best_accuracy: float | None
    best_step: int | None


@dataclass(frozen=True)
class OverTime(Row):
    """A few points of a run's curves; the lists are empty where nothing was recorded."""

    step: Sequence[int]
    loss: Sequence[float]
    accuracy: Sequence[float | None]
    set_size: Sequence[float]
    threshold_ratio: Sequence[float]
    global_share: Sequence[float | None]


@dataclass(frozen=True)
class Layers(Row):
    """The layers at the first and the last recorded step; None where nothing was recorded."""

    name: Sequence[str]
    kind: Sequence[str]
    size: Sequence[int]
    k_first: Sequence[float] | None = None
    k_rank0_first: Sequence[int] | None = None
    ratio_first: Sequence[float] | None = None
    threshold_first: Sequence[float] | None = None
    residual_norm_first: Sequence[float] | None = None
    k_last: Sequence[float] | None = None
    k_rank0_last: Sequence[int] | None = None
    ratio_last: Sequence[float] | None = None
    threshold_last: Sequence[float] | None = None
    residual_norm_last: Sequence[float] | None = None


@dataclass(frozen=True)
class Traffic(Row):
    """The bytes of one rank, beside those of dense and of a ring Allreduce."""

    bytes_per_step: float
    dense_bytes_per_step: float
    share_of_dense: float
    total_bytes: float
    dense_total_bytes: float
    compression: float
    received_bytes_per_step: float
    ring_bytes_per_step: float
    share_of_ring: float
    total_received_bytes: float
    ring_total_bytes: float
    uploaded_share: float


@dataclass(frozen=True)
class Timing(Row):
    """The time of a mean step: seconds and shares, by phase and in total."""

    steps: int
    seconds: Mapping[str, float]
    share: Mapping[str, float]
    hidden_share: float | None


@dataclass(frozen=True)
class Summary:
    """All there is to say about a run; traffic and timing are None where nothing was recorded."""

    run: About
    recorded: int
    window: int
    final: Final
    curve: OverTime
    layers: Layers
    traffic: Traffic | None
    timing: Timing | None

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `dls.inspect` describes."""
        return {
            "run": self.run.to_json(),
            "recorded": self.recorded,
            "window": self.window,
            "final": self.final.to_json(),
            "curve": self.curve.to_json(),
            "layers": self.layers.to_json(),
            "traffic": self.traffic.to_json() if self.traffic else {},
            "timing": self.timing.to_json() if self.timing else {},
        }


def to_json(summaries: Sequence[Summary]) -> str:
    """One JSON object of several runs; null for the numbers that JSON does not have."""
    records = [each.to_json() for each in summaries]
    return files.json_text({"runs": records}, indent=2, default=str)


# Summing up ---------------------------------------------------------------------------------------


def summarise(run: Run) -> Summary:
    """The figures of a run."""
    recorded = len(run.steps["step"])
    curve = _over_time(run)
    return Summary(
        run=run.about,
        recorded=recorded,
        window=window_of(recorded),
        final=_final(run.evals, curve.loss[-1] if recorded else None),
        curve=curve,
        layers=_layers(run),
        traffic=_traffic(run) if recorded else None,
        timing=_timing(run) if recorded else None,
    )


def _over_time(run: Run) -> OverTime:
    steps, recorded = run.steps, len(run.steps["step"])
    rows = np.zeros(0, int)
    if recorded:
        rows = np.unique(np.linspace(0, recorded - 1, POINTS).round().astype(int))
    shown = steps["step"][rows].tolist()
    return OverTime(
        step=shown,
        loss=smooth(steps["loss"], rows).tolist(),
        accuracy=_latest(run.evals, "accuracy", shown),
        set_size=smooth(steps["set_size"], rows).tolist(),
        threshold_ratio=smooth(steps["threshold_ratio"], rows).tolist(),
        global_share=_latest(run.diagnostics, "global_share", shown),
    )


def _latest(columns: Columns, name: str, steps: Sequence[int]) -> list[float | None]:
    """The last value so far, at each of these steps; None before the first."""
    counts = np.searchsorted(columns["step"], steps, side="right")
    return [columns[name][count - 1].item() if count else None for count in counts]


def window_of(recorded: int) -> int:
    """How many recorded steps a smoothed mean looks back."""
    return max(1, min(MAX_WINDOW, recorded // 20))


def smooth(values: NDArray[Any], rows: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """The mean of a row and of those before it in the window, without NaN.

    rows: the numbers of the rows; None: all.
    """
    window, numbers = window_of(len(values)), range(len(values)) if rows is None else rows
    recent = (values[max(0, row + 1 - window) : row + 1] for row in numbers)
    known = (part[~np.isnan(part)] for part in recent)
    return np.array([part.mean() if part.size else np.nan for part in known], dtype=np.float64)


def _final(evals: Columns, train_loss: float | None) -> Final:
    if not len(evals["step"]):
        return Final(train_loss, None, None, None, None)
    best = int(evals["accuracy"].argmax())
    return Final(
        train_loss=train_loss,
        test_loss=float(evals["loss"][-1]),
        accuracy=float(evals["accuracy"][-1]),
        best_accuracy=float(evals["accuracy"][best]),
        best_step=int(evals["step"][best]),
    )


def _layers(run: Run) -> Layers:
    steps, sizes = run.steps, np.array(run.layers["size"])
    about = {"name": list(run.layers["name"]), "kind": list(run.layers["kind"])}
    ends: dict[str, Any] = {}
    for end, row in (("first", 0), ("last", -1)) if len(steps["k"]) else ():
        for name in ("k", "k_rank0", "threshold", "residual_norm"):
            ends[f"{name}_{end}"] = steps[name][row].tolist()
        ends[f"ratio_{end}"] = (steps["k"][row] / sizes).tolist()
    return Layers(**about, size=sizes.tolist(), **ends)


def _traffic(run: Run) -> Traffic:
    sent, values = run.steps["payload_bytes"], int(sum(run.layers["size"]))
    received, ring = run.steps["received_bytes"], run.steps["ring_bytes"]
    mean, dense = float(sent.mean()), traffic.VALUE_BYTES * values
    return Traffic(
        bytes_per_step=mean,
        dense_bytes_per_step=dense,
        share_of_dense=mean / dense,
        total_bytes=float(sent.sum()),
        dense_total_bytes=dense * len(sent),
        compression=dense / mean if mean else math.inf,
        received_bytes_per_step=float(received.mean()),
        ring_bytes_per_step=float(ring.mean()),
        share_of_ring=float(received.sum() / ring.sum()) if ring.any() else math.nan,
        total_received_bytes=float(received.sum()),
        ring_total_bytes=float(ring.sum()),
        uploaded_share=float(run.steps["k"].sum(axis=1).mean()) / values,
    )


def _timing(run: Run) -> Timing:
    steps, warm = run.steps, run.steps["warm"]
    seconds = {name: float(steps[f"seconds/{name}"][warm].mean()) for name in SECONDS}
    total = seconds.pop("total")
    seconds |= {"other": total - sum(seconds.values()), "total": total}
    hidden = run.diagnostics["hidden_share"]
    hidden = hidden[~np.isnan(hidden)]
    return Timing(
        steps=int(warm.sum()),
        seconds=seconds,
        share={name: value / total if total else math.nan for name, value in seconds.items()},
        hidden_share=float(hidden.mean()) if len(hidden) else None,
    )
