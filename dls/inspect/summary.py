"""The figures that sum a run up, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls import traffic
from dls.inspect.series import Columns, Series
from dls.record import files
from dls.record.schema import SECONDS

POINTS, MAX_WINDOW = 8, 50
"""Rows of the table over time; most recorded steps that a smoothed value looks back."""

COMPARED = (  # rows of the comparison
    *("method", "density", "ranks", "steps", "accuracy", "test_loss", "train_loss"),
    *("set_size", "threshold_ratio", "global_share", "bytes_per_step", "share_of_dense"),
    *("received_bytes_per_step", "ring_bytes_per_step", "share_of_ring"),
    *("total_ms", "exposed_ms", "hidden_share"),
)
SHOWN_ENDS = ("first threshold", "last threshold", "first residual", "last residual")
FORMATS = (  # how the numbers of that name, or below that head, are written
    dict.fromkeys(("step", "size", "rank 0", "sent", "received", "dense", "ring Allreduce"), ",.0f")
    | dict.fromkeys(("bytes_per_step", "received_bytes_per_step", "ring_bytes_per_step"), ",.0f")
    | dict.fromkeys(("first k", "last k"), ",.1f")
    | dict.fromkeys(("set_size", "threshold_ratio", "compression", *SHOWN_ENDS), ".4g")
    | dict.fromkeys(("loss", "train_loss", "test_loss"), ".4f")
    | dict.fromkeys(
        (
            "accuracy",
            "best_accuracy",
            "share_of_dense",
            "share_of_ring",
            "global_share",
            "hidden_share",
        ),
        ".2%",
    )
    | {"k/n": ".3%", "ms": ".3f", "total_ms": ".3f", "exposed_ms": ".3f", "share": ".1%"}
)


@dataclass(frozen=True)
class Summary:
    """All there is to say about a run; dls.inspect names the keys."""

    run: Mapping[str, Any]
    recorded: int
    window: int
    final: Mapping[str, float | None]
    curve: Mapping[str, Sequence[Any]]
    layers: Mapping[str, Sequence[Any]]
    traffic: Mapping[str, float]
    timing: Mapping[str, Any]


def summarise(series: Series) -> Summary:
    """The figures of a run."""
    steps, recorded = series.steps, len(series.steps["step"])
    at = (
        np.unique(np.linspace(0, recorded - 1, POINTS).round().astype(int))
        if recorded
        else np.zeros(0, int)
    )
    curve = {"step": steps["step"][at].tolist(), "loss": smooth(steps["loss"], at).tolist()}
    curve |= {"accuracy": _latest(series.evals, "accuracy", curve["step"])}
    curve |= {name: smooth(steps[name], at).tolist() for name in ("set_size", "threshold_ratio")}
    curve |= {"global_share": _latest(series.diagnostics, "global_share", curve["step"])}
    final = {"train_loss": curve["loss"][-1] if recorded else None, **_last_and_best(series.evals)}
    traffic, timing = (_traffic(series), _timing(series)) if recorded else ({}, {})
    return Summary(
        series.run, recorded, window_of(recorded), final, curve, _layers(series), traffic, timing
    )


def _latest(columns: Columns, name: str, steps: Sequence[int]) -> list[float | None]:
    """The last value so far, at each of these steps."""
    return [
        columns[name][i - 1].item() if i else None
        for i in np.searchsorted(columns["step"], steps, side="right")
    ]


def window_of(recorded: int) -> int:
    """How many recorded steps a smoothed mean looks back."""
    return max(1, min(MAX_WINDOW, recorded // 20))


def smooth(values: NDArray[Any], at: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """For each row number in `at`, or for all, the mean of that row and of those before it in the
    window, NaN left out.
    """
    window, rows = window_of(len(values)), range(len(values)) if at is None else at
    recent = (values[max(0, i + 1 - window) : i + 1] for i in rows)
    known = (part[~np.isnan(part)] for part in recent)
    return np.array([part.mean() if part.size else np.nan for part in known], dtype=np.float64)


def _last_and_best(evals: Columns) -> Mapping[str, float | None]:
    if not len(evals["step"]):
        return dict.fromkeys(("test_loss", "accuracy", "best_accuracy", "best_step"))
    best = int(evals["accuracy"].argmax())
    last = {"test_loss": float(evals["loss"][-1]), "accuracy": float(evals["accuracy"][-1])}
    return last | {
        "best_accuracy": float(evals["accuracy"][best]),
        "best_step": int(evals["step"][best]),
    }


def _layers(series: Series) -> dict[str, list[Any]]:
    sizes = np.array(series.layers["size"])
    layers = {
        "name": list(series.layers["name"]),
        "kind": list(series.layers["kind"]),
        "size": sizes.tolist(),
    }
    for end, row in (("first", 0), ("last", -1)) if len(series.steps["k"]) else ():
        layers |= {f"{name}_{end}": series.steps[name][row].tolist() for name in ("k", "k_rank0")}
        layers[f"ratio_{end}"] = (series.steps["k"][row] / sizes).tolist()
        layers |= {
            f"{name}_{end}": series.steps[name][row].tolist()
            for name in ("threshold", "residual_norm")
        }
    return layers


def _traffic(series: Series) -> dict[str, float]:
    sent, values = series.steps["payload_bytes"], int(sum(series.layers["size"]))
    received, ring = series.steps["received_bytes"], series.steps["ring_bytes"]
    mean, dense = float(sent.mean()), traffic.VALUE_BYTES * values
    return {
        "bytes_per_step": mean,
        "dense_bytes_per_step": dense,
        "share_of_dense": mean / dense,
        "total_bytes": float(sent.sum()),
        "dense_total_bytes": dense * len(sent),
        "compression": dense / mean if mean else math.inf,
        "received_bytes_per_step": float(received.mean()),
        "ring_bytes_per_step": float(ring.mean()),
        "share_of_ring": float(received.sum() / ring.sum()) if ring.any() else math.nan,
        "total_received_bytes": float(received.sum()),
        "ring_total_bytes": float(ring.sum()),
        "uploaded_share": float(series.steps["k"].sum(axis=1).mean()) / values,
    }


def _timing(series: Series) -> dict[str, Any]:
    steps, warm = series.steps, series.steps["warm"]
    hidden = series.diagnostics["hidden_share"]
    hidden = hidden[~np.isnan(hidden)]
    seconds = {name: float(steps[f"seconds/{name}"][warm].mean()) for name in SECONDS}
    total = seconds.pop("total")
    seconds |= {"other": total - sum(seconds.values()), "total": total}
    share = {name: value / total if total else math.nan for name, value in seconds.items()}
    known = {"hidden_share": float(hidden.mean()) if len(hidden) else None}
    return {"steps": int(warm.sum()), "seconds": seconds, "share": share, **known}


def to_json(summaries: Sequence[Summary]) -> str:
    """One JSON object, as dls.inspect describes it; null for the numbers that JSON does not
    have.
    """
    return files.json_text({"runs": [asdict(each) for each in summaries]}, indent=2, default=str)


def single_figures(summary: Summary) -> dict[str, Any]:
    """By name, what has one value; of the lists over time their last."""
    last = {name: values[-1] for name, values in summary.curve.items() if values}
    ms = {
        f"{name}_ms": 1e3 * seconds for name, seconds in summary.timing.get("seconds", {}).items()
    }
    hidden = {"hidden_share": summary.timing.get("hidden_share")}
    return {**last, **summary.run, **summary.final, **summary.traffic, **ms, **hidden}


def written(name: str, value: Any) -> str:
    """A figure of that name, or below that head, as people read it; - where there is none."""
    if isinstance(value, list | dict):
        return ", ".join(map(str, value))
    if value is None or value == "" or value != value:
        return "-"
    return (
        "inf"
        if value == math.inf
        else format(value, "" if isinstance(value, str) else FORMATS.get(name, ""))
    )


def written_pair(name: str, value: Any) -> str:
    """A figure, or a mean and its standard deviation, as people read it."""
    if not isinstance(value, tuple):
        return written(name, value)
    mean, sd = (written(name, number) for number in value)
    return f"{mean} ± {sd}"
