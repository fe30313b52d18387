"""Lines for the layers, and k as colours over steps and layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from dls.inspect.curves import K, Quantity
from dls.inspect.groups import Curve, Group
from dls.inspect.panels.labels import legend, name_layers, plain_numbers, text
from dls.tools.drawing import COLOURS, DASHES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMED = 8
"""The most layers that have a colour of their own and stand in a legend; more are told apart by
their depth, with a scale.
"""
DEPTHS = "cividis"
"""The colour map of depth, and of k."""


def lines(group: Group, quantity: Quantity, axes: Axes) -> None:
    """A line for each layer, on a logarithmic axis."""
    curve = group.curve("steps", quantity.name)
    names = [text(each) for each in group.runs[0].layers["name"]]
    if len(names) <= NAMED:
        _few_lines(curve, names, axes)
        legend(axes, names)
    else:
        _many_lines(curve, axes)
        _depth_scale(len(names), axes)
    axes.set_yscale("log", nonpositive="mask")
    plain_numbers(axes.yaxis, *axes.get_ylim())
    axes.set_ylabel(quantity.label)
    axes.set_xlabel("training step")


def _few_lines(curve: Curve, names: list[str], axes: Axes) -> None:
    for i, (name, values) in enumerate(zip(names, curve.mean.T, strict=True)):
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
        axes.plot(curve.step, values, color=colour, linestyle=dash, lw=1.2, label=name)
        if curve.sd.any():
            low, high = values - curve.sd[:, i], values + curve.sd[:, i]
            axes.fill_between(curve.step, low, high, color=colour, alpha=0.15, lw=0)


def _many_lines(curve: Curve, axes: Axes) -> None:
    from matplotlib import colormaps

    count = curve.mean.shape[1]
    colours = colormaps[DEPTHS].resampled(256)(np.linspace(0, 0.9, count))
    for i, values in enumerate(curve.mean.T):
        dash = DASHES[i % len(DASHES)]
        axes.plot(curve.step, values, color=colours[i], linestyle=dash, lw=0.9)


def _depth_scale(count: int, axes: Axes) -> None:
    """A scale beside the axes that says which colour is which layer."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    colours = ScalarMappable(Normalize(1, count / 0.9), DEPTHS)
    steps = np.linspace(1, count, 200)
    bar = axes.figure.colorbar(colours, ax=axes, label="layer, the first is 1", boundaries=steps)
    bar.set_ticks(np.unique(np.linspace(1, count, 5).round()).tolist())


def heat(group: Group, axes: Axes) -> None:
    """k over steps and layers, the first layer on top, on a logarithmic scale of colours."""
    from matplotlib.colors import LogNorm

    curve, names = group.curve("steps", "k"), group.runs[0].layers["name"]
    values = np.ma.masked_less_equal(curve.mean.T, 0)
    step = curve.step.astype(np.float64)  # the sum of two whole numbers might be too large
    edges = np.concatenate([step[:1] - 0.5, (step[1:] + step[:-1]) / 2, step[-1:] + 0.5])
    low, high = max(values.min(), values.max() / 1e6), values.max()
    norm = LogNorm(low, 2 * high if values.min() == high else high)
    rows = np.arange(len(names) + 1)
    mesh = axes.pcolormesh(edges, rows, values, norm=norm, cmap=DEPTHS, rasterized=True)
    bar = axes.figure.colorbar(mesh, ax=axes, label=K.label)
    plain_numbers(bar.ax.yaxis, *bar.ax.get_ylim())
    name_layers(axes, names)
    axes.set_xlabel("training step")
