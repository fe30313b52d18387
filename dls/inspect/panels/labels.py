"""Names, legends, and numbers along axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dls.inspect.groups import Group
from dls.tools.drawing import Look, looks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

LONGEST = 40
"""The most characters of a text from a trace that are shown."""
LONGEST_LAYER = 14
"""The most characters of a layer's name beside its row."""
MOST_LAYERS = 28
"""The most layers that are named beside their rows."""


def text(value: Any) -> str:
    """Sanitises text from a trace for matplotlib: printable, shortened, no leading underscore."""
    words = "".join(c if c.isprintable() else "?" for c in str(value))
    if len(words) > LONGEST:
        words = words[: LONGEST - 1] + "…"
    return f" {words}" if words.startswith("_") else words  # "_" keeps a name out of legends


def names(groups: Sequence[Group]) -> list[str]:
    """What groups are called in pictures.

    It is without the number of their seeds, unless two would be called the same.
    """
    short = [group.name for group in groups]
    if len(set(short)) < len(short):
        short = [group.label for group in groups]
    return [text(name) for name in short]


def looks_of(groups: Sequence[Group]) -> list[Look]:
    """How groups look, in all pictures alike."""
    return looks([str(group.runs[0].about.method) for group in groups])


def font_size() -> float:
    """Points of a picture's texts."""
    from matplotlib import rcParams

    return float(rcParams["font.size"])


def plain_numbers(axis: Axis, low: float, high: float) -> None:
    """Write 0.01 and not 10⁻² on a logarithmic axis that shows values from low to high.

    Where there are few powers of ten, values between them are written as well.
    """
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(LogLocator(subs=(2, 3, 5) if high < 100 * low else tuple(range(2, 10))))
    axis.set_minor_formatter("{x:g}" if high < 100 * low else NullFormatter())


def name_layers(axes: Axes, layers: Sequence[str]) -> None:
    """Name the layers' rows, the first one on top; not all of them where there are many."""
    shown = range(0, len(layers), math.ceil(len(layers) / MOST_LAYERS))
    axes.set_yticks(
        [i + 0.5 for i in shown],
        [text(layers[i])[:LONGEST_LAYER] for i in shown],
        fontsize=7 if len(layers) > 12 else 8,
    )
    axes.set_ylim(len(layers), 0)


def legend(axes: Axes, labels: Sequence[str], **more: Any) -> None:
    """Add a legend above the axes, in as many columns as there is room for."""
    size, figure = font_size(), axes.get_figure(root=False)
    beside = (line for tick in axes.get_yticklabels() for line in tick.get_text().splitlines())
    indent = (2 * size + 0.58 * size * max([4, *map(len, beside)])) / 72  # of the axes' left end
    width = figure.bbox.width / axes.get_figure(root=True).dpi - indent  # type: ignore[union-attr]
    widths = [(3.4 * size + 0.56 * size * len(label)) / 72 for label in labels] or [width]
    columns = len(labels) if sum(widths) <= width else max(1, int(width / max(widths)))
    position: dict[str, Any] = {
        "loc": "lower left",
        "bbox_to_anchor": (0, 1.0),
        "borderaxespad": 0.2,
    }
    look: dict[str, Any] = {
        "frameon": False,
        "fontsize": size,
        "columnspacing": 1.2,
        "handlelength": 1.8,
    }
    axes.legend(**position, ncols=max(1, columns), **(look | more))
