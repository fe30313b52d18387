"""What `dls.theory` measured, as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from dls.theory.forms import ALL_EQUAL, CORRECTED, FORMS
from dls.theory.rows import ErrorRow, FixedRow, RatioRow, RunRow, of_kind
from dls.theory.sentences import sentences
from dls.tools.numbers import or_missing
from dls.tools.rows import Row
from dls.tools.tables import show

Line = dict[str, Any]
"""One line of a table: what stands below each head."""

ERROR_TABLES = {
    "network": "each network",
    "kinds": "the pairs of each two kinds of layers",
    "place": "the pairs in each place",
}
"""The tables of errors, and what their titles call them."""
SHOWN_ADJUSTMENTS = (0, 1, 2, 3, 4, 5, 10, 20, 40)
"""Numbers of adjustments after which the set size is shown."""


def print_all(rows: Sequence[Row]) -> None:
    """Print everything, the sentences last."""
    ratios, errors = of_kind(rows, RatioRow), of_kind(rows, ErrorRow)
    title = "Var(dW of a layer) / Var(dW of the one before): measured, and as predicted"
    show(title, _ratio_lines(ratios))
    for of, words in ERROR_TABLES.items():
        lines = [_error_line(row) for row in errors if row.of in ("all", of)]
        show(f"Mean |log2(measured / predicted)|, in doublings, of {words}", lines)
    if of_kind(rows, FixedRow):
        _show_properties(of_kind(rows, FixedRow), of_kind(rows, RunRow))
    for sentence in sentences(rows):
        print(sentence)


def _show_properties(fixed: Sequence[FixedRow], runs: Sequence[RunRow]) -> None:
    title = "Algorithm 2 on a gradient that stays, from Layer-wise Top-k's k: adjustments until ..."
    show(title, [_fixed_line(row) for row in fixed])
    title = "... and the set size (largest less smallest threshold) after so many adjustments"
    show(title, [_set_size_line(row) for row in fixed])
    title = "DLS(1) on a run's changing gradients: means over its steps"
    show(title, [_run_line(row) for row in runs])


def _ratio_lines(ratios: Sequence[RatioRow]) -> list[Line]:
    """One line for each pair, with its numbers of training steps side by side."""
    heads = {step: f"step_{step} ±log2" for step in dict.fromkeys(row.step for row in ratios)}
    lines: dict[tuple[str, str], Line] = {}
    for row in ratios:
        start = {"network": row.network, "layer": row.layer} | dict.fromkeys(heads.values(), "")
        line = lines.setdefault((row.network, row.layer), start)
        line[heads[row.step]] = _measured(row)
        line |= {form: row.predicted[form] for form in FORMS if form != ALL_EQUAL}
        line["where"] = ", ".join(row.where)
    return list(lines.values())


def _measured(row: RatioRow) -> str:
    if row.measured is None:
        return "none"
    noise = "" if row.log2_error is None else f" ±{row.log2_error:.2f}"
    return f"{row.measured:.3g}{noise}"


def _error_line(row: ErrorRow) -> Line:
    line: Line = {"step": str(row.step), "": row.name, "pairs": row.pairs}
    line["±log2"] = "" if row.noise is None else row.noise
    if not row.forms:
        return line
    line |= {form: error.mean for form, error in row.forms.items()}
    corrected = row.forms[CORRECTED]
    worst = f"{corrected.worst} {corrected.worst_by:.2f}"
    return line | {"measured / corrected": corrected.factor, "corrected, worst": worst}


def _about(row: FixedRow | RunRow) -> Line:
    return {
        "network": row.network,
        "layers": row.layers,
        "density": row.density,
        "K": row.budget,
    }


def _fixed_line(row: FixedRow) -> Line:
    line = _about(row) | {"step": str(row.step), "overlap before": row.overlaps[0]}
    figures = {
        "90 %": row.reached_90,
        "99 %": row.reached_99,
        "equal first": row.reached_all,
        "equal from": row.equal_from,
        "adjustments": row.adjustments,
        "slower than half": row.slower_than_half,
        "mean factor": row.mean_factor,
        "largest pair factor": row.largest_pair_factor,
    }
    return line | {name: or_missing(figure) for name, figure in figures.items()}


def _set_size_line(row: FixedRow) -> Line:
    sizes = dict(enumerate(row.set_sizes))
    shown = {str(number): sizes.get(number, "") for number in SHOWN_ADJUSTMENTS}
    return _about(row) | {"step": str(row.step)} | shown


def _run_line(row: RunRow) -> Line:
    figures = {
        "set size": fmean(row.set_sizes),
        "set size, layer-wise": fmean(row.set_sizes_layerwise),
        "overlap": fmean(row.overlaps),
        "overlap after": fmean(row.overlaps_after),
        "overlap, layer-wise": fmean(row.overlaps_layerwise),
    }
    return (
        _about(row) | {"steps": len(row.steps)} | figures | {"equal at": or_missing(row.equal_at)}
    )
