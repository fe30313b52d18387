"""What `python -m dls.bench torch` writes for people: its rows in Markdown, and a picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dls.bench import torch_targets
from dls.bench.torch_names import DDP
from dls.bench.torch_network import RaceRow, TorchRow
from dls.record import files
from dls.tools import numbers
from dls.tools.drawing import family, looks
from dls.tools.rows import Row
from dls.tools.tables import markdown_head, markdown_line

GREY = "#777777"
"""The colour of DDP's bars, which is no method's."""
PANELS = 3
"""Panels side by side."""
WAITING = "////"
"""The hatching of what a step takes beyond the one without communication."""


def write_markdown(rows: Sequence[Row], path: Path) -> None:
    """Write a table for each cell, and the targets. OSError."""
    steps = [row for row in rows if isinstance(row, TorchRow)]
    races = [row for row in rows if isinstance(row, RaceRow)]
    lines = [
        "# PyTorch models: steps with DDP and with dls.torch",
        "",
        "Medians, with quartiles in brackets. *Exposed* is what a step takes beyond the one without"
        " communication of the same round; the ratios are of the same round, too. *Sent* is what"
        " the kernel counted, headers included.",
        "",
    ]
    for cell in dict.fromkeys(row.cell for row in steps):
        lines += _steps_table([row for row in steps if row.cell == cell])
    for cell in dict.fromkeys(row.cell for row in races):
        lines += _race_table([row for row in races if row.cell == cell])
    lines += _targets_table(steps)
    files.write_text(path, "\n".join(lines))


def _title(row: TorchRow | RaceRow) -> str:
    ranks = "one rank" if row.hosts == 1 else f"{row.hosts} ranks"
    return f"## {row.model}, batch {row.batch}, {ranks}, {row.rate}"


def _steps_table(rows: Sequence[TorchRow]) -> Iterator[str]:
    about = next((row for row in rows if row.parameters), rows[0])
    yield _title(rows[0])
    yield ""
    if about.parameters:
        yield f"{about.parameters:,} parameters; {about.data}; {about.rounds} rounds of"
        yield f"{about.block} steps."
        yield ""
    yield from markdown_head(
        "", "step, ms", "exposed, ms", "sent, kB", "step / none", "step / ddp", "loss"
    )
    for row in rows:
        yield markdown_line(row.contender, *_steps_cells(row))
    yield ""


def _steps_cells(row: TorchRow) -> list[str]:
    if row.failed or row.step_ms is None:
        return [f"failed: {row.failed}", "", "", "", "", ""]
    step = f"{row.step_ms:,.0f} ({row.step_low_ms:,.0f}–{row.step_high_ms:,.0f})"
    by_none = numbers.MISSING
    if row.by_none is not None:
        by_none = f"{row.by_none:.2f} ({row.by_none_low:.2f}–{row.by_none_high:.2f})"
    exposed = _shown(row.exposed_ms, ",.0f")
    return [
        step,
        exposed,
        _shown(row.kb, ",.1f"),
        by_none,
        _shown(row.by_ddp, ".2f"),
        _shown(row.loss, ".3f"),
    ]


def _race_table(rows: Sequence[RaceRow]) -> Iterator[str]:
    yield f"{_title(rows[0])}, after {rows[0].seconds:g} s of training"
    yield ""
    yield from markdown_head("", "steps", "test loss", "test accuracy")
    for row in rows:
        cells = [f"failed: {row.failed}", "", ""]
        if not row.failed:
            cells = [f"{row.steps:,}", _shown(row.loss, ".3f"), _shown(row.accuracy, ".1%")]
        yield markdown_line(row.contender, *cells)
    yield ""


def _targets_table(rows: Sequence[TorchRow]) -> Iterator[str]:
    judged = list(torch_targets.judge(rows))
    if not judged:
        return
    yield "## Targets"
    yield ""
    yield from markdown_head("model, batch", "network", "what", "limit", "measured", "reached")
    for row in judged:
        network = f"{row.hosts} ranks, {row.rate}"
        figures = f"{row.limit:.2f}", f"{row.measured:.2f}", row.reached
        yield markdown_line(f"{row.model}, {row.batch}", network, row.target, *figures)
    yield ""


def _shown(value: float | None, form: str) -> str:
    return numbers.MISSING if value is None else f"{value:{form}}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the step times on several ranks: a panel for each model and network.

    `dls.tools.plotting.check_picture` comes first.
    """
    from matplotlib.figure import Figure

    steps = [row for row in rows if isinstance(row, TorchRow) and row.hosts > 1]
    cells = list(dict.fromkeys(row.cell for row in steps))
    if not cells:
        return
    columns = min(len(cells), PANELS)
    lines = -(-len(cells) // columns)
    figure = Figure(figsize=(4.6 * columns, 0.6 + 2.8 * lines), layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, cell in zip(panels, cells, strict=False):
        _draw_panel(axes, [row for row in steps if row.cell == cell])
        model, batch, rate, hosts = cell
        axes.set_title(f"{model}, batch {batch}, {hosts} ranks, {rate}", fontsize=9)
    for axes in panels[len(cells) :]:
        axes.set_axis_off()
    figure.supxlabel("ms per step; hatched: beyond the step without communication", fontsize=9)
    figure.savefig(path, dpi=120)


def _draw_panel(axes: Any, rows: Sequence[TorchRow]) -> None:
    """A bar for each contender: the step without communication, and hatched what comes on top."""
    names = [row.contender.replace("/bucket_mb=", ", MB: ") for row in rows]
    whole = [row.step_ms or 0.0 for row in rows]
    exposed = [max(0.0, row.exposed_ms or 0.0) for row in rows]
    plain = [step - over for step, over in zip(whole, exposed, strict=True)]
    colours = [_colour(row.contender) for row in rows]
    edge: dict[str, Any] = {"edgecolor": colours, "lw": 0.6}
    axes.barh(names, plain, color=colours, **edge)
    bars = axes.barh(names, exposed, left=plain, color="white", hatch=WAITING, **edge)
    labels = ["failed" if row.step_ms is None else f"{row.step_ms:,.0f}" for row in rows]
    axes.bar_label(bars, labels=labels, padding=3, fontsize=8)
    axes.margins(x=0.18)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)


def _colour(name: str) -> str:
    if name.split("/")[0] in (DDP, "none"):
        return GREY
    return looks([family(name)])[0].colour
