"""The chart of `dls.bench network`: step times as bars, computing and waiting apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dls.bench.network import NetworkRow
from dls.tools.drawing import family, looks

GREY = "#777777"
"""The colour of the legend, which is no method's."""
WAITING = "////"
"""The hatching of exposed communication."""


def draw(rows: Sequence[NetworkRow], path: Path) -> None:
    """Draw a line of panels for each number of hosts and rate, with a panel for each network.

    `dls.tools.plotting.check_picture` comes first.
    """
    from matplotlib.figure import Figure

    lines = list(dict.fromkeys((row.hosts, row.rate) for row in rows))
    models = list(dict.fromkeys(row.model for row in rows))
    figure = Figure(figsize=(4 * len(models), 0.6 + 2.1 * len(lines)), layout="constrained")
    panels = figure.subplots(len(lines), len(models), squeeze=False)
    for line, (hosts, rate) in enumerate(lines):
        for column, model in enumerate(models):
            axes, cell = panels[line, column], (hosts, rate, model)
            _draw_panel(axes, [row for row in rows if (row.hosts, row.rate, row.model) == cell])
            axes.set_title(f"{model}, {hosts} hosts, {rate}", fontsize=9)
    _add_legend(figure)
    figure.savefig(path, dpi=150)


def _add_legend(figure: Any) -> None:
    """Say what full and hatched bars are."""
    from matplotlib.patches import Patch

    computing = Patch(color=GREY, label="computing")
    words = "waiting for the network (exposed)"
    waiting = Patch(facecolor="white", edgecolor=GREY, hatch=WAITING, label=words)
    position = {"loc": "outside lower center", "ncols": 2}
    figure.legend(handles=[computing, waiting], frameon=False, **position)


def _draw_panel(axes: Any, rows: Sequence[NetworkRow]) -> None:
    names = [row.method for row in rows]
    compute = [row.compute_ms for row in rows]
    exposed = [row.exposed_ms for row in rows]
    colours = [look.colour for look in looks([family(name) for name in names])]
    edge: dict[str, Any] = {"edgecolor": colours, "lw": 0.6}
    axes.barh(names, compute, color=colours, **edge)
    bars = axes.barh(names, exposed, left=compute, color="white", hatch=WAITING, **edge)
    axes.bar_label(bars, labels=[f"{row.step_ms:,.0f}" for row in rows], padding=3, fontsize=8)
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.invert_yaxis()
    axes.set_xlabel("ms per step", fontsize=8)
    axes.tick_params(labelsize=8)
