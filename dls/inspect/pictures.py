"""What runs look like, drawn with matplotlib, the extra `plot`: for a file of its own, and for the page in HTML.

Colours are Okabe and Ito's, and cividis, which stay apart for the colour-blind; dashes, markers, hatches tell the same in grey.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dls import timeline
from dls.drawing import COLOURS, MARKERS, MISSING
from dls.inspect.groups import Curve, Group
from dls.inspect.series import Closest
from dls.inspect.summary import summarise
from dls.trace import TraceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure, SubFigure

DASHES = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2)), (0, (3, 1, 1, 1, 1, 1)), (0, (2, 2)))
HATCHES = ("", "///", "|||", "\\\\\\", "---", "", "///", "", "|||")
"""Of the phases of a step."""
_FILLS = (("#0072B2", ""), ("#E69F00", "|||"), ("#56B4E9", "///"), ("#009E73", "\\\\\\"))
PHASES = dict(zip(timeline.PHASES, _FILLS, strict=True))
"""Colours and hatches of a timeline."""
NAMED = 8
"""Most layers that get a line of their own in a legend; more are told apart by depth, with a scale."""
SHOWN_RANKS, SHOWN_LABEL = 4, 40
"""Ranks in a timeline; characters of a text from a trace."""
WIDTH, HEIGHT = 4.9, 3.0
"""Inches."""


@dataclass(frozen=True)
class Picture:
    """One figure: heading, what it says in words, and how it is drawn. `height` in inches."""

    title: str
    caption: str
    draw: Callable[[Axes], None]
    height: float = HEIGHT


def need(option: str) -> None:
    """TraceError, with the command to install it, without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise TraceError(f"{option} {MISSING}") from None


def text(value: Any) -> str:
    """What comes from a trace, for matplotlib: no control characters, no end, and not left out of legends."""
    words = "".join(c if c.isprintable() else "?" for c in str(value))
    words = words if len(words) <= SHOWN_LABEL else words[: SHOWN_LABEL - 1] + "…"
    return (" " if words.startswith("_") else "") + words


# --- which pictures there are ----------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """A column of `steps`, `evals` or `diagnostics` that is drawn over the steps: heading, words, the axis's label."""

    table: str
    name: str
    title: str
    caption: str
    label: str
    factor: float = 1
    log: bool = False


OVER_STEPS = (
    Column("steps", "loss", "Training loss", "Means over the ranks and a window of recorded steps.", "training loss (nats)"),
    Column("evals", "accuracy", "Test accuracy", "At every evaluation.", "test accuracy (%)", factor=100),
    Column(
        *("steps", "set_size", "Set size"),
        "How far the layers' thresholds are from being one: the largest minus the smallest, mean over the ranks.",
        "max − min threshold (gradient)",
        log=True,
    ),
    Column(
        *("steps", "threshold_ratio", "Threshold ratio"),
        "The largest of the layers' thresholds by the smallest, mean over the ranks; Global Top-k's is 1.",
        "max / min threshold",
        log=True,
    ),
    Column(
        *("diagnostics", "global_share", "Share of Global Top-k's choice"),
        "Of what Global Top-k would have sent, the share that was sent, mean over the ranks (--diagnose-every).",
        "share of the global choice (%)",
        factor=100,
    ),
    Column(
        *("steps", "residual", "Residual"),
        "The L2 norm of all that stays behind after a step, mean over the ranks.",
        "residual norm (gradient)",
        log=True,
    ),
)


def together(groups: Sequence[Group]) -> list[Picture]:
    """Those in which all groups stand side by side; none where nothing was recorded."""
    shown = (column for column in OVER_STEPS if _has(groups, column.table, column.name, column.log))
    pictures = [Picture(column.title, column.caption, partial(_over, groups, column)) for column in shown]
    recorded = [group for group in groups if _has([group], "steps", "loss")]
    if recorded:
        height = 0.9 + 0.45 * len(recorded)
        caption = "What a rank gives to MPI in a step, and what dense training would; in percent, the one of the other."
        pictures.append(Picture("Bytes against dense", caption, partial(_bytes, recorded), height))
        caption = "Means over the ranks and steps, without each file's first; exposed is waiting for the network."
        pictures.append(Picture("Where a step's time went", caption, partial(_times, recorded), height + 0.5))
    return pictures


def _has(groups: Sequence[Group], table: str, name: str, positive: bool = False) -> bool:
    """Whether there is anything to draw, on a logarithmic axis where `positive`."""
    means = np.concatenate([group.curve(table, name).mean.ravel() for group in groups])
    return bool((np.isfinite(means) & ((means > 0) | (not positive))).any())


def alone(group: Group) -> list[Picture]:
    """Those of one group's layers; none where nothing was recorded."""
    found = []
    if _has([group], "steps", "threshold", positive=True):
        caption = "Mean over the ranks, and over the runs where there are several."
        draw = partial(_layers, group, "threshold", "threshold (gradient)")
        found.append(Picture("Threshold of every layer", caption, draw))
    if _has([group], "steps", "residual_norm", positive=True):
        caption = "The L2 norm of what each layer keeps after a step, mean over the ranks."
        draw = partial(_layers, group, "residual_norm", "residual norm (gradient)")
        found.append(Picture("Residual of every layer", caption, draw))
    if _has([group], "steps", "k", positive=True):
        caption = "How many values a rank sends of each layer, mean over the ranks; white: none."
        found.append(Picture("k of every layer", caption, partial(_heat, group), _tall(group)))
    closest = group.runs[-1].closest
    if closest is None:
        return found
    whose = f", of the run with seed {group.runs[-1].run['seed']}" if len(group.runs) > 1 else ""
    for rank in range(min(SHOWN_RANKS, len(closest.begin))):
        caption = f"What rank {rank} did for each layer, and when{whose}; layers that leave together have one time."
        title = f"Step {closest.step} on rank {rank}"
        found.append(Picture(title, caption, partial(_line, group, closest, rank), _tall(group)))
    return found


def _tall(group: Group) -> float:
    """The height of a picture with a row for each layer."""
    return float(np.clip(1.1 + 0.13 * len(group.runs[0].layers["name"]), 2.4, 7))


# --- how they are drawn ----------------------------------------------------------------------


def _over(groups: Sequence[Group], column: Column, axes: Axes) -> None:
    """One curve a group over the steps, with a band of one standard deviation where a group has several runs."""
    for i, group in enumerate(groups):
        curve = group.curve(column.table, column.name, smoothed=column.table == "steps")
        _curve(axes, curve, column, i, text(group.label))
    if column.log:
        axes.set_yscale("log", nonpositive="mask")
        _plain_numbers(axes.yaxis, *axes.get_ylim())
    axes.set_ylabel(column.label)
    axes.set_xlabel("training step")
    if len(groups) > 1:
        _legend(axes, 2)


def _curve(axes: Axes, curve: Curve, column: Column, i: int, label: str) -> None:
    colour, count = COLOURS[i % len(COLOURS)], len(curve.step)
    every = 1 if column.table != "steps" and count <= 20 else max(1, count // 8)
    style: dict[str, Any] = {"linestyle": DASHES[i % len(DASHES)], "lw": 1.4}
    style |= {"marker": MARKERS[i % len(MARKERS)], "markersize": 4, "markevery": (i * every // 7, every)}
    axes.plot(curve.step, column.factor * curve.mean, color=colour, label=label, **style)
    if curve.sd.any():
        low, high = column.factor * (curve.mean - curve.sd), column.factor * (curve.mean + curve.sd)
        axes.fill_between(curve.step, low, high, color=colour, alpha=0.2, lw=0)


def _layers(group: Group, name: str, label: str, axes: Axes) -> None:
    """A line per layer, on a logarithmic axis."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    curve, names = group.curve("steps", name), [text(each) for each in group.runs[0].layers["name"]]
    few = len(names) <= NAMED
    depth = colormaps["cividis"].resampled(256)(np.linspace(0, 0.9, max(2, len(names))))
    for i, values in enumerate(curve.mean.T):
        colour, dash = COLOURS[i % len(COLOURS)] if few else depth[i], DASHES[i % len(DASHES)]
        axes.plot(curve.step, values, color=colour, linestyle=dash, lw=1.2 if few else 0.9, label=names[i] if few else None)
        if few and curve.sd.any():
            low, high = values - curve.sd[:, i], values + curve.sd[:, i]
            axes.fill_between(curve.step, low, high, color=colour, alpha=0.15, lw=0)
    axes.set_yscale("log", nonpositive="mask")
    _plain_numbers(axes.yaxis, *axes.get_ylim())
    axes.set_ylabel(label)
    axes.set_xlabel("training step")
    if few:
        _legend(axes, 3)
    else:
        colours = ScalarMappable(Normalize(1, len(names) / 0.9), "cividis")
        bar = axes.figure.colorbar(colours, ax=axes, label="layer, the first is 1", boundaries=np.linspace(1, len(names), 200))
        bar.set_ticks(np.unique(np.linspace(1, len(names), 5).round()).tolist())


def _heat(group: Group, axes: Axes) -> None:
    """k over steps and layers, the first layer on top; what is drawn is mean k, on a logarithmic scale of colours."""
    from matplotlib.colors import LogNorm

    curve, names = group.curve("steps", "k"), group.runs[0].layers["name"]
    values = np.ma.masked_less_equal(curve.mean.T, 0)
    step = curve.step.astype(np.float64)  # two of a file from anywhere may have no sum as integers
    edges = np.concatenate([step[:1] - 0.5, (step[1:] + step[:-1]) / 2, step[-1:] + 0.5])
    norm = LogNorm(max(values.min(), values.max() / 1e6), values.max() * (1 + (values.min() == values.max())))
    mesh = axes.pcolormesh(edges, np.arange(len(names) + 1), values, norm=norm, cmap="cividis", rasterized=True)
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
    axes.set_yticks([i + middle for i in shown], [text(names[i])[:14] for i in shown], fontsize=7 if len(names) > 12 else 8)
    axes.set_ylim(len(names), 0)


def _line(group: Group, closest: Closest, rank: int, axes: Axes) -> None:
    """A row a layer, in which its phases follow one another."""
    names = group.runs[-1].layers["name"]
    for f, (phase, (colour, hatch)) in enumerate(PHASES.items()):
        begin, end = 1e3 * closest.begin[rank, :, f], 1e3 * closest.end[rank, :, f]
        rows = np.flatnonzero(np.isfinite(begin) & np.isfinite(end))
        long = (end - begin)[rows]
        axes.barh(rows + 0.5, long, 0.8, left=begin[rows], color=colour, hatch=hatch, edgecolor="white", lw=0, label=phase)
    _name_layers(axes, names, 0.5)
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.02e3 * float(np.nanmax(closest.end[:SHOWN_RANKS], initial=1e-6)))  # the same for all ranks
    axes.set_xlabel("time since the step began (ms)")
    _legend(axes, 4)


def _bytes(groups: Sequence[Group], axes: Axes) -> None:
    traffic = [[summarise(run).traffic for run in group.runs] for group in groups]
    sent = [float(np.mean([each["bytes_per_step"] for each in runs])) for runs in traffic]
    dense = [runs[0]["dense_bytes_per_step"] for runs in traffic]
    rows = np.arange(len(groups))
    axes.barh(rows - 0.2, dense, 0.36, color="#BBBBBB", label="dense")
    axes.barh(rows + 0.2, sent, 0.36, color=COLOURS[0], hatch="///", edgecolor="white", lw=0, label="sent")
    axes.set_xscale("log")
    axes.set_xlim(right=max(*dense, *sent) * 6)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    for row, own, whole in zip(rows, sent, dense, strict=True):
        axes.annotate(f" {own / whole:.2%}", (max(own, axes.get_xlim()[0]), row + 0.2), va="center", fontsize=8)
    _name_groups(axes, groups, rows)
    axes.set_xlabel("bytes of a rank in a step")
    _legend(axes, 2)


def _times(groups: Sequence[Group], axes: Axes) -> None:
    timing = [[summarise(run).timing["seconds"] for run in group.runs] for group in groups]
    rows, left = np.arange(len(groups)), np.zeros(len(groups))
    phases = [phase for phase in timing[0][0] if phase != "total"]
    colours = (*COLOURS[:6], "#F0E442", "#000000", "#BBBBBB")
    for phase, colour, hatch in zip(phases, colours, HATCHES, strict=True):
        ms = np.array([1e3 * np.mean([max(0.0, each[phase]) for each in runs]) for runs in timing])
        axes.barh(rows, ms, 0.6, left=left, color=colour, hatch=hatch, edgecolor="white", lw=0, label=phase)
        left += ms
    _name_groups(axes, groups, rows)
    axes.set_xlabel("time (ms)")
    _legend(axes, 3)


def _name_groups(axes: Axes, groups: Sequence[Group], rows: NDArray[Any]) -> None:
    axes.set_yticks(rows, [_folded(text(group.label)) for group in groups])
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")


def _folded(words: str) -> str:
    """In lines that leave room for what they stand beside."""
    return textwrap.fill(words, 16)


def _legend(axes: Axes, columns: int) -> None:
    """Above the picture, where it covers nothing."""
    place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1.0), "ncols": columns, "borderaxespad": 0.2}
    axes.legend(**place, frameon=False, fontsize=8, columnspacing=1.2)


# --- files -----------------------------------------------------------------------------------


@contextmanager
def _style() -> Iterator[None]:
    """Small, plain, and the same bits for the same runs; a font that lacks a letter is no reason for a warning."""
    from matplotlib import rc_context

    settings: Any = {"font.size": 9, "hatch.linewidth": 0.6, "axes.axisbelow": True, "text.parse_math": False}
    settings |= {"svg.fonttype": "path", "svg.hashsalt": "dls"}
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def _draw(picture: Picture, figure: Figure | SubFigure) -> None:
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    picture.draw(axes)


def svg(picture: Picture) -> str:
    """An <svg> element to stand in a page; what the page does not need is left out. `need` comes first."""
    from matplotlib.figure import Figure

    file = io.StringIO()
    with _style():
        figure = Figure(figsize=(WIDTH, picture.height), layout="constrained", dpi=150)
        _draw(picture, figure)
        figure.savefig(file, format="svg", metadata={"Date": None})
    found = file.getvalue()
    found = found[found.index("<svg") :]
    for superfluous in (r"<metadata>.*?</metadata>", r"<!--.*?-->", r' xmlns(:\w+)?="[^"]*"'):
        found = re.sub(superfluous, "", found, flags=re.DOTALL)
    return found.strip()


def sheet(groups: Sequence[Group], path: Path) -> None:
    """All pictures on one sheet: .png, .pdf, .svg, … TraceError for an unknown kind of file, OSError. `need` comes first."""
    from matplotlib.figure import Figure

    rows = [*_pairs([(picture, "") for picture in together(groups)])]
    for group in groups:
        rows += _pairs([(picture, group.label if len(groups) > 1 else "") for picture in alone(group)])
    heights = [0.4 + max(picture.height for picture, _ in row) for row in rows] or [1.0]
    with _style():
        figure = Figure(figsize=(2 * WIDTH + 0.4, sum(heights)), layout="constrained", dpi=110)
        grid = figure.subfigures(len(heights), 2, height_ratios=heights, squeeze=False)
        for row, places in zip(rows, grid, strict=False):
            for (picture, label), place in zip(row, places, strict=False):
                title = picture.title + (f": {text(label)}" if label else "")
                place.suptitle(title, x=0.02, ha="left", fontsize=10, fontweight="bold")
                _draw(picture, place)
        if not rows:
            figure.suptitle("nothing recorded yet")
        try:
            figure.savefig(path)
        except ValueError as error:
            raise TraceError(f"--plot {path}: {error}") from None


def _pairs(pictures: Sequence[tuple[Picture, str]]) -> list[Sequence[tuple[Picture, str]]]:
    return [pictures[i : i + 2] for i in range(0, len(pictures), 2)]
