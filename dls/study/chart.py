"""The chart of a study: accuracy over density, a panel for each workload."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from dls.study.results import Row
from dls.tools.drawing import Look, family, looks

Style = tuple[Look, float]
"""The method's look, and the factor that moves it aside from the others at each density."""
ABREAST = 3
"""Most panels in one line; more stand in pairs."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Means over the seeds, bars are standard deviations.

    Workloads without a density have no panel.
    """
    reached = [row for row in rows if row["seeds"]]
    workloads = list(
        dict.fromkeys(row["workload"] for row in reached if row["density"] is not None)
    )
    styles = _styles(rows)
    with rc_context({"text.parse_math": False, "font.size": 9}):  # names are anybody's
        columns = len(workloads) if len(workloads) <= ABREAST else 2
        lines = math.ceil(len(workloads) / columns) if columns else 1
        figure = Figure(figsize=(4.6 * max(1, columns), 0.5 + 3.2 * lines), layout="constrained")
        handles: dict[str, Any] = {}
        for place, workload in enumerate(workloads, start=1):
            axes = figure.add_subplot(
                lines, columns, place, title=workload, xlabel="density", ylabel="test accuracy (%)"
            )
            _draw(axes, [row for row in reached if row["workload"] == workload], styles)
            shown, names = axes.get_legend_handles_labels()
            handles |= dict(zip(names, shown, strict=True))
        figure.legend(
            handles.values(),
            handles,
            loc="outside lower center",
            ncols=max(1, len(handles)),
            frameon=False,
        )
        figure.savefig(path, dpi=150)


def _styles(rows: Sequence[Row]) -> dict[str, Style]:
    """By the names that the study gives its methods."""
    methods = {
        row["method"]: str(row["settings"].get("method", family(row["method"]))) for row in rows
    }
    places = count(-len(methods) // 2)
    return {
        name: (look, 1.06**place)
        for name, look, place in zip(methods, looks([*methods.values()]), places, strict=False)
    }


def _draw(axes: Any, rows: Sequence[Row], styles: Mapping[str, Style]) -> None:
    """Methods side by side at each density; one without a density is a line across, with a band."""
    for name in dict.fromkeys(row["method"] for row in rows):
        own, (look, shift) = [row for row in rows if row["method"] == name], styles[name]
        means = [100 * fmean(row["accuracy"]) for row in own]
        spread = [100 * stdev(row["accuracy"]) if len(row["accuracy"]) > 1 else 0.0 for row in own]
        if own[0]["density"] is None:
            axes.axhline(means[0], color=look.colour, linestyle=(0, (6, 2)), lw=1.2, label=name)
            axes.axhspan(
                means[0] - spread[0], means[0] + spread[0], color=look.colour, alpha=0.08, lw=0
            )
            continue
        x = [row["density"] * shift for row in own]
        axes.errorbar(
            x,
            means,
            spread,
            **look.line,
            capsize=2.5,
            lw=1.2,
            elinewidth=1,
            markersize=5,
            label=name,
        )
    axes.set_xscale("log")
    axes.set_xticks(sorted({row["density"] for row in rows} - {None}))
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
