"""Curves over the steps, or over something else, one for each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dls.inspect.curves import STEP, CurveFigure, Quantity
from dls.inspect.groups import Curve, Group
from dls.inspect.panels.labels import font_size, legend, looks_of, names, plain_numbers
from dls.tools.drawing import Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

AT_ENDS = 6
"""The most curves that are named where they end; more have a legend."""
LONGEST_AT_END = 22
"""The longest name that stands where a curve ends; longer ones have a legend."""
NEAR = 0.02
"""How far apart, as a share of the largest, curves may end that are named at their ends."""


@dataclass(frozen=True)
class Drawn:
    """A group's curve as it is drawn: its positions along the axis, its look and its name."""

    curve: Curve
    x: NDArray[np.float64]
    y: NDArray[np.float64]
    look: Look
    name: str


def draw(groups: Sequence[Group], figure: CurveFigure, axes: Axes) -> None:
    """One curve for each group; a band of one standard deviation where it has several runs."""
    drawn = [
        _prepared(group, figure, look, name)
        for group, look, name in zip(groups, looks_of(groups), names(groups), strict=True)
    ]
    for number, each in enumerate(drawn):
        _draw_curve(axes, each, figure, number)
    _lay_out(axes.xaxis, figure.x)
    _lay_out(axes.yaxis, figure.y)
    if len(groups) > 1 and not _name_ends(axes, drawn, figure):
        legend(axes, [each.name for each in drawn])


def _prepared(group: Group, figure: CurveFigure, look: Look, name: str) -> Drawn:
    curve = group.curve(figure.table, figure.y.name, figure.table == "steps")
    x = curve.step.astype(np.float64)
    if figure.x != STEP:
        x = figure.x.factor * group.curve(figure.table, figure.x.name).mean
    return Drawn(curve, x, figure.y.factor * curve.mean, look, name)


def _draw_curve(axes: Axes, drawn: Drawn, figure: CurveFigure, number: int) -> None:
    count, factor, curve = len(drawn.x), figure.y.factor, drawn.curve
    every = 1 if figure.table != "steps" and count <= 20 else max(1, count // 8)
    marks: dict[str, Any] = {"markersize": 4, "markevery": (number * every // 7, every)}
    axes.plot(drawn.x, drawn.y, **drawn.look.line, **marks, lw=1.3, label=drawn.name)
    if curve.sd.any():
        low, high = factor * (curve.mean - curve.sd), factor * (curve.mean + curve.sd)
        axes.fill_between(drawn.x, low, high, color=drawn.look.colour, alpha=0.18, lw=0)


def _lay_out(axis: Axis, quantity: Quantity) -> None:
    """Label the axis, and scale it."""
    axis.set_label_text(quantity.label)
    if not quantity.log:
        return
    across = axis is axis.axes.xaxis
    low, high = axis.get_data_interval()
    if 0 < low == high:  # a single value, which matplotlib's own limits may not hold apart
        (axis.axes.set_xlim if across else axis.axes.set_ylim)(low / 2, high * 2)
    (axis.axes.set_xscale if across else axis.axes.set_yscale)("log", nonpositive="mask")
    plain_numbers(axis, *axis.get_view_interval())


def _name_ends(axes: Axes, drawn: Sequence[Drawn], figure: CurveFigure) -> bool:
    """Name each curve where it ends, at the right.

    False, with nothing done, where the curves end apart or are too many for that.
    """
    ends = _ends(drawn, figure)
    if ends is None:
        return False
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # else the transformation would change
    on_axes = (axes.transData + axes.transAxes.inverted()).transform(ends)
    heights = spread(on_axes[:, 1], _line_height(axes))
    inside: dict[str, Any] = {"transform": axes.transAxes}
    for each, (x, y), height in zip(drawn, on_axes, heights, strict=True):
        colour = each.look.colour
        axes.plot([x, 1.03], [y, height], color=colour, lw=0.6, clip_on=False, **inside)
        axes.text(1.045, height, each.name, color=colour, va="center", **inside)
    return True


def _ends(drawn: Sequence[Drawn], figure: CurveFigure) -> NDArray[np.float64] | None:
    """The last point of each curve; None where there is no room for names there."""
    if len(drawn) > AT_ENDS or max(len(each.name) for each in drawn) > LONGEST_AT_END:
        return None
    ends = [_end(each, figure) for each in drawn]
    if any(end is None for end in ends):
        return None
    last = np.array(ends, dtype=np.float64)
    is_apart = np.ptp(last[:, 0]) > NEAR * max(1e-300, last[:, 0].max())
    return None if is_apart else last


def _end(drawn: Drawn, figure: CurveFigure) -> tuple[float, float] | None:
    """The last point of the curve that can be drawn."""
    shown = _is_shown(drawn.x, figure.x) & _is_shown(drawn.y, figure.y)
    rows = np.flatnonzero(shown)
    return (float(drawn.x[rows[-1]]), float(drawn.y[rows[-1]])) if rows.size else None


def _is_shown(values: NDArray[np.float64], quantity: Quantity) -> NDArray[np.bool_]:
    shown: NDArray[np.bool_] = np.isfinite(values) & ((values > 0) | (not quantity.log))
    return shown


def _line_height(axes: Axes) -> float:
    """About the height of a line of text, as a share of the height of the axes."""
    panel, page = axes.get_figure(root=False), axes.get_figure(root=True)
    inches = panel.bbox.height / page.dpi if panel and page else 0.0
    return 1.15 * font_size() / 72 / max(0.5, inches - 0.6)


def spread(heights: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Move heights from 0 to 1 as little as keeps them a gap apart, in their order."""
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    up = np.maximum.accumulate(heights[order] - steps) + steps
    down = np.minimum.accumulate((heights[order] - steps)[::-1])[::-1] + steps
    middle = (up + down) / 2
    middle = np.minimum(middle, 1 - steps[::-1])
    middle = np.maximum(middle, min(0.0, 1 - steps[-1]) + steps)
    placed: NDArray[np.float64] = np.empty_like(middle)
    placed[order] = middle
    return placed
