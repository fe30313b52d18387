"""The chart of a study: accuracy over density, a panel for each workload."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from dls.study.rows import StudyRow
from dls.tools import numbers, plotting
from dls.tools.drawing import Look, family, looks

ABREAST = 3
"""The most panels that stand in one line; more stand in pairs."""
APART = 1.06
"""The factor between the positions of neighbouring methods, which stand side by side."""


@dataclass(frozen=True)
class Style:
    """How a method is drawn: its look, and the factor that moves it aside from the others."""

    look: Look
    shift: float


def draw(rows: Sequence[StudyRow], path: Path) -> None:
    """Draw means over the seeds, with their standard deviations as bars.

    A workload of which no run has a density gets no panel.
    """
    reached = [row for row in rows if row.seeds]
    workloads = list(dict.fromkeys(row.workload for row in reached if row.density is not None))
    columns = len(workloads) if len(workloads) <= ABREAST else 2
    lines = math.ceil(len(workloads) / columns) if columns else 1
    styles = _styles(rows)
    with rc_context({"text.parse_math": False, "font.size": 9}):  # a name may hold anything
        figure = Figure(figsize=(4.6 * max(1, columns), 0.5 + 3.2 * lines), layout="constrained")
        handles: dict[str, Any] = {}
        for number, workload in enumerate(workloads, start=1):
            axes = figure.add_subplot(lines, columns, number, title=workload)
            _draw_panel(axes, [row for row in reached if row.workload == workload], styles)
            drawn, names = axes.get_legend_handles_labels()
            handles |= dict(zip(names, drawn, strict=True))
        position: dict[str, Any] = {"loc": "outside lower center", "ncols": max(1, len(handles))}
        figure.legend(handles.values(), handles, frameon=False, **position)
        figure.savefig(path, dpi=150)


def _styles(rows: Sequence[StudyRow]) -> dict[str, Style]:
    """By the names that the study gives its methods."""
    methods = {row.method: str(row.settings.get("method", family(row.method))) for row in rows}
    shifts = (APART**number for number in count(-len(methods) // 2))
    styles = map(Style, looks([*methods.values()]), shifts)
    return dict(zip(methods, styles, strict=False))


def _draw_panel(axes: Any, rows: Sequence[StudyRow], styles: Mapping[str, Style]) -> None:
    """Methods side by side at each density."""
    for name in dict.fromkeys(row.method for row in rows):
        _draw_method(axes, name, [row for row in rows if row.method == name], styles[name])
    axes.set(xlabel="density", ylabel="test accuracy (%)", xscale="log")
    axes.set_xticks(sorted({row.density for row in rows if row.density is not None}))
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    plotting.tidy(axes)


def _draw_method(axes: Any, name: str, rows: Sequence[StudyRow], style: Style) -> None:
    """A method's means; one without a density is a line across, with a band."""
    accuracies = [[100 * share for share in row.accuracy] for row in rows]
    means = [fmean(each) for each in accuracies]
    spreads = [numbers.spread(each) or 0.0 for each in accuracies]
    densities = [row.density for row in rows if row.density is not None]
    if not densities:
        low, high, colour = means[0] - spreads[0], means[0] + spreads[0], style.look.colour
        axes.axhline(means[0], color=colour, linestyle=(0, (6, 2)), lw=1.2, label=name)
        axes.axhspan(low, high, color=colour, alpha=0.08, lw=0)
        return
    x = [density * style.shift for density in densities]
    bars: dict[str, Any] = {"capsize": 2.5, "elinewidth": 1, "markersize": 5, "lw": 1.2}
    axes.errorbar(x, means, spreads, **style.look.line, **bars, label=name)
