"""Which pictures of runs there are, drawn with matplotlib, the extra `plot`: for a file of their
own, and for the page in HTML.

Methods look as `dls.tools.drawing` says; layers and phases have Okabe and Ito's colours, and
cividis, which stay apart for the colour-blind; dashes, markers, hatches tell the same in grey.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dls.cli import near
from dls.inspect import panels, points
from dls.inspect.groups import Group
from dls.inspect.panels import SHOWN_RANKS, Axle, Column, text
from dls.inspect.points import Point
from dls.record.schema import TraceError
from dls.tools.drawing import MISSING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

WIDTH, HEIGHT = 4.9, 3.0
"""Inches."""
PRINTED = 300
"""Pixels an inch of a figure on its own."""
ONE_COLUMN = (3.4, 2.2)
"""Inches: a figure on its own, unless told otherwise."""


@dataclass(frozen=True)
class Picture:
    """One figure: name, heading, what it says in words, how it is drawn, and what is drawn.
    `height` in inches.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Axes], None]
    points: Callable[[], Iterator[Point]]
    height: float = HEIGHT


def need(option: str) -> None:
    """TraceError, with the command to install it, without matplotlib."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError:
        raise TraceError(f"{option} {MISSING}") from None


# --- which pictures there are ---------------------------------------------------------------------


ACCURACY = Axle("accuracy", "test accuracy (%)", factor=100)
CURVES = (
    Column(
        *("loss", "Training loss", "Means over the ranks and a window of recorded steps.", "steps"),
        Axle("loss", "training loss (nats)", log=True),
    ),
    Column("accuracy", "Test accuracy", "At every evaluation.", "evals", ACCURACY),
    Column(
        *("accuracy-bytes", "Test accuracy over bytes"),
        "At every evaluation, over all that a rank has given to MPI to send until then, mean over"
        " the ranks.",
        "evals",
        ACCURACY,
        Axle("sent_bytes", "given to MPI by a rank (MB)", factor=1e-6, log=True),
    ),
    Column(
        *("accuracy-seconds", "Test accuracy over time"),
        "At every evaluation, over the time that all steps until then have taken, mean over the"
        " ranks.",
        "evals",
        ACCURACY,
        Axle("seconds", "training time (s)"),
    ),
    Column(
        *("set-size", "Set size"),
        "How far the layers' thresholds are from being one: the largest minus the smallest, mean"
        " over the ranks.",
        "steps",
        Axle("set_size", "max − min threshold (gradient)", log=True),
    ),
    Column(
        *("threshold-ratio", "Threshold ratio"),
        "The largest of the layers' thresholds by the smallest, mean over the ranks; Global Top-k's"
        " is 1.",
        "steps",
        Axle("threshold_ratio", "max / min threshold", log=True),
    ),
    Column(
        *("global-share", "Share of Global Top-k's choice"),
        "Of what Global Top-k would have sent, the share that was sent, mean over the ranks"
        " (--diagnose-every).",
        "diagnostics",
        Axle("global_share", "share of the global choice (%)", factor=100),
    ),
    Column(
        *("residual", "Residual"),
        "The L2 norm of all that stays behind after a step, mean over the ranks.",
        "steps",
        Axle("residual", "residual norm (gradient)", log=True),
    ),
)
SIDE_BY_SIDE = (*(column.figure for column in CURVES), "bytes", "time")
OF_LAYERS = (
    "layer-threshold",
    "layer-residual",
    "layer-k",
    *(f"timeline-{rank}" for rank in range(SHOWN_RANKS)),
)
"""The names of all figures: those of all groups together, and those of one group."""


def together(groups: Sequence[Group]) -> list[Picture]:
    """Those in which all groups stand side by side; none where nothing was recorded."""
    pictures = [
        Picture(
            column.figure, column.title, column.caption, partial(panels.over, groups, column), curve
        )
        for column in CURVES
        if _has(groups, column.table, column.y.name, column.y.log)
        and _has(groups, column.table, column.x.name, column.x.log)
        for curve in [partial(points.of_curves, groups, column)]
    ]
    recorded = [group for group in groups if _has([group], "steps", "loss")]
    if recorded:
        height = 1.0 + 0.45 * len(recorded)
        caption = (
            "What a rank gives to MPI in a step, what it receives from the others, and what a ring"
            " Allreduce of the whole "
        )
        caption += "gradient would move each way."
        draw, told = partial(panels.moved, recorded), partial(points.of_bytes, recorded)
        pictures.append(
            Picture("bytes", "Bytes beside a ring Allreduce", caption, draw, told, height)
        )
        caption = (
            "Means over the ranks and steps, without each file's first; exposed is waiting for the"
            " network."
        )
        draw, told = partial(panels.times, recorded), partial(points.of_times, recorded)
        pictures.append(
            Picture("time", "Where a step's time went", caption, draw, told, height + 0.5)
        )
    return pictures


def _has(groups: Sequence[Group], table: str, name: str, positive: bool = False) -> bool:
    """Whether there is anything to draw, on a logarithmic axis where `positive`."""
    means = np.concatenate([group.curve(table, name).mean.ravel() for group in groups])
    return bool((np.isfinite(means) & ((means > 0) | (not positive))).any())


LAYERS = (
    *(("layer-threshold", "threshold", "Threshold of every layer", "threshold (gradient)"),),
    *(("layer-residual", "residual_norm", "Residual of every layer", "residual norm (gradient)"),),
    *(("layer-k", "k", "k of every layer", "k (values)"),),
)
"""Names, columns, headings and labels of the pictures with a row, or a line, a layer."""
CAPTIONS = {
    "threshold": "Mean over the ranks, and over the runs where there are several.",
    "residual_norm": "The L2 norm of what each layer keeps after a step, mean over the ranks.",
    "k": "How many values a rank sends of each layer, mean over the ranks; white: none.",
}


def alone(group: Group) -> list[Picture]:
    """Those of one group's layers; none where nothing was recorded."""
    found = []
    for figure, name, title, label in LAYERS:
        if _has([group], "steps", name, positive=True):
            draw = (
                partial(panels.heat, group)
                if name == "k"
                else partial(panels.layers, group, name, label)
            )
            told = partial(points.of_layers, group, figure, name, label)
            height = _tall(group) if name == "k" else HEIGHT
            found.append(Picture(figure, title, CAPTIONS[name], draw, told, height))
    closest = group.runs[-1].closest
    if closest is None:
        return found
    whose = f", of the run with seed {group.runs[-1].run['seed']}" if len(group.runs) > 1 else ""
    for rank in range(min(SHOWN_RANKS, len(closest.begin))):
        caption = (
            f"What rank {rank} did for each layer, and when{whose}; layers that leave together have"
            " one time."
        )
        title, figure = f"Step {closest.step} on rank {rank}", f"timeline-{rank}"
        draw, told = (
            partial(panels.line, group, closest, rank),
            partial(points.of_timeline, group, closest, rank),
        )
        found.append(Picture(figure, title, caption, draw, told, _tall(group)))
    return found


def _tall(group: Group) -> float:
    """The height of a picture with a row for each layer."""
    return float(np.clip(1.1 + 0.13 * len(group.runs[0].layers["name"]), 2.4, 7))


def check_name(name: str) -> None:
    """TraceError for a figure that there is not, with all that there are and the nearest of
    them.
    """
    known = (*SIDE_BY_SIDE, *OF_LAYERS)
    if name not in known:
        hint = near(name, known)
        raise TraceError(f"--figure: there is no {name!r}; all are {', '.join(known)}{hint}")


def named(groups: Sequence[Group], name: str) -> Picture:
    """The picture of that name. TraceError where these runs have none."""
    if name in OF_LAYERS and len(groups) > 1:
        labels = ", ".join(group.label for group in groups)
        raise TraceError(
            f"--figure {name} shows the layers of one method, and these runs are of {len(groups)}:"
            f" {labels}"
        )
    found = [
        picture
        for picture in (*together(groups), *(alone(groups[0]) if len(groups) == 1 else []))
        if picture.name == name
    ]
    if not found:
        raise TraceError(
            f"--figure {name}: nothing of that was recorded; global-share and timelines need"
            " --diagnose-every"
        )
    return found[0]


# --- files ----------------------------------------------------------------------------------------


@contextmanager
def _style(size: float = 9) -> Iterator[None]:
    """Small, plain, and the same bits for the same runs; a font that lacks a letter is no reason
    for a warning.

    PDF carries its font as TrueType, whose text can be searched and changed, and which journals
    take. SVG has outlines, and so looks the same where nobody has the font.
    """
    from matplotlib import rc_context

    settings: Any = {
        "font.size": size,
        "hatch.linewidth": 0.6,
        "axes.axisbelow": True,
        "text.parse_math": False,
    }
    settings |= {
        "svg.fonttype": "path",
        "svg.hashsalt": "dls",
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
    }
    settings |= {f"{axis}tick.labelsize": 0.92 * size for axis in "xy"} | {"axes.linewidth": 0.7}
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def _draw(picture: Picture, figure: Figure | SubFigure) -> None:
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    picture.draw(axes)


def svg(picture: Picture) -> str:
    """An <svg> element to stand in a page; what the page does not need is left out. `need` comes
    first.
    """
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
    """All pictures on one sheet: .png, .pdf, .svg, … TraceError for an unknown kind of file,
    OSError. `need` comes first.
    """
    from matplotlib.figure import Figure

    rows = [*_pairs([(picture, "") for picture in together(groups)])]
    for group in groups:
        rows += _pairs(
            [(picture, group.label if len(groups) > 1 else "") for picture in alone(group)]
        )
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
        _save(figure, path)


def single(picture: Picture, path: Path, size: tuple[float, float]) -> None:
    """One picture, in inches, for print.

    TraceError for an unknown kind of file, OSError. `need` comes first.
    """
    from matplotlib.figure import Figure

    with _style(size=8):
        figure = Figure(figsize=size, layout="constrained", dpi=PRINTED)
        _draw(picture, figure)
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Without the date, so that the same runs make the same file.

    TraceError for an unknown kind of file.
    """
    dated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    try:
        figure.savefig(path, metadata=dated.get(path.suffix.lower()))
    except ValueError as error:
        raise TraceError(f"--plot {path}: {error}") from None


def _pairs(pictures: Sequence[tuple[Picture, str]]) -> list[Sequence[tuple[Picture, str]]]:
    return [pictures[i : i + 2] for i in range(0, len(pictures), 2)]
