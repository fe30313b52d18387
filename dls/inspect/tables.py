"""What runs come to as tables for a terminal, or for a file: things that rich prints, one below the
other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from dls.inspect.groups import Group, group_figures
from dls.inspect.summary import COMPARED, Summary, written, written_pair

K_OF_LAYERS = (
    *(
        ("layer", "name"),
        ("kind", "kind"),
        ("size", "size"),
        ("first k", "k_first"),
        ("rank 0", "k_rank0_first"),
    ),
    *(
        ("k/n", "ratio_first"),
        ("last k", "k_last"),
        ("rank 0", "k_rank0_last"),
        ("k/n", "ratio_last"),
    ),
)
ENDS_OF_LAYERS = (
    *(
        ("layer", "name"),
        ("first threshold", "threshold_first"),
        ("last threshold", "threshold_last"),
    ),
    *(("first residual", "residual_norm_first"), ("last residual", "residual_norm_last")),
)
"""Heads of the tables of layers, and what of a summary's layers stands below them."""
BYTES = (
    *(("sent", "bytes", "total_bytes"), ("dense", "dense_bytes", "dense_total_bytes")),
    *(
        ("received", "received_bytes", "total_received_bytes"),
        ("ring Allreduce", "ring_bytes", "ring_total_bytes"),
    ),
)
"""Heads of the table of bytes, and what of a summary's traffic stands below them: of a step, and in
total.
"""


def everything(summary: Summary) -> list[RenderableType]:
    """All there is to say about one run."""
    about = {
        **summary.run,
        "hosts": dict.fromkeys(summary.run["hosts"]),
        "recorded": summary.recorded,
        **summary.final,
    }
    rows = [
        (name.replace("_", " "), written(name, value))
        for name, value in about.items()
        if name != "config"
    ]
    shown = _table("", [("", column) for column in zip(*rows, strict=True)])
    if not summary.recorded:
        return [*shown, "nothing recorded yet"]
    shown += over_time(summary)
    title = (
        "k of each layer at the first and at the last recorded step: mean over the ranks, rank 0's"
        " own, mean k/n"
    )
    shown += _table(title, [(head, summary.layers[name]) for head, name in K_OF_LAYERS])
    title = (
        "Threshold and L2 norm of the residual of each layer at the first and the last recorded"
        " step: mean over the ranks"
    )
    shown += _table(title, [(head, summary.layers[name]) for head, name in ENDS_OF_LAYERS])
    traffic = summary.traffic
    compression = written("compression", traffic["compression"])
    title = (
        f"Bytes of a rank, for {traffic['uploaded_share']:.3%} of the values: compression"
        f" {compression}"
    )
    title += (
        "; received: from the other ranks; a ring Allreduce of the gradient moves as much each way"
    )
    columns: list[tuple[str, Sequence[Any]]] = [("", ["a step", "all recorded steps"])]
    columns += [(head, [traffic[f"{of}_per_step"], traffic[total]]) for head, of, total in BYTES]
    shown += _table(title, columns)
    return shown + time_of_a_step(summary)


def over_time(summary: Summary) -> list[RenderableType]:
    """A few points of the run's curves; nothing of what nobody recorded."""
    title = (
        f"Over time: means over the ranks and a window of recorded steps, here {summary.window};"
        " latest accuracy and share"
    )
    looked = {
        name: values
        for name, values in summary.curve.items()
        if name != "global_share" or any(values)
    }
    return _table(title, looked.items())


def time_of_a_step(summary: Summary) -> list[RenderableType]:
    """By phase."""
    timing = summary.timing
    title = (
        f"Time of a step: mean over the ranks and {timing['steps']} recorded; exposed is waiting"
        " for the network"
    )
    if timing["hidden_share"] is not None:
        title += (
            f"; {written('hidden_share', timing['hidden_share'])} of the exchange went on while the"
            " rank worked"
        )
    ms = [1e3 * seconds for seconds in timing["seconds"].values()]
    return _table(
        title, [("phase", [*timing["seconds"]]), ("ms", ms), ("share", [*timing["share"].values()])]
    )


def comparison(groups: Sequence[Group]) -> list[RenderableType]:
    """Groups side by side, one column each; of several runs mean ± standard deviation."""
    columns: list[tuple[str, Sequence[Any]]] = [("", [name.replace("_", " ") for name in COMPARED])]
    for group in groups:
        figures = group_figures(group)
        columns.append((group.label, [written_pair(name, figures.get(name)) for name in COMPARED]))
    title = "Set size and threshold ratio are those of the end; bytes and ms of a mean step"
    title += "; ± is the standard deviation over the seeds" * any(
        len(group.runs) > 1 for group in groups
    )
    return _table(title, columns)


def _table(title: str, columns: Collection[tuple[str, Sequence[Any]]]) -> list[RenderableType]:
    """A table below its title, numbers to the right; cells too wide for a terminal go on in the
    next line.
    """
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, show_header=any(head for head, _ in columns)
    )
    for head, cells in columns:
        words = any(isinstance(cell, str) for cell in cells)
        table.add_column(
            head.replace("_", " "), justify="left" if words else "right", overflow="fold"
        )
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*(written(head, cell) for (head, _), cell in zip(columns, row, strict=True)))
    return [*([title] if title else []), table, ""]
