"""Runs as tables for a terminal: things that rich prints, one below the other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from dls.inspect import figures
from dls.inspect.formats import written, written_pair
from dls.inspect.groups import Group
from dls.inspect.summary import Layers, Summary, Timing, Traffic


@dataclass(frozen=True)
class Column:
    """A column of a table. Its head also says how its numbers are written."""

    head: str
    cells: Sequence[Any]


def everything(summary: Summary) -> list[RenderableType]:
    """All there is to say about one run."""
    shown = _about(summary)
    if summary.traffic is None or summary.timing is None:
        return [*shown, "nothing recorded yet"]
    shown += over_time(summary)
    shown += _k_of_layers(summary.layers) + _thresholds_of_layers(summary.layers)
    return shown + _bytes(summary.traffic) + time_of_a_step(summary.timing)


def _about(summary: Summary) -> list[RenderableType]:
    about = {
        **summary.run.to_json(),
        "hosts": dict.fromkeys(summary.run.hosts),
        "recorded": summary.recorded,
        **summary.final.to_json(),
    }
    del about["config"]
    names = [name.replace("_", " ") for name in about]
    values = [written(name, value) for name, value in about.items()]
    return _table("", [Column("", names), Column("", values)])


def over_time(summary: Summary) -> list[RenderableType]:
    """A few points of the run's curves."""
    title = (
        f"Over time: means over the ranks and a window of recorded steps, here {summary.window};"
        " latest accuracy and share"
    )
    curve = summary.curve.to_json()
    if not any(summary.curve.global_share):
        del curve["global_share"]
    return _table(title, [Column(name, values) for name, values in curve.items()])


def _k_of_layers(layers: Layers) -> list[RenderableType]:
    title = (
        "k of each layer at the first and at the last recorded step: mean over the ranks, rank 0's"
        " own, mean k/n"
    )
    columns = [
        Column("layer", layers.name),
        Column("kind", layers.kind),
        Column("size", layers.size),
        Column("first k", layers.k_first or ()),
        Column("rank 0", layers.k_rank0_first or ()),
        Column("k/n", layers.ratio_first or ()),
        Column("last k", layers.k_last or ()),
        Column("rank 0", layers.k_rank0_last or ()),
        Column("k/n", layers.ratio_last or ()),
    ]
    return _table(title, columns)


def _thresholds_of_layers(layers: Layers) -> list[RenderableType]:
    title = (
        "Threshold and L2 norm of the residual of each layer at the first and the last recorded"
        " step: mean over the ranks"
    )
    columns = [
        Column("layer", layers.name),
        Column("first threshold", layers.threshold_first or ()),
        Column("last threshold", layers.threshold_last or ()),
        Column("first residual", layers.residual_norm_first or ()),
        Column("last residual", layers.residual_norm_last or ()),
    ]
    return _table(title, columns)


def _bytes(traffic: Traffic) -> list[RenderableType]:
    compression = written("compression", traffic.compression)
    title = (
        f"Bytes of a rank, for {traffic.uploaded_share:.3%} of the values: compression"
        f" {compression}; received: from the other ranks; a ring Allreduce of the gradient moves as"
        " much each way"
    )
    ring = [traffic.ring_bytes_per_step, traffic.ring_total_bytes]
    columns = [
        Column("", ["a step", "all recorded steps"]),
        Column("sent", [traffic.bytes_per_step, traffic.total_bytes]),
        Column("dense", [traffic.dense_bytes_per_step, traffic.dense_total_bytes]),
        Column("received", [traffic.received_bytes_per_step, traffic.total_received_bytes]),
        Column("ring Allreduce", ring),
    ]
    return _table(title, columns)


def time_of_a_step(timing: Timing) -> list[RenderableType]:
    """The time of a mean step, by phase."""
    title = (
        f"Time of a step: mean over the ranks and {timing.steps} recorded; exposed is waiting"
        " for the network"
    )
    if timing.hidden_share is not None:
        share = written("hidden_share", timing.hidden_share)
        title += f"; {share} of the exchange went on while the rank worked"
    columns = [
        Column("phase", [*timing.seconds]),
        Column("ms", [1e3 * seconds for seconds in timing.seconds.values()]),
        Column("share", [*timing.share.values()]),
    ]
    return _table(title, columns)


def comparison(groups: Sequence[Group]) -> list[RenderableType]:
    """Groups side by side, one column each; of several runs mean ± standard deviation."""
    columns = [Column("", [name.replace("_", " ") for name in figures.COMPARED])]
    for group in groups:
        known = figures.of_group(group)
        cells = [written_pair(name, known.get(name)) for name in figures.COMPARED]
        columns.append(Column(group.label, cells))
    title = "Set size and threshold ratio are those of the end; bytes and ms of a mean step"
    if any(len(group.runs) > 1 for group in groups):
        title += "; ± is the standard deviation over the seeds"
    return _table(title, columns)


def _table(title: str, columns: Collection[Column]) -> list[RenderableType]:
    """A table below its title, numbers to the right; a wide cell goes on in the next line."""
    heads = [column.head for column in columns]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_header=any(heads))
    for column in columns:
        is_text = any(isinstance(cell, str) for cell in column.cells)
        words = column.head.replace("_", " ")
        table.add_column(words, justify="left" if is_text else "right", overflow="fold")
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(written, heads, cells))
    return [*([title] if title else []), table, ""]
