"""What `dls.theory` measured, as tables, sentences and a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dls.bench import show
from dls.config import UsageError
from dls.inspect import COLOURS
from dls.theory_properties import HALF
from dls.theory_variance import FORMS, INNER, Row

MARKERS = dict(zip(FORMS, "sDox", strict=True))
"""One per form, so that the picture can be read without its colours."""
EQUAL = ("equal first", "equal from")
LINES = ("-", "--", ":", "-.")


def table(rows: Sequence[Row], name: str) -> list[Row]:
    """The rows of one table: ratio, error, fixed or run."""
    return [row for row in rows if row["table"] == name]


# Tables and sentences -------------------------------------------------------------------------------------------------------


def print_all(rows: Sequence[Row]) -> None:
    """Everything, the sentences last."""
    show("Var(dW of a layer) / Var(dW of the one before): measured, and as predicted", _ratio_lines(table(rows, "ratio")))
    for of, title in (("network", "each network"), ("place", "the pairs of each place")):
        heading = f"Mean |log2(measured / predicted)|, in doublings, over {title}; the factor that the corrected form misses"
        show(heading, [_error_line(row) for row in table(rows, "error") if row["of"] in ("all", of)])
    if table(rows, "fixed"):
        show("Algorithm 2 on a gradient that stays, from Layer-wise Top-k's k: adjustments until ...", _fixed_lines(rows))
        show("... and the largest difference between thresholds (set size) after so many", _set_size_lines(rows))
        show("DLS(1) on a run's changing gradients: means over its steps", _run_lines(rows))
    for line in sentences(rows):
        print(line)


def _ratio_lines(ratios: Sequence[Row]) -> list[Row]:
    """One line a pair, its numbers of steps side by side."""
    lines: dict[tuple[str, str], Row] = {}
    for row in ratios:
        line = lines.setdefault((row["network"], row["layer"]), {"network": row["network"], "layer": row["layer"]})
        spread = "" if row["log2 error"] is None else f" ±{row['log2 error']:.2f}"
        line[f"step_{row['step']} ±log2"] = "none" if row["measured"] is None else f"{row['measured']:.3g}{spread}"
        line |= {form: row[form] for form in FORMS if form != "all equal"} | {"where": ", ".join(row["where"])}
    return list(lines.values())


def _error_line(row: Row) -> Row:
    line: Row = {"step": str(row["step"]), "": row["name"], "pairs": row["pairs"]}
    line |= {"±log2": "" if row["noise"] is None else row["noise"]}
    if not row["pairs"]:
        return line
    figures = {form: row[form] for form in FORMS}
    return line | figures | {"corrected, factor": row["corrected, factor"], "corrected, worst": _worst(row, "corrected")}


def _worst(row: Row, form: str) -> str:
    return f"{row[f'{form}, worst']} {row[f'{form}, worst by']:.2f}"


def _fixed_lines(rows: Sequence[Row]) -> list[Row]:
    columns = ("90 %", "99 %", *EQUAL, "adjustments", "slower than half", "mean factor", "largest pair factor")
    lines = []
    for row in table(rows, "fixed"):
        line = _head(row) | {"step": str(row["step"]), "overlap before": row["overlap"][0]}
        lines.append(line | {name: _or_dash(row[name]) for name in columns})
    return lines


def _head(row: Row) -> Row:
    return {"network": row["network"], "layers": row["layers"], "density": row["density"], "K": row["K"]}


def _or_dash(value: Any) -> Any:
    return "-" if value is None else value


def _set_size_lines(rows: Sequence[Row]) -> list[Row]:
    places = (0, 1, 2, 3, 4, 5, 10, 20, 40)
    lines = []
    for row in table(rows, "fixed"):
        sizes = row["set size"]
        lines.append(_head(row) | {"step": str(row["step"])} | {str(i): sizes[i] if i < len(sizes) else "" for i in places})
    return lines


def _run_lines(rows: Sequence[Row]) -> list[Row]:
    lines = []
    for row in table(rows, "run"):
        columns = ("set size", "set size, layer-wise", "overlap", "overlap after", "overlap, layer-wise")
        means = {name: sum(row[name]) / len(row[name]) for name in columns}
        lines.append(_head(row) | {"steps": len(row["step"])} | means | {"equal at": _or_dash(row["equal at"])})
    return lines


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the figures say: which form is nearest, overall and in each place, and whether the properties held."""
    lines = [_verdict(row) for row in table(rows, "error") if row["of"] == "all" and row["pairs"]]
    lines += [_verdict(row) for row in table(rows, "error") if row["name"] == INNER and row["pairs"]]
    fixed = table(rows, "fixed")
    return lines + (_properties(fixed, table(rows, "run")) if fixed else [])


def nearest(row: Row) -> list[str]:
    """The forms of an error row, the one with the least error first."""
    return sorted(FORMS, key=lambda form: float(row[form]))


def _verdict(row: Row) -> str:
    first, *others = nearest(row)
    rest = ", ".join(f"{form} {row[form]:.2f}" for form in others)
    when = "at initialisation" if row["step"] == 0 else f"after {row['step']} steps"
    mean = f"off by {row[first]:.2f} doublings on average over {row['pairs']} pairs"
    return f"{row['name']}, {when}: nearest is {first}, {mean}; {rest}"


def _properties(fixed: Sequence[Row], runs: Sequence[Row]) -> list[str]:
    done = sum(row["adjustments"] for row in fixed)
    factors = [factor for row in (*fixed, *runs) for factor in row["pair factor"] if factor is not None]
    grew, slower = sum(row["grew"] for row in fixed), sum(row["slower than half"] for row in fixed)
    equal = sum(row["equal from"] is not None for row in fixed)
    held = "held" if max(factors, default=0.0) <= HALF else "did NOT hold"
    return [
        f"Property 2 {held}: a pair kept at most {max(factors, default=0.0):.3f} of its difference in {len(factors)} adjustments",
        f"Property 1 {'held' if not grew else 'did NOT hold'}: the set size grew in {grew} of {done} adjustments of a "
        f"gradient that stays, and {slower} left more than half of it; {equal} of {len(fixed)} gradients reached Global Top-k's "
        "choice for good",
    ]


# Picture --------------------------------------------------------------------------------------------------------------------


def check_plot(path: Path) -> None:
    """UsageError, before any measuring, where `draw` could not write there: no matplotlib, no such kind of picture, no folder."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("--plot needs matplotlib: pip install 'dls[plot]'") from None
    kinds = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in kinds:
        raise UsageError(f"--plot {path}: choose one of {', '.join(sorted(kinds))}")
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UsageError(f"--plot {path}: its folder is not there, or it is a folder itself")


def draw(rows: Sequence[Row], path: Path) -> None:
    """Measured against predicted ratios, errors by network and by place, set size on a gradient that stays, overlap of a run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 13), layout="constrained")
    panels = figure.subplots(3, 2, gridspec_kw={"height_ratios": (1, 1.1, 0.8)})
    steps = list(dict.fromkeys(row["step"] for row in table(rows, "ratio")))
    for axes, step in zip(panels[0], (steps[0], steps[-1]), strict=True):
        _draw_ratios(axes, [row for row in table(rows, "ratio") if row["step"] == step], step)
    for axes, of in zip(panels[1], ("network", "place"), strict=True):
        _draw_errors(axes, [row for row in table(rows, "error") if row["of"] in ("all", of)], steps)
    _draw_fixed(panels[2, 0], table(rows, "fixed"))
    _draw_runs(panels[2, 1], table(rows, "run"))
    for axes in panels.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


def _draw_ratios(axes: Any, ratios: Sequence[Row], step: int) -> None:
    known = [row for row in ratios if row["measured"] is not None]
    for (form, marker), colour in zip(MARKERS.items(), COLOURS, strict=False):
        if form != "all equal":
            predicted, measured = [row[form] for row in known], [row["measured"] for row in known]
            axes.plot(predicted, measured, marker, color=colour, label=form, fillstyle="none", markersize=6, alpha=0.9)
    ends = [row[form] for row in known for form in (*FORMS, "measured")] or [1.0]
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="black", lw=1, label="measured = predicted")
    axes.set(xscale="log", yscale="log", xlabel="predicted ratio", ylabel="measured ratio")
    axes.set_title("at initialisation" if step == 0 else f"after {step} training steps")
    axes.legend(frameon=False, fontsize="small")


def _draw_errors(axes: Any, errors: Sequence[Row], steps: Sequence[int]) -> None:
    """Hollow at the first number of steps, filled at the last."""
    names = list(dict.fromkeys(row["name"] for row in errors))
    for (form, marker), colour in zip(MARKERS.items(), COLOURS, strict=False):
        for step, style, shift in ((steps[0], "none", 0.15), (steps[-1], "full", -0.15)):
            shown = [row for row in errors if row["step"] == step and row["pairs"]]
            label = f"{form}, step {step}" if style == "none" or steps[0] != steps[-1] else None
            places = [names.index(row["name"]) - shift for row in shown]
            axes.plot([row[form] for row in shown], places, marker, color=colour, fillstyle=style, markersize=5, label=label)
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.invert_yaxis()
    axes.set(xscale="symlog", xlabel="mean |log2(measured / predicted)|, doublings")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize="x-small", loc="best")


def _styles(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """A colour per network and a line per density."""
    networks = list(dict.fromkeys(row["network"] for row in rows))
    densities = list(dict.fromkeys(row["density"] for row in rows))
    colours = [COLOURS[networks.index(row["network"]) % len(COLOURS)] for row in rows]
    return list(zip(colours, [LINES[densities.index(row["density"]) % len(LINES)] for row in rows], strict=True))


def _draw_fixed(axes: Any, fixed: Sequence[Row]) -> None:
    """The set size as a share of that before the first adjustment, the last recorded gradient of each."""
    shown = [row for row in fixed if row["step"] == max(other["step"] for other in fixed) and row["set size"][0] > 0]
    longest = max((len(row["set size"]) for row in shown), default=1)
    for row, (colour, line) in zip(shown, _styles(shown), strict=True):
        share = [size / row["set size"][0] for size in row["set size"]]
        axes.plot(share, line, color=colour, label=f"{row['network']}, density {row['density']:g}")
    axes.plot([HALF**i for i in range(min(longest, 20))], color="black", lw=0.8, label="half at each")
    axes.set(yscale="log", xlabel="adjustments of a gradient that stays", ylabel="set size / set size before")
    axes.legend(frameon=False, fontsize="x-small")


def _draw_runs(axes: Any, runs: Sequence[Row]) -> None:
    for row, (colour, line) in zip(runs, _styles(runs), strict=True):
        axes.plot(row["step"], row["overlap"], line, color=colour, label=f"{row['network']}, density {row['density']:g}")
        axes.plot(row["step"], row["overlap, layer-wise"], line, color=colour, alpha=0.35, lw=1)
    axes.set(xlabel="training step of DLS(1) (pale: Layer-wise's k on the same v)", ylabel="overlap with Global Top-k")
    axes.set_ylim(0, 1.02)
    if runs:
        axes.legend(frameon=False, fontsize="x-small")
