"""What `dls.theory` measured, as tables, sentences and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dls.cli import UsageError
from dls.record import files
from dls.theory.properties import HALF
from dls.theory.variance import FORMS, INNER, Row
from dls.tools.drawing import COLOURS, MISSING
from dls.tools.reports import show

MARKERS = dict(zip(FORMS, "sDox", strict=True))
"""One per form, so that the picture can be read without its colours."""
EQUAL = ("equal first", "equal from")
LINES = ("-", "--", ":", "-.")


def table(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of one table: settings, ratio, error, fixed or run."""
    return [row for row in rows if row["table"] == name]


# Tables and sentences -----------------------------------------------------------------------------


def print_all(rows: Sequence[Row]) -> None:
    """Everything, the sentences last."""
    show(
        "Var(dW of a layer) / Var(dW of the one before): measured, and as predicted",
        _ratio_lines(table(rows, "ratio")),
    )
    for of, title in (
        ("network", "each network"),
        ("kinds", "the pairs of each kind"),
        ("place", "the pairs of each place"),
    ):
        lines = [_error_line(row) for row in table(rows, "error") if row["of"] in ("all", of)]
        show(f"Mean |log2(measured / predicted)|, in doublings, of {title}", lines)
    if table(rows, "fixed"):
        show(
            "Algorithm 2 on a gradient that stays, from Layer-wise Top-k's k: adjustments"
            " until ...",
            _fixed_lines(rows),
        )
        show(
            "... and the largest difference between thresholds (set size) after so many",
            _set_size_lines(rows),
        )
        show("DLS(1) on a run's changing gradients: means over its steps", _run_lines(rows))
    for line in sentences(rows):
        print(line)


def _ratio_lines(ratios: Sequence[Row]) -> list[Row]:
    """One line a pair, its numbers of steps side by side."""
    steps = dict.fromkeys(row["step"] for row in ratios)
    lines: dict[tuple[str, str], Row] = {}
    for row in ratios:
        start = {"network": row["network"], "layer": row["layer"]} | {
            f"step_{step} ±log2": "" for step in steps
        }
        line = lines.setdefault((row["network"], row["layer"]), start)
        spread = "" if row["log2 error"] is None else f" ±{row['log2 error']:.2f}"
        line[f"step_{row['step']} ±log2"] = (
            "none" if row["measured"] is None else f"{row['measured']:.3g}{spread}"
        )
        line |= {form: row[form] for form in FORMS if form != "all equal"} | {
            "where": ", ".join(row["where"])
        }
    return list(lines.values())


def _error_line(row: Row) -> Row:
    line: Row = {"step": str(row["step"]), "": row["name"], "pairs": row["pairs"]}
    line |= {"±log2": "" if row["noise"] is None else row["noise"]}
    if not row["pairs"]:
        return line
    figures = {form: row[form] for form in FORMS}
    return (
        line
        | figures
        | {
            "measured / corrected": row["corrected, factor"],
            "corrected, worst": _worst(row, "corrected"),
        }
    )


def _worst(row: Row, form: str) -> str:
    return f"{row[f'{form}, worst']} {row[f'{form}, worst by']:.2f}"


def _fixed_lines(rows: Sequence[Row]) -> list[Row]:
    columns = (
        "90 %",
        "99 %",
        *EQUAL,
        "adjustments",
        "slower than half",
        "mean factor",
        "largest pair factor",
    )
    lines = []
    for row in table(rows, "fixed"):
        line = _head(row) | {"step": str(row["step"]), "overlap before": row["overlap"][0]}
        lines.append(line | {name: _or_dash(row[name]) for name in columns})
    return lines


def _head(row: Row) -> Row:
    return {
        "network": row["network"],
        "layers": row["layers"],
        "density": row["density"],
        "K": row["K"],
    }


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value


def _set_size_lines(rows: Sequence[Row]) -> list[Row]:
    places = (0, 1, 2, 3, 4, 5, 10, 20, 40)
    lines = []
    for row in table(rows, "fixed"):
        sizes = row["set size"]
        lines.append(
            _head(row)
            | {"step": str(row["step"])}
            | {str(i): sizes[i] if i < len(sizes) else "" for i in places}
        )
    return lines


def _run_lines(rows: Sequence[Row]) -> list[Row]:
    lines = []
    for row in table(rows, "run"):
        columns = (
            "set size",
            "set size, layer-wise",
            "overlap",
            "overlap after",
            "overlap, layer-wise",
        )
        means = {name: sum(row[name]) / len(row[name]) for name in columns}
        lines.append(
            _head(row)
            | {"steps": len(row["step"])}
            | means
            | {"equal at": _or_dash(row["equal at"])}
        )
    return lines


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the figures say: which form is nearest, overall and in each place, and whether the
    properties held.
    """
    lines = [_verdict(row) for row in table(rows, "error") if row["of"] == "all" and row["pairs"]]
    lines += [
        _verdict(row) for row in table(rows, "error") if row["name"] == INNER and row["pairs"]
    ]
    diverged = dict.fromkeys(
        (row["network"], row["step"]) for row in table(rows, "ratio") if row["loss"] is None
    )
    lines += [
        f"{network} diverged within {step} steps and is left out there: take a smaller --lr"
        for network, step in diverged
    ]
    fixed = table(rows, "fixed")
    return lines + (_properties(fixed, table(rows, "run")) if fixed else [])


def nearest(row: Row) -> list[str]:
    """The form of an error row with the least error, or those that say the same there."""
    least = min(float(row[form]) for form in FORMS)
    return [form for form in FORMS if row[form] <= least + 1e-9]


def _verdict(row: Row) -> str:
    order = sorted(FORMS, key=lambda form: float(row[form]))
    best = nearest(row)
    rest = "".join(f"; {form} {row[form]:.2f}" for form in order if form not in best)
    when = "at initialisation" if row["step"] == 0 else f"after {row['step']} steps"
    mean = f"off by {row[best[0]]:.2f} doublings on average over {row['pairs']} pairs"
    return f"{row['name']}, {when}: nearest is {' = '.join(best)}, {mean}{rest}"


def _properties(fixed: Sequence[Row], runs: Sequence[Row]) -> list[str]:
    done = sum(row["adjustments"] for row in fixed)
    factors = [
        factor for row in (*fixed, *runs) for factor in row["pair factor"] if factor is not None
    ]
    grew, slower = sum(row["grew"] for row in fixed), sum(row["slower than half"] for row in fixed)
    equal = sum(row["equal from"] is not None for row in fixed)
    held = "held" if max(factors, default=0.0) <= HALF else "did NOT hold"
    return [
        (
            f"Property 2 {held}: a pair kept at most {max(factors, default=0.0):.3f} of its"
            f" difference in {len(factors)} adjustments"
        ),
        (
            f"Property 1 {'held' if not grew else 'did NOT hold'}: the set size grew in {grew} of"
            f" {done} adjustments of a gradient that stays, and {slower} left more than half of it;"
            f" {equal} of {len(fixed)} gradients reached Global Top-k's choice for good"
        ),
    ]


# Picture ------------------------------------------------------------------------------------------


def check_plot(path: Path) -> None:
    """UsageError, before any measuring, where `draw` could not write there: no matplotlib, no such
    kind of picture, no folder.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(f"--plot {MISSING}") from None
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise UsageError(f"--plot {path}: choose one of {', '.join(sorted(kinds))}")
    if obstacle := files.obstacle(path):
        raise UsageError(f"--plot {path}: {obstacle}")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Measured against predicted ratios, errors by network and by place, set size on a gradient
    that stays, overlap of a run.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 14), layout="constrained")
    panels = figure.subplots(3, 2, gridspec_kw={"height_ratios": (1, 1.3, 0.9)})
    steps = list(dict.fromkeys(row["step"] for row in table(rows, "ratio")))
    for axes, step in zip(panels[0], (steps[0], steps[-1]), strict=True):
        _draw_ratios(axes, [row for row in table(rows, "ratio") if row["step"] == step], step)
    for axes, of in zip(panels[1], (("all", "network"), ("kinds", "place")), strict=True):
        _draw_errors(axes, [row for row in table(rows, "error") if row["of"] in of], steps)
    _draw_fixed(panels[2, 0], table(rows, "fixed"))
    _draw_run(panels[2, 1], table(rows, "run"))
    for axes in panels.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _draw_ratios(axes: Any, ratios: Sequence[Row], step: int) -> None:
    known = [row for row in ratios if row["measured"] is not None]
    for (form, marker), colour in zip(MARKERS.items(), COLOURS, strict=False):
        if form != "all equal":
            predicted, measured = [row[form] for row in known], [row["measured"] for row in known]
            axes.plot(
                predicted,
                measured,
                marker,
                color=colour,
                label=form,
                fillstyle="none",
                markersize=6,
                alpha=0.9,
            )
    ends = [row[form] for row in known for form in (*FORMS, "measured")] or [1.0]
    axes.plot(
        [min(ends), max(ends)],
        [min(ends), max(ends)],
        color="black",
        lw=1,
        label="measured = predicted",
    )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="predicted ratio of neighbouring layers' variances",
        ylabel="measured ratio",
    )
    axes.set_title("at initialisation" if step == 0 else f"after {step} training steps")
    axes.legend(frameon=False, fontsize="small")


def _draw_errors(axes: Any, errors: Sequence[Row], steps: Sequence[int]) -> None:
    """Hollow at the first number of steps, filled at the last."""
    names = list(dict.fromkeys(row["name"] for row in errors))
    ends = [(steps[0], "none", 0.17), (steps[-1], "full", -0.17)][: len(set(steps))]
    for (form, marker), colour in zip(MARKERS.items(), COLOURS, strict=False):
        for step, style, shift in ends:
            shown = [row for row in errors if row["step"] == step and row["pairs"]]
            places = [names.index(row["name"]) - shift for row in shown]
            label = f"{form}, step {step}"
            axes.plot(
                [row[form] for row in shown],
                places,
                marker,
                color=colour,
                fillstyle=style,
                markersize=5,
                label=label,
            )
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("mean |log2(measured / predicted)|: doublings that a prediction is off")
    axes.legend(
        frameon=False, fontsize="x-small", loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=4
    )


def _colour_of_density(rows: Sequence[Row]) -> dict[float, str]:
    densities = dict.fromkeys(row["density"] for row in rows)
    return {density: COLOURS[i % len(COLOURS)] for i, density in enumerate(densities)}


def _draw_fixed(axes: Any, fixed: Sequence[Row]) -> None:
    """The set size as a share of that before the first adjustment, on the last recorded gradient; a
    line style per network.
    """
    shown = [
        row
        for row in fixed
        if row["step"] == max(other["step"] for other in fixed) and row["set size"][0] > 0
    ]
    colours, networks = (
        _colour_of_density(shown),
        list(dict.fromkeys(row["network"] for row in shown)),
    )
    for row in shown:
        style = LINES[networks.index(row["network"]) % len(LINES)]
        label = f"{row['network']} ({row['layers']} layers), density {row['density']:g}"
        axes.plot(
            [s / row["set size"][0] for s in row["set size"]],
            style,
            color=colours[row["density"]],
            label=label,
        )
    axes.plot([HALF**i for i in range(20)], color="black", lw=0.8, label="half at each")
    axes.set(
        yscale="log",
        xlabel="adjustments of a gradient that stays",
        ylabel="set size / set size before",
    )
    axes.legend(frameon=False, fontsize="x-small")


def _draw_run(axes: Any, runs: Sequence[Row]) -> None:
    """Of the last network: the overlap with Global Top-k before each step's adjustment, and that of
    Layer-wise's k beside it.
    """
    shown = [row for row in runs if row["network"] == runs[-1]["network"]]
    colours = _colour_of_density(shown)
    for row in shown:
        colour = colours[row["density"]]
        axes.plot(
            row["step"],
            row["overlap"],
            "-",
            color=colour,
            label=f"DLS(1), density {row['density']:g}",
        )
        axes.plot(
            row["step"],
            row["overlap, layer-wise"],
            ":",
            color=colour,
            lw=1.2,
            label="Layer-wise's k on the same v",
        )
        axes.set_title(f"a run of {row['network']}", fontsize="medium")
    axes.set(xlabel="training step", ylabel="overlap with Global Top-k")
    axes.set_ylim(0, 1.02)
    if shown:
        axes.legend(frameon=False, fontsize="x-small", ncols=2)
