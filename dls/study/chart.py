"""The chart of a study: accuracy over density, a panel for each workload."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from dls.inspect.pictures import COLOURS, MARKERS
from dls.study.results import Row


def draw(rows: Sequence[Row], path: Path) -> None:
    """Means over the seeds, bars are standard deviations."""
    workloads = list(dict.fromkeys(row["workload"] for row in rows if row["seeds"]))
    figure = Figure(figsize=(5 * max(1, len(workloads)), 4), layout="constrained")
    for place, workload in enumerate(workloads, start=1):
        axes = figure.add_subplot(1, len(workloads), place, title=workload, xlabel="density", ylabel="test accuracy, %")
        _draw(axes, [row for row in rows if row["workload"] == workload and row["seeds"]])
    figure.savefig(path, dpi=150)


def _draw(axes: Any, rows: Sequence[Row]) -> None:
    """Methods side by side at each density; one without a density is a line across."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    styles: Mapping[str, Any] = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(methods)}
    for name in methods:
        own, (colour, marker) = [row for row in rows if row["method"] == name], styles[name]
        means = [100 * fmean(row["accuracy"]) for row in own]
        spread = [100 * stdev(row["accuracy"]) if len(row["accuracy"]) > 1 else 0.0 for row in own]
        if own[0]["density"] is None:
            axes.axhline(means[0], color=colour, linestyle="--", label=name)
            continue
        shift = 1.06 ** (methods.index(name) - len(methods) / 2)
        x = [row["density"] * shift for row in own]
        axes.errorbar(x, means, spread, color=colour, marker=marker, capsize=3, linestyle=":", label=name)
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
