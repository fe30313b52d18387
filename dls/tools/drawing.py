"""The look of each method in the pictures of all tools. The colour-blind can tell methods apart,
and so can readers of a grey print.

A method has one colour and one marker wherever it is drawn. Its variants (other densities,
settings, buckets) keep both, and differ in dashes, in shade, and in whether the marker is filled.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""The colours of Okabe and Ito, which the colour-blind can tell apart."""
DASHES = (
    "-",
    (0, (5, 1.5)),
    (0, (1, 1.2)),
    (0, (5, 1.5, 1, 1.5)),
    (0, (8, 2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (2, 2)),
)
"""Line styles of variants."""
OF_METHODS = {
    "dense": ("#000000", "o"),
    "global-topk": ("#D55E00", "s"),
    "layerwise-topk": ("#009E73", "^"),
    "dls": ("#0072B2", "D"),
}
"""The colour and the marker of the project's first methods."""
OF_OTHERS = (("#CC79A7", "v"), ("#E69F00", "P"), ("#56B4E9", "X"))
"""Another method has one of these, chosen by its name alone, so that it stays the same whatever is
drawn beside it.
"""
SHADES = (0.0, 0.35, 0.2, 0.5)
"""The share of white in the colours of variants."""


@dataclass(frozen=True)
class Look:
    """How a method, or a variant of it, is drawn."""

    colour: str
    marker: str
    dash: Any
    filled: bool

    @property
    def line(self) -> dict[str, Any]:
        """The look as arguments of matplotlib's plot."""
        face = self.colour if self.filled else "white"
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.dash,
            "markerfacecolor": face,
        }


def looks(methods: Sequence[str]) -> list[Look]:
    """The looks of curves that are drawn together, by the names of their methods.

    The second curve of a method is a variant.
    """
    return [_look(name, list(methods[:i]).count(name)) for i, name in enumerate(methods)]


def _look(method: str, variant: int) -> Look:
    other = OF_OTHERS[zlib.crc32(method.encode(errors="replace")) % len(OF_OTHERS)]
    colour, marker = OF_METHODS.get(method, other)
    shade = SHADES[variant % len(SHADES)]
    dash = DASHES[variant % len(DASHES)]
    return Look(lighter(colour, shade), marker, dash, filled=variant % 2 == 0)


def lighter(colour: str, share: float) -> str:
    """A colour of the form #RRGGBB, mixed with a share of white."""
    parts = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return "#" + "".join(f"{round(part + (255 - part) * share):02X}" for part in parts)


def family(name: str) -> str:
    """The method that a label names: dls for dls(1), dls/at-end and dls."""
    return re.split(r"[(/ ]", name, maxsplit=1)[0]
