"""How each picture is drawn, on axes of matplotlib's: curves over the steps, dots, bars, layers, a
timeline.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dls import traffic
from dls.exchange import clock
from dls.inspect.groups import Curve, Group
from dls.inspect.series import Closest
from dls.inspect.summary import summarise
from dls.tools.drawing import COLOURS, DASHES, Look, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

HATCHES = ("", "///", "|||", "\\\\\\", "---", "", "///", "", "|||")
"""Of the phases of a step."""
_FILLS = (("#0072B2", ""), ("#E69F00", "|||"), ("#56B4E9", "///"), ("#009E73", "\\\\\\"))
PHASES = dict(zip(clock.OF_LAYERS, _FILLS, strict=True))
"""Colours and hatches of a timeline."""
NAMED = 8
"""Most layers that get a line of their own in a legend; more are told apart by depth, with a scale.
"""
SHOWN_RANKS, SHOWN_LABEL = 4, 40
"""Ranks in a timeline; characters of a text from a trace."""
AT_ENDS, LONGEST_AT_END = 6, 22
"""Most curves that are named at their ends, and the longest name that stands there; others have a
legend.
"""
GREY = "#777777"


@dataclass(frozen=True)
class Axle:
    """What stands along a direction of a picture: the column, the label with its unit, the factor
    to that, and how it runs.
    """

    name: str
    label: str
    factor: float = 1
    log: bool = False


STEP = Axle("step", "training step")


@dataclass(frozen=True)
class Column:
    """A column of `steps`, `evals` or `diagnostics` that is drawn, over the steps or another column
    of its table.
    """

    figure: str
    title: str
    caption: str
    table: str
    y: Axle
    x: Axle = STEP


def text(value: Any) -> str:
    """What comes from a trace, for matplotlib: no control characters, no end, and not left out of
    legends.
    """
    words = "".join(c if c.isprintable() else "?" for c in str(value))
    words = words if len(words) <= SHOWN_LABEL else words[: SHOWN_LABEL - 1] + "…"
    return (" " if words.startswith("_") else "") + words


def names(groups: Sequence[Group]) -> list[str]:
    """What groups are called in pictures: without the number of their seeds, where that leaves them
    apart.
    """
    short = [group.name for group in groups]
    return [
        text(name)
        for name in (short if len(set(short)) == len(short) else [group.label for group in groups])
    ]


def looks_of(groups: Sequence[Group]) -> list[Look]:
    """How groups are drawn, in all pictures alike."""
    return looks([str(group.runs[0].run["method"]) for group in groups])


# --- curves ---------------------------------------------------------------------------------------


def over(groups: Sequence[Group], column: Column, axes: Axes) -> None:
    """One curve a group, with a band of one standard deviation where a group has several runs."""
    curves = [group.curve(column.table, column.y.name, column.table == "steps") for group in groups]
    places = [_places(group, column, curve) for group, curve in zip(groups, curves, strict=True)]
    for i, (curve, x, look, name) in enumerate(
        zip(curves, places, looks_of(groups), names(groups), strict=True)
    ):
        _curve(axes, x, curve, column, i, look, name)
    for axis, axle in ((axes.xaxis, column.x), (axes.yaxis, column.y)):
        _lay(axis, axle)
    if len(groups) > 1 and not _name_ends(axes, groups, places, curves, column):
        legend(axes, names(groups))


def _places(group: Group, column: Column, curve: Curve) -> NDArray[np.float64]:
    if column.x == STEP:
        return curve.step.astype(np.float64)
    return column.x.factor * group.curve(column.table, column.x.name).mean


def _curve(
    axes: Axes, x: NDArray[Any], curve: Curve, column: Column, i: int, look: Look, label: str
) -> None:
    count, factor = len(curve.step), column.y.factor
    every = 1 if column.table != "steps" and count <= 20 else max(1, count // 8)
    marks: dict[str, Any] = {"markersize": 4, "markevery": (i * every // 7, every)}
    axes.plot(x, factor * curve.mean, **look.line, **marks, lw=1.3, label=label)
    if curve.sd.any():
        low, high = factor * (curve.mean - curve.sd), factor * (curve.mean + curve.sd)
        axes.fill_between(x, low, high, color=look.colour, alpha=0.18, lw=0)


def _lay(axis: Axis, axle: Axle) -> None:
    """Label and scale."""
    axis.set_label_text(axle.label)
    if not axle.log:
        return
    across = axis is axis.axes.xaxis
    low, high = axis.get_data_interval()
    if 0 < low == high:  # a single value, which matplotlib's own limits may not hold apart
        (axis.axes.set_xlim if across else axis.axes.set_ylim)(low / 2, high * 2)
    (axis.axes.set_xscale if across else axis.axes.set_yscale)("log", nonpositive="mask")
    _plain_numbers(axis, *axis.get_view_interval())


def _name_ends(
    axes: Axes,
    groups: Sequence[Group],
    places: Sequence[NDArray[Any]],
    curves: Sequence[Curve],
    column: Column,
) -> bool:
    """Name each curve where it ends, at the right; False, with nothing done, where they end apart
    or are too many for that.
    """
    labels = names(groups)
    if len(groups) > AT_ENDS or max(map(len, labels)) > LONGEST_AT_END:
        return False
    ends = [
        _end(x, column.y.factor * curve.mean, column)
        for x, curve in zip(places, curves, strict=True)
    ]
    if any(end is None for end in ends):
        return False
    last = np.array(ends)
    if np.ptp(last[:, 0]) > 0.02 * max(1e-300, last[:, 0].max()):
        return False
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # else the transformation would change
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = spread(to_axes.transform(last)[:, 1], _line_height(axes))
    for label, look, end, at in zip(
        labels, looks_of(groups), to_axes.transform(last), heights, strict=True
    ):
        axes.plot(
            [end[0], 1.03],
            [end[1], at],
            transform=axes.transAxes,
            color=look.colour,
            lw=0.6,
            clip_on=False,
        )
        axes.text(1.045, at, label, transform=axes.transAxes, color=look.colour, va="center")
    return True


def _font_size() -> float:
    from matplotlib import rcParams

    return float(rcParams["font.size"])


def _line_height(axes: Axes) -> float:
    """About the height of a line of text, as a share of that of the axes."""
    panel, page = axes.get_figure(root=False), axes.get_figure(root=True)
    inches = panel.bbox.height / page.dpi if panel and page else 0.0
    return 1.15 * _font_size() / 72 / max(0.5, inches - 0.6)


def _end(x: NDArray[Any], y: NDArray[Any], column: Column) -> tuple[float, float] | None:
    """The last point that is drawn."""
    shown = [
        np.isfinite(each) & ((each > 0) | (not axle.log))
        for each, axle in ((x, column.x), (y, column.y))
    ]
    drawn = np.flatnonzero(shown[0] & shown[1])
    return (float(x[drawn[-1]]), float(y[drawn[-1]])) if drawn.size else None


def spread(heights: NDArray[np.float64], gap: float) -> NDArray[np.float64]:
    """Heights from 0 to 1, moved as little as keeps them a gap apart, in their order."""
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


# --- layers ---------------------------------------------------------------------------------------


def layers(group: Group, name: str, label: str, axes: Axes) -> None:
    """A line per layer, on a logarithmic axis."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    curve, names = group.curve("steps", name), [text(each) for each in group.runs[0].layers["name"]]
    few = len(names) <= NAMED
    depth = colormaps["cividis"].resampled(256)(np.linspace(0, 0.9, max(2, len(names))))
    for i, values in enumerate(curve.mean.T):
        colour, dash = COLOURS[i % len(COLOURS)] if few else depth[i], DASHES[i % len(DASHES)]
        axes.plot(
            curve.step,
            values,
            color=colour,
            linestyle=dash,
            lw=1.2 if few else 0.9,
            label=names[i] if few else None,
        )
        if few and curve.sd.any():
            low, high = values - curve.sd[:, i], values + curve.sd[:, i]
            axes.fill_between(curve.step, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_yscale("log", nonpositive="mask")
    _plain_numbers(axes.yaxis, *axes.get_ylim())
    axes.set_ylabel(label)
    axes.set_xlabel("training step")
    if few:
        legend(axes, names)
    else:
        colours = ScalarMappable(Normalize(1, len(names) / 0.9), "cividis")
        bar = axes.figure.colorbar(
            colours,
            ax=axes,
            label="layer, the first is 1",
            boundaries=np.linspace(1, len(names), 200),
        )
        bar.set_ticks(np.unique(np.linspace(1, len(names), 5).round()).tolist())


def heat(group: Group, axes: Axes) -> None:
    """k over steps and layers, the first layer on top; what is drawn is mean k, on a logarithmic
    scale of colours.
    """
    from matplotlib.colors import LogNorm

    curve, names = group.curve("steps", "k"), group.runs[0].layers["name"]
    values = np.ma.masked_less_equal(curve.mean.T, 0)
    step = curve.step.astype(np.float64)  # two of a file from anywhere may have no sum as integers
    edges = np.concatenate([step[:1] - 0.5, (step[1:] + step[:-1]) / 2, step[-1:] + 0.5])
    norm = LogNorm(
        max(values.min(), values.max() / 1e6), values.max() * (1 + (values.min() == values.max()))
    )
    mesh = axes.pcolormesh(
        edges, np.arange(len(names) + 1), values, norm=norm, cmap="cividis", rasterized=True
    )
    bar = axes.figure.colorbar(mesh, ax=axes, label="k (values)")
    _plain_numbers(bar.ax.yaxis, *bar.ax.get_ylim())
    _name_layers(axes, names, 0.5)
    axes.set_xlabel("training step")


def _plain_numbers(axis: Axis, low: float, high: float) -> None:
    """On a logarithmic axis, also between the powers of ten where there are few of those."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(LogLocator(subs=(2, 3, 5) if high < 100 * low else tuple(range(2, 10))))
    axis.set_minor_formatter("{x:g}" if high < 100 * low else NullFormatter())


def _name_layers(axes: Axes, names: Sequence[str], middle: float) -> None:
    """The first layer on top; not all are named where there are many."""
    shown = range(0, len(names), math.ceil(len(names) / 28))
    axes.set_yticks(
        [i + middle for i in shown],
        [text(names[i])[:14] for i in shown],
        fontsize=7 if len(names) > 12 else 8,
    )
    axes.set_ylim(len(names), 0)


def line(group: Group, closest: Closest, rank: int, axes: Axes) -> None:
    """A row a layer, in which its phases follow one another."""
    names = group.runs[-1].layers["name"]
    for f, (phase, (colour, hatch)) in enumerate(PHASES.items()):
        begin, end = 1e3 * closest.begin[rank, :, f], 1e3 * closest.end[rank, :, f]
        rows = np.flatnonzero(np.isfinite(begin) & np.isfinite(end))
        long = (end - begin)[rows]
        axes.barh(
            rows + 0.5,
            long,
            0.8,
            left=begin[rows],
            color=colour,
            hatch=hatch,
            edgecolor="white",
            lw=0,
            label=phase,
        )
    _name_layers(axes, names, 0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(
        0, 1.02e3 * float(np.nanmax(closest.end[:SHOWN_RANKS], initial=1e-6))
    )  # the same for all ranks
    axes.set_xlabel("time since the step began (ms)")
    legend(axes, [*PHASES])


# --- dots and bars --------------------------------------------------------------------------------


def moved(groups: Sequence[Group], axes: Axes) -> None:
    """What a rank sends and receives in a step, as dots with their figures, beside what a ring
    Allreduce would move each way.
    """
    found = [_moved(group) for group in groups]
    known = np.array(found)
    middle = (
        math.sqrt(known[known > 0].min() * known[known > 0].max()) if (known > 0).any() else 1.0
    )
    for row, ((sent, received, ring), look) in enumerate(zip(found, looks_of(groups), strict=True)):
        axes.plot([ring], [row], "|", color=GREY, markersize=13, markeredgewidth=1.6)
        axes.plot(
            [received],
            [row],
            "o",
            color=look.colour,
            markersize=8.5,
            markerfacecolor="none",
            markeredgewidth=1.2,
        )
        axes.plot([sent], [row], "o", color=look.colour, markersize=4.5)
        _write_beside(axes, row, sorted(x for x in (sent, received) if x > 0), middle, look.colour)
    if len(rings := {ring for *_, ring in found if ring > 0}) == 1:
        words: dict[str, Any] = {
            "textcoords": "offset points",
            "ha": "center",
            "va": "bottom",
            "color": GREY,
        }
        ring = rings.pop()
        axes.annotate(_in_bytes(ring), (ring, 0), (0, 8), fontsize=0.85 * _font_size(), **words)
    axes.set_xscale("log")
    axes.margins(x=0.14)
    axes.xaxis.set_major_formatter(lambda value, _: _in_bytes(value))
    _name_groups(axes, groups, np.arange(len(groups)))
    axes.set_ylim(len(groups) - 0.5, -0.9)
    axes.set_xlabel("bytes of a rank in a step")
    _explain_dots(axes)


def _write_beside(
    axes: Axes, row: int, values: Sequence[float], middle: float, colour: str
) -> None:
    """The figures of dots, one where they are the same, on the side where there is more room."""
    if not values:
        return
    to_right = math.sqrt(values[0] * values[-1]) <= middle
    at, shift, side = (values[-1], 7, "left") if to_right else (values[0], -7, "right")
    said = list(dict.fromkeys(_in_bytes(value) for value in values))
    words: dict[str, Any] = {
        "textcoords": "offset points",
        "ha": side,
        "va": "center",
        "color": colour,
    }
    axes.annotate(" / ".join(said), (at, row), (shift, 0), fontsize=0.85 * _font_size(), **words)


def _in_bytes(value: float) -> str:
    return traffic.readable(value).replace(".00", "").replace("bytes", "B")


def _moved(group: Group) -> tuple[float, float, float]:
    """Sent, received, and what a ring Allreduce would move each way: bytes of a step, means over
    the runs.
    """
    traffics = [summarise(run).traffic for run in group.runs]
    columns = ("bytes_per_step", "received_bytes_per_step", "ring_bytes_per_step")
    sent, received, ring = (float(np.mean([each[name] for each in traffics])) for name in columns)
    return sent, received, ring


def _explain_dots(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    plain: dict[str, Any] = {"color": GREY, "linestyle": "none"}
    handles = [Line2D([], [], marker="o", markersize=4.5, label="sent", **plain)]
    handles += [
        Line2D(
            [], [], marker="o", markersize=8.5, markerfacecolor="none", label="received", **plain
        )
    ]
    handles += [
        Line2D(
            [], [], marker="|", markersize=11, markeredgewidth=1.6, label="ring Allreduce", **plain
        )
    ]
    legend(axes, [str(handle.get_label()) for handle in handles], handles=handles, handlelength=1)


def times(groups: Sequence[Group], axes: Axes) -> None:
    """A bar a group, phase after phase."""
    timing = [[summarise(run).timing["seconds"] for run in group.runs] for group in groups]
    rows, left = np.arange(len(groups)), np.zeros(len(groups))
    phases = [phase for phase in timing[0][0] if phase != "total"]
    colours = (*COLOURS[:6], "#F0E442", "#000000", "#BBBBBB")
    for phase, colour, hatch in zip(phases, colours, HATCHES, strict=True):
        ms = np.array([1e3 * np.mean([max(0.0, each[phase]) for each in runs]) for runs in timing])
        axes.barh(
            rows,
            ms,
            0.6,
            left=left,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            lw=0,
            label=phase,
        )
        left += ms
    _name_groups(axes, groups, rows)
    axes.set_xlabel("time (ms)")
    legend(axes, phases)


def _name_groups(axes: Axes, groups: Sequence[Group], rows: NDArray[Any]) -> None:
    axes.set_yticks(rows, [_folded(name) for name in names(groups)])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _folded(words: str) -> str:
    """In lines that leave room for what they stand beside."""
    return textwrap.fill(words, 16)


def legend(axes: Axes, labels: Sequence[str], **more: Any) -> None:
    """Above the picture, where it covers nothing, in as many columns as its width has room for."""
    size, figure = _font_size(), axes.get_figure(root=False)
    beside = (line for tick in axes.get_yticklabels() for line in tick.get_text().splitlines())
    indent = (2 * size + 0.58 * size * max([4, *map(len, beside)])) / 72  # of the axes' left end
    width = figure.bbox.width / axes.get_figure(root=True).dpi - indent  # type: ignore[union-attr]
    widths = [(3.4 * size + 0.56 * size * len(label)) / 72 for label in labels] or [width]
    columns = len(labels) if sum(widths) <= width else max(1, int(width / max(widths)))
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "borderaxespad": 0.2}
    look: dict[str, Any] = {
        "frameon": False,
        "fontsize": size,
        "columnspacing": 1.2,
        "handlelength": 1.8,
    }
    axes.legend(**place, ncols=max(1, columns), **(look | more))
