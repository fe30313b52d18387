"""Files of pictures: an SVG for a page, a sheet of all pictures, and a single one for print.

`dls.tools.plotting` checks for matplotlib before.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dls.inspect.groups import Group
from dls.inspect.panels.labels import text
from dls.inspect.pictures import Picture, of_groups, of_one_group
from dls.tools import plotting

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

WIDTH = 4.9
"""Inches of a picture in a page or on a sheet."""
PRINTED = 300
"""Pixels an inch of a single picture."""
ONE_COLUMN = (3.4, 2.2)
"""Inches of a single picture, unless told otherwise: a column of a paper."""
SUPERFLUOUS = (r"<metadata>.*?</metadata>", r"<!--.*?-->", r' xmlns(:\w+)?="[^"]*"')
"""What an SVG within a page does not need."""
Titled = tuple[Picture, str]
"""A picture, and the label of its group where there are several."""


@contextmanager
def style(size: float = 9) -> Iterator[None]:
    """Small and plain pictures, with the same bits for the same runs.

    PDF carries its font as TrueType, whose text can be searched and changed, and which journals
    take. SVG has outlines, and so looks the same where nobody has the font. A font that lacks a
    letter is no reason for a warning.
    """
    from matplotlib import rc_context

    settings: Any = {
        "font.size": size,
        "xtick.labelsize": 0.92 * size,
        "ytick.labelsize": 0.92 * size,
        "axes.linewidth": 0.7,
        "axes.axisbelow": True,
        "hatch.linewidth": 0.6,
        "text.parse_math": False,
        "svg.fonttype": "path",
        "svg.hashsalt": "dls",
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
    }
    with rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        yield


def draw(picture: Picture, figure: Figure | SubFigure) -> None:
    """Draw a picture, alone, into a figure."""
    axes = figure.subplots()
    plotting.tidy(axes)
    picture.draw(axes)


def svg(picture: Picture) -> str:
    """An <svg> element to stand in a page."""
    from matplotlib.figure import Figure

    file = io.StringIO()
    with style():
        figure = Figure(figsize=(WIDTH, picture.height), layout="constrained", dpi=150)
        draw(picture, figure)
        figure.savefig(file, format="svg", metadata={"Date": None})
    element = file.getvalue()
    element = element[element.index("<svg") :]
    for pattern in SUPERFLUOUS:
        element = re.sub(pattern, "", element, flags=re.DOTALL)
    return element.strip()


def sheet(groups: Sequence[Group], path: Path) -> None:
    """Draw all pictures on one sheet, in pairs. OSError."""
    from matplotlib.figure import Figure

    rows = _rows(groups)
    heights = [0.4 + max(picture.height for picture, _ in row) for row in rows] or [1.0]
    with style():
        figure = Figure(figsize=(2 * WIDTH + 0.4, sum(heights)), layout="constrained", dpi=110)
        grid = figure.subfigures(len(heights), 2, height_ratios=heights, squeeze=False)
        for row, parts in zip(rows, grid, strict=False):
            for (picture, label), part in zip(row, parts, strict=False):
                title = f"{picture.title}: {text(label)}" if label else picture.title
                part.suptitle(title, x=0.02, ha="left", fontsize=10, fontweight="bold")
                draw(picture, part)
        if not rows:
            figure.suptitle("nothing recorded yet")
        _save(figure, path)


def _rows(groups: Sequence[Group]) -> list[Sequence[Titled]]:
    """The rows of the sheet: those of all groups, then those of each."""
    rows = _pairs([(picture, "") for picture in of_groups(groups)])
    for group in groups:
        label = group.label if len(groups) > 1 else ""
        rows += _pairs([(picture, label) for picture in of_one_group(group)])
    return rows


def _pairs(pictures: Sequence[Titled]) -> list[Sequence[Titled]]:
    return [pictures[i : i + 2] for i in range(0, len(pictures), 2)]


def single(picture: Picture, path: Path, size: tuple[float, float]) -> None:
    """Draw one picture for print. size: width and height in inches. OSError."""
    from matplotlib.figure import Figure

    with style(size=8):
        figure = Figure(figsize=size, layout="constrained", dpi=PRINTED)
        draw(picture, figure)
        _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    """Without the date, so that the same runs make the same file."""
    dated = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}}
    figure.savefig(path, metadata=dated.get(path.suffix.lower()))
