"""The chart of a study: accuracy over density, a panel for each workload."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count, cycle
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from dls.drawing import COLOURS, MARKERS
from dls.study.results import Row

Style = tuple[str, str, float]
"""Colour, marker, and the factor that moves a method aside from the others at each density."""
ABREAST = 3
"""Most panels in one line; more stand in pairs."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Means over the seeds, bars are standard deviations. Workloads without a density have no panel."""
    reached = [row for row in rows if row["seeds"]]
    workloads = list(dict.fromkeys(row["workload"] for row in reached if row["density"] is not None))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    looks = zip(methods, cycle(COLOURS), cycle(MARKERS), count(-len(methods) // 2), strict=False)
    styles = {name: (colour, marker, 1.06**place) for name, colour, marker, place in looks}
    with rc_context({"text.parse_math": False}):  # names are anybody's
        columns = len(workloads) if len(workloads) <= ABREAST else 2
        lines = math.ceil(len(workloads) / columns) if columns else 1
        figure = Figure(figsize=(5 * max(1, columns), 4 * lines), layout="constrained")
        for place, workload in enumerate(workloads, start=1):
            axes = figure.add_subplot(lines, columns, place, title=workload, xlabel="density", ylabel="test accuracy, %")
            _draw(axes, [row for row in reached if row["workload"] == workload], styles)
        figure.savefig(path, dpi=150)


def _draw(axes: Any, rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    """Methods side by side at each density; one without a density is a line across."""
    for name in dict.fromkeys(row["method"] for row in rows):
        own, (colour, marker, shift) = [row for row in rows if row["method"] == name], styles[name]
        means = [100 * fmean(row["accuracy"]) for row in own]
        spread = [100 * stdev(row["accuracy"]) if len(row["accuracy"]) > 1 else 0.0 for row in own]
        if own[0]["density"] is None:
            axes.axhline(means[0], color=colour, linestyle="--", label=name)
            continue
        x = [row["density"] * shift for row in own]
        axes.errorbar(x, means, spread, color=colour, marker=marker, capsize=3, linestyle=":", label=name)
    axes.set_xscale("log")
    axes.set_xticks(sorted({row["density"] for row in rows} - {None}))
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
