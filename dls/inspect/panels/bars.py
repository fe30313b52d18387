"""Bytes of a step as dots, and its time as bars, a row for each group."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dls import traffic
from dls.inspect.groups import Group
from dls.inspect.panels.labels import font_size, legend, looks_of, names
from dls.inspect.run import Run
from dls.inspect.summary import summarise
from dls.tools.drawing import COLOURS, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GREY = "#777777"
"""The colour of what belongs to no method."""
PHASE_COLOURS = (*COLOURS[:6], "#F0E442", "#000000", "#BBBBBB")
"""The colours of a step's phases."""
HATCHES = ("", "///", "|||", "\\\\\\", "---", "", "///", "", "|||")
"""The hatching of a step's phases."""
NAME_WIDTH = 16
"""Characters of a group's name in one line."""
FILLED: Mapping[str, Any] = {"marker": "o", "markersize": 4.5}
"""A dot for what is sent."""
HOLLOW: Mapping[str, Any] = {"marker": "o", "markersize": 8.5, "markerfacecolor": "none"}
"""A dot for what is received."""


@dataclass(frozen=True)
class Moved:
    """Bytes of a rank in a step, means over the runs of a group.

    ring: what a ring Allreduce of the whole gradient would move each way.
    """

    sent: float
    received: float
    ring: float


def bytes_moved(groups: Sequence[Group], axes: Axes) -> None:
    """What a rank sends and receives in a step, beside what a ring Allreduce would move."""
    moved = [_moved(group) for group in groups]
    known = [x for each in moved for x in (each.sent, each.received, each.ring) if x > 0]
    middle = math.sqrt(min(known) * max(known)) if known else 1.0
    for row, (each, look) in enumerate(zip(moved, looks_of(groups), strict=True)):
        _draw_dots(axes, row, each, look, middle)
    _name_ring(axes, {each.ring for each in moved if each.ring > 0})
    axes.set_xscale("log")
    axes.margins(x=0.14)
    axes.xaxis.set_major_formatter(lambda value, _: _in_bytes(value))
    _name_rows(axes, groups)
    axes.set_ylim(len(groups) - 0.5, -0.9)
    axes.set_xlabel("bytes of a rank in a step")
    _explain_dots(axes)


def _moved(group: Group) -> Moved:
    traffics = [each for run in group.runs if (each := summarise(run).traffic)]
    return Moved(
        sent=float(np.mean([each.bytes_per_step for each in traffics])),
        received=float(np.mean([each.received_bytes_per_step for each in traffics])),
        ring=float(np.mean([each.ring_bytes_per_step for each in traffics])),
    )


def _draw_dots(axes: Axes, row: int, moved: Moved, look: Look, middle: float) -> None:
    axes.plot([moved.ring], [row], "|", color=GREY, markersize=13, markeredgewidth=1.6)
    plain: dict[str, Any] = {"color": look.colour, "linestyle": "none"}
    axes.plot([moved.received], [row], markeredgewidth=1.2, **plain, **HOLLOW)
    axes.plot([moved.sent], [row], **plain, **FILLED)
    values = sorted(x for x in (moved.sent, moved.received) if x > 0)
    _write_beside(axes, row, values, middle, look.colour)


def _write_beside(
    axes: Axes, row: int, values: Sequence[float], middle: float, colour: str
) -> None:
    """Write the figures of dots on the side where there is more room; equal ones once."""
    if not values:
        return
    to_right = math.sqrt(values[0] * values[-1]) <= middle
    x, shift, side = (values[-1], 7, "left") if to_right else (values[0], -7, "right")
    words = " / ".join(dict.fromkeys(_in_bytes(value) for value in values))
    _annotate(axes, words, (x, row), (shift, 0), ha=side, va="center", color=colour)


def _name_ring(axes: Axes, rings: set[float]) -> None:
    """Write what a ring Allreduce moves, where it is the same for all groups."""
    if len(rings) == 1:
        ring = rings.pop()
        position: dict[str, Any] = {"ha": "center", "va": "bottom"}
        _annotate(axes, _in_bytes(ring), (ring, 0), (0, 8), color=GREY, **position)


def _annotate(
    axes: Axes, words: str, point: tuple[float, float], shift: tuple[float, float], **look: Any
) -> None:
    size = 0.85 * font_size()
    axes.annotate(words, point, shift, textcoords="offset points", fontsize=size, **look)


def _in_bytes(value: float) -> str:
    return traffic.readable(value).replace(".00", "").replace("bytes", "B")


def _explain_dots(axes: Axes) -> None:
    """Add a legend in no method's colour."""
    from matplotlib.lines import Line2D

    plain: dict[str, Any] = {"color": GREY, "linestyle": "none"}
    stroke: dict[str, Any] = {"marker": "|", "markersize": 11, "markeredgewidth": 1.6}
    handles = [
        Line2D([], [], label="sent", **plain, **FILLED),
        Line2D([], [], label="received", **plain, **HOLLOW),
        Line2D([], [], label="ring Allreduce", **plain, **stroke),
    ]
    legend(axes, [str(each.get_label()) for each in handles], handles=handles, handlelength=1)


def times(groups: Sequence[Group], axes: Axes) -> None:
    """A bar for each group, with phase after phase."""
    seconds = [[seconds_of(run) for run in group.runs] for group in groups]
    rows, left = np.arange(len(groups)), np.zeros(len(groups))
    phases = [phase for phase in seconds[0][0] if phase != "total"]
    for phase, colour, hatch in zip(phases, PHASE_COLOURS, HATCHES, strict=True):
        ms = [1e3 * np.mean([max(0.0, each[phase]) for each in runs]) for runs in seconds]
        look: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white", "lw": 0}
        axes.barh(rows, ms, 0.6, left=left, label=phase, **look)
        left += ms
    _name_rows(axes, groups)
    axes.set_xlabel("time (ms)")
    legend(axes, phases)


def seconds_of(run: Run) -> Mapping[str, float]:
    """The seconds of each phase of a run's mean step; empty where nothing was recorded."""
    timing = summarise(run).timing
    return timing.seconds if timing else {}


def _name_rows(axes: Axes, groups: Sequence[Group]) -> None:
    folded = [textwrap.fill(name, NAME_WIDTH) for name in names(groups)]
    axes.set_yticks(np.arange(len(groups)), folded)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
