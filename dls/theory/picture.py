"""What `dls.theory` measured, as one picture.

It shows measured against predicted ratios, the errors by network and by place, the set size on a
gradient that stays, and the overlap with Global Top-k in a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dls.theory.forms import ALL_EQUAL, FORMS
from dls.theory.properties import HALF
from dls.theory.rows import ErrorRow, FixedRow, RatioRow, RunRow, of_kind
from dls.tools import plotting
from dls.tools.drawing import COLOURS
from dls.tools.rows import Row

MARKERS = dict(zip(FORMS, "sDox", strict=True))
"""A marker for each form, so that the picture can be read without its colours."""
FORM_COLOURS = dict(zip(FORMS, COLOURS, strict=False))
"""A colour for each form."""
LINES = ("-", "--", ":", "-.")
"""A line style for each network."""
SHIFT = 0.17
"""How far markers stand above or below the middle of their row."""


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the picture to a file. `dls.tools.plotting.check_picture` comes first."""
    from matplotlib.figure import Figure

    ratios, errors = of_kind(rows, RatioRow), of_kind(rows, ErrorRow)
    steps = list(dict.fromkeys(row.step for row in ratios))
    figure = Figure(figsize=(11, 14), layout="constrained")
    panels = figure.subplots(3, 2, gridspec_kw={"height_ratios": (1, 1.3, 0.9)})
    for axes, step in zip(panels[0], (steps[0], steps[-1]), strict=True):
        _draw_ratios(axes, [row for row in ratios if row.step == step], step)
    for axes, of in zip(panels[1], (("all", "network"), ("kinds", "place")), strict=True):
        _draw_errors(axes, [row for row in errors if row.of in of], steps)
    _draw_fixed(panels[2, 0], of_kind(rows, FixedRow))
    _draw_run(panels[2, 1], of_kind(rows, RunRow))
    for axes in panels.flat:
        plotting.tidy(axes)
    figure.savefig(path, dpi=130)


def _draw_ratios(axes: Any, ratios: Sequence[RatioRow], step: int) -> None:
    known = [(row.measured, row.predicted) for row in ratios if row.measured is not None]
    measured = [ratio for ratio, _ in known]
    hollow: dict[str, Any] = {"fillstyle": "none", "markersize": 6, "alpha": 0.9}
    for form, marker in MARKERS.items():
        if form != ALL_EQUAL:
            predicted = [forms[form] for _, forms in known]
            axes.plot(predicted, measured, marker, color=FORM_COLOURS[form], label=form, **hollow)
    every = [*measured, *(ratio for _, forms in known for ratio in forms.values())] or [1.0]
    ends = [min(every), max(every)]
    axes.plot(ends, ends, color="black", lw=1, label="measured = predicted")
    axes.set(xscale="log", yscale="log", ylabel="measured ratio")
    axes.set_xlabel("predicted ratio of neighbouring layers' variances")
    axes.set_title("at initialisation" if step == 0 else f"after {step} training steps")
    axes.legend(frameon=False, fontsize="small")


def _draw_errors(axes: Any, errors: Sequence[ErrorRow], steps: Sequence[int]) -> None:
    """A row for each name; hollow after the first number of steps, filled after the last."""
    names = list(dict.fromkeys(row.name for row in errors))
    styles = [(steps[0], "none", SHIFT), (steps[-1], "full", -SHIFT)][: len(set(steps))]
    for form, marker in MARKERS.items():
        for step, fill, shift in styles:
            shown = [row for row in errors if row.step == step and row.forms]
            means = [row.forms[form].mean for row in shown]
            heights = [names.index(row.name) - shift for row in shown]
            look: dict[str, Any] = {"color": FORM_COLOURS[form], "fillstyle": fill, "markersize": 5}
            axes.plot(means, heights, marker, label=f"{form}, step {step}", **look)
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("mean |log2(measured / predicted)|: doublings that a prediction is off")
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.1), "ncols": 4}
    axes.legend(frameon=False, fontsize="x-small", **below)


def _colour_of_density(rows: Sequence[FixedRow] | Sequence[RunRow]) -> dict[float, str]:
    densities = dict.fromkeys(row.density for row in rows)
    return {density: COLOURS[i % len(COLOURS)] for i, density in enumerate(densities)}


def _draw_fixed(axes: Any, fixed: Sequence[FixedRow]) -> None:
    """The set size as a share of that before the first adjustment, on the last recorded gradient.

    Networks differ in their lines, densities in their colours.
    """
    last = max((row.step for row in fixed), default=0)
    shown = [row for row in fixed if row.step == last and row.set_sizes[0] > 0]
    colours, networks = _colour_of_density(shown), list(dict.fromkeys(row.network for row in shown))
    for row in shown:
        shares = [size / row.set_sizes[0] for size in row.set_sizes]
        line = LINES[networks.index(row.network) % len(LINES)]
        label = f"{row.network} ({row.layers} layers), density {row.density:g}"
        axes.plot(shares, line, color=colours[row.density], label=label)
    halves = [HALF**number for number in range(20)]
    axes.plot(halves, color="black", lw=0.8, label="half at each")
    axes.set(yscale="log", ylabel="set size / set size before")
    axes.set_xlabel("adjustments of a gradient that stays")
    axes.legend(frameon=False, fontsize="x-small")


def _draw_run(axes: Any, runs: Sequence[RunRow]) -> None:
    """The last network's overlap with Global Top-k before each step's adjustment.

    Beside it that of Layer-wise Top-k's k.
    """
    shown = [row for row in runs if row.network == runs[-1].network]
    colours = _colour_of_density(shown)
    for row in shown:
        colour, label = colours[row.density], f"DLS(1), density {row.density:g}"
        axes.plot(row.steps, row.overlaps, "-", color=colour, label=label)
        label = "Layer-wise's k on the same v"
        axes.plot(row.steps, row.overlaps_layerwise, ":", color=colour, lw=1.2, label=label)
        axes.set_title(f"a run of {row.network}", fontsize="medium")
    axes.set(xlabel="training step", ylabel="overlap with Global Top-k")
    axes.set_ylim(0, 1.02)
    if shown:
        axes.legend(frameon=False, fontsize="x-small", ncols=2)
