"""The phases of one step, layer by layer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dls.exchange import clock
from dls.inspect.groups import Group
from dls.inspect.panels.labels import legend, name_layers
from dls.inspect.run import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FILLS = (("#0072B2", ""), ("#E69F00", "|||"), ("#56B4E9", "///"), ("#009E73", "\\\\\\"))
PHASES = dict(zip(clock.OF_LAYERS, _FILLS, strict=True))
"""The colour and the hatching of each phase."""
SHOWN_RANKS = 4
"""The ranks that have a timeline, from rank 0 on."""


def draw(group: Group, timeline: Timeline, rank: int, axes: Axes) -> None:
    """A row for each layer, in which its phases follow one another."""
    for number, (phase, (colour, hatch)) in enumerate(PHASES.items()):
        begin = 1e3 * timeline.begin[rank, :, number]
        end = 1e3 * timeline.end[rank, :, number]
        rows = np.flatnonzero(np.isfinite(begin) & np.isfinite(end))
        look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white", "lw": 0}
        lengths = (end - begin)[rows]
        axes.barh(rows + 0.5, lengths, 0.8, left=begin[rows], label=phase, **look)
    name_layers(axes, group.runs[-1].layers["name"])
    axes.grid(visible=False, axis="y")
    last = float(np.nanmax(timeline.end[:SHOWN_RANKS], initial=1e-6))
    axes.set_xlim(0, 1.02e3 * last)  # the same for all ranks
    axes.set_xlabel("time since the step began (ms)")
    legend(axes, [*PHASES])
