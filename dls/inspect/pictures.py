"""Which pictures of runs there are.

Methods look as `dls.tools.drawing` says. Layers and phases have Okabe and Ito's colours, or those
of cividis, which the colour-blind can tell apart; dashes, markers and hatching do it in grey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dls.cli import UsageError, near
from dls.inspect import points
from dls.inspect.curves import CURVES, LAYERS, CurveFigure, K, LayerFigure, Quantity
from dls.inspect.groups import Group
from dls.inspect.panels import bars, layers, over_steps, timeline
from dls.inspect.points import Point
from dls.inspect.run import Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HEIGHT = 3.0
"""Inches of a picture, unless it has a row for each of something."""
OF_GROUPS = (*(figure.name for figure in CURVES), "bytes", "time")
"""The names of the figures in which all groups stand side by side."""
OF_ONE_GROUP = (
    *(figure.name for figure in LAYERS),
    *(f"timeline-{rank}" for rank in range(timeline.SHOWN_RANKS)),
)
"""The names of the figures of one group's layers."""


@dataclass(frozen=True)
class Picture:
    """One figure: its name, its title, what it says in words, how it is drawn, and what is drawn.

    height: in inches.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[Axes], None]
    points: Callable[[], Iterator[Point]]
    height: float = HEIGHT


def of_groups(groups: Sequence[Group]) -> list[Picture]:
    """The pictures in which all groups stand side by side; none where nothing was recorded."""
    pictures = [
        _curve(groups, figure)
        for figure in CURVES
        if _has(groups, figure.table, figure.y) and _has(groups, figure.table, figure.x)
    ]
    recorded = [group for group in groups if _has([group], "steps", Quantity("loss", ""))]
    return [*pictures, _bytes(recorded), _times(recorded)] if recorded else pictures


def _curve(groups: Sequence[Group], figure: CurveFigure) -> Picture:
    return Picture(
        name=figure.name,
        title=figure.title,
        caption=figure.caption,
        draw=partial(over_steps.draw, groups, figure),
        points=partial(points.of_curves, groups, figure),
    )


def _bytes(groups: Sequence[Group]) -> Picture:
    return Picture(
        name="bytes",
        title="Bytes beside a ring Allreduce",
        caption="What a rank sends in a step, what it receives from the others, and what a"
        " ring Allreduce of the whole gradient would move each way.",
        draw=partial(bars.bytes_moved, groups),
        points=partial(points.of_bytes, groups),
        height=1.0 + 0.45 * len(groups),
    )


def _times(groups: Sequence[Group]) -> Picture:
    return Picture(
        name="time",
        title="Where a step's time went",
        caption="Means over the ranks and steps, without each file's first; exposed is waiting for"
        " the network.",
        draw=partial(bars.times, groups),
        points=partial(points.of_times, groups),
        height=1.5 + 0.45 * len(groups),
    )


def _has(groups: Sequence[Group], table: str, quantity: Quantity) -> bool:
    """Whether there is anything to draw."""
    means = [group.curve(table, quantity.name).mean.ravel() for group in groups]
    values = np.concatenate(means)
    return bool((np.isfinite(values) & ((values > 0) | (not quantity.log))).any())


def of_one_group(group: Group) -> list[Picture]:
    """The pictures of one group's layers; none where nothing was recorded."""
    pictures = [_layers(group, figure) for figure in LAYERS if _has([group], "steps", figure.y)]
    closest = group.runs[-1].closest
    if closest is None:
        return pictures
    shown = range(min(timeline.SHOWN_RANKS, len(closest.begin)))
    return pictures + [_timeline(group, closest, rank) for rank in shown]


def _layers(group: Group, figure: LayerFigure) -> Picture:
    is_k = figure.y == K
    return Picture(
        name=figure.name,
        title=figure.title,
        caption=figure.caption,
        draw=partial(layers.heat, group) if is_k else partial(layers.lines, group, figure.y),
        points=partial(points.of_layers, group, figure),
        height=_tall(group) if is_k else HEIGHT,
    )


def _timeline(group: Group, closest: Timeline, rank: int) -> Picture:
    whose = f", of the run with seed {group.runs[-1].about.seed}" if len(group.runs) > 1 else ""
    return Picture(
        name=f"timeline-{rank}",
        title=f"Step {closest.step} on rank {rank}",
        caption=f"What rank {rank} did for each layer, and when{whose}; layers that leave together"
        " have one time.",
        draw=partial(timeline.draw, group, closest, rank),
        points=partial(points.of_timeline, group, closest, rank),
        height=_tall(group),
    )


def _tall(group: Group) -> float:
    """The height of a picture with a row for each layer."""
    return float(np.clip(1.1 + 0.13 * len(group.runs[0].layers["name"]), 2.4, 7))


def check_name(name: str) -> None:
    """UsageError for a figure that there is not, with all that there are and the nearest one."""
    known = (*OF_GROUPS, *OF_ONE_GROUP)
    if name not in known:
        hint = near(name, known)
        raise UsageError(f"--figure: there is no {name!r}; all are {', '.join(known)}{hint}")


def named(groups: Sequence[Group], name: str) -> Picture:
    """The picture of a name. UsageError where these runs have none."""
    if name in OF_ONE_GROUP and len(groups) > 1:
        labels = ", ".join(group.label for group in groups)
        raise UsageError(
            f"--figure {name} shows the layers of one method, and these runs are of {len(groups)}:"
            f" {labels}"
        )
    pictures = [*of_groups(groups), *(of_one_group(groups[0]) if len(groups) == 1 else [])]
    for picture in pictures:
        if picture.name == name:
            return picture
    raise UsageError(
        f"--figure {name}: nothing of that was recorded; global-share and timelines need"
        " --diagnose-every"
    )
