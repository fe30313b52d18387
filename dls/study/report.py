"""The report of a study: Markdown, JSON and a chart, rebuilt from the traces of complete runs
whenever it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dls.cli import UsageError
from dls.record import files
from dls.study import chart, provenance
from dls.study.findings import CONFIDENCE, Comparison, comparisons, sentences, split
from dls.study.results import Row, baselines
from dls.tools import machine

HOW = f"""
± after an accuracy is the standard deviation over the seeds. A difference is that of two runs with
the same seed, with its {CONFIDENCE:.0%} interval by Student's t over the seeds; "all" is the mean
over the densities, seed by seed. Overlap is the share of Global Top-k's choice that was also sent,
averaged over ranks and the steps that were looked at; that choice is from the run's own accumulated
gradient, in which what a method neglects grows. Spread says how uneven the layers' thresholds are:
the standard deviation of their natural logarithms, averaged over ranks and steps; 0 is one
threshold. Split is the share of K that the layers get as in GOAL's own run of the same seed,
averaged over ranks and steps. kB are what a rank gives to MPI in a step. ms are the median step of
the slowest rank, each run measured in its own hour, beside whatever else the machine did: they rank
nothing.
""".strip()


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """The report, in Markdown."""
    found = comparisons(rows)
    yield from _standing(rows)
    named = list(dict.fromkeys(name for row in rows for name in baselines([row])))
    goals = " or ".join(dict.fromkeys(baselines([row])[-1] for row in rows))
    how = HOW.replace("GOAL", goals)
    yield from (
        "",
        "## Findings",
        "",
        *sentences(found, named),
        "",
        "## How to read the tables",
        "",
        how,
    )
    for workload in dict.fromkeys(row["workload"] for row in rows):
        own = [row for row in rows if row["workload"] == workload]
        yield from ("", f"## {workload}", "", _about(own), "")
        yield from _results(own)
        if compared := [each for each in found if each.workload == workload]:
            yield ""
            yield from _compared(compared)
    yield from _origin(rows)


def _standing(rows: Sequence[Row]) -> Iterator[str]:
    """How much of the study is in the report, and what went wrong."""
    complete, planned = sum(len(row["seeds"]) for row in rows), sum(row["planned"] for row in rows)
    interim = " Verdicts on fewer seeds than planned are interim." if complete < planned else ""
    yield f"{complete} of {planned} planned runs are complete.{interim}"
    for row in rows:
        for seed, why in row["failed"].items():
            yield (
                f"- {row['workload']}, {row['method']} at density {_density(row)}, seed {seed},"
                f" failed: {why}"
            )


def _about(rows: Sequence[Row]) -> str:
    """The settings of a workload's runs; those in which they differ have all their values."""

    def said(name: str, form: str = "") -> str:
        found = dict.fromkeys(row["settings"][name] for row in rows)
        return " or ".join(format(value, form) for value in found)

    sizes = f"{rows[0]['ranks']} ranks of {said('batch_size')} images, {said('steps')} steps"
    rates = (
        f"learning rate {said('lr', 'g')} ({said('lr_schedule')} schedule), momentum"
        f" {said('momentum', 'g')}"
    )
    extras = [
        name for name in ("clip_norm", "weight_decay") if any(row["settings"][name] for row in rows)
    ]
    more = "".join(f", {name.replace('_', ' ')} {said(name, 'g')}" for name in extras)
    places = sorted({place for row in rows for place in row["places"]})
    return (
        f"{said('model')} on {said('dataset')}: {sizes},"
        f" {rates}{more}{'; ' * bool(places)}{', '.join(places)}."
    )


def _results(rows: Sequence[Row]) -> Iterator[str]:
    """A table of what each cell reached.

    A cell's seeds say how many are there, and how many failed.
    """
    figures = (
        "test accuracy, %",
        "test loss",
        "overlap",
        "spread",
        "split",
        "ms a step",
        "kB a step",
    )
    names = ("density", "method", *figures, "seeds", "repeat")
    yield _line(*names)
    yield "| --- " * len(names) + "|"
    chosen = {row["density"]: row for row in rows if row["method"] == baselines(rows)[-1]}
    for row in rows:
        seeds = _seeds(row["seeds"], row["planned"], len(row["failed"]))
        yield _line(
            _density(row),
            row["method"],
            *_figures(row, chosen.get(row["density"])),
            seeds,
            f"`{row['repeat']}`",
        )


def _density(row: Row) -> str:
    return f"{row['settings']['density']:g}"


def _figures(row: Row, chosen: Row | None) -> list[str]:
    """Accuracy, loss, overlap, split, time and bytes, as far as there are any. chosen: what the
    goal did there.
    """
    if not row["seeds"]:
        return ["none" if row["failed"] else "not run yet", "", "", "", "", "", ""]
    spread = f" ± {100 * stdev(row['accuracy']):.2f}" if len(row["seeds"]) > 1 else ""
    alike = split(row, chosen) if chosen else []
    figures = [
        f"{fmean(row['loss']):.3f}",
        _mean(row, "overlap"),
        _mean(row, "spread"),
        f"{fmean(alike):.3f}" if alike else "-",
    ]
    figures += [f"{fmean(row['ms']):.1f}", f"{fmean(row['kB']):.2f}"]
    return [f"{100 * fmean(row['accuracy']):.2f}{spread}", *figures]


def _mean(row: Row, name: str) -> str:
    """Of a figure that not every run has."""
    seen = [each for each in row.get(name, []) if each is not None]
    return f"{fmean(seen):.3f}" if seen else "not recorded"


def _compared(compared: Sequence[Comparison]) -> Iterator[str]:
    yield (
        f"| density | method | against | accuracy, percentage points ({CONFIDENCE:.0%} interval) |"
        " seeds | |"
    )
    yield "| --- | --- | --- | --- | --- | --- |"
    for each in compared:
        density = "all" if each.density is None else f"{each.density:g}"
        width = f" ± {each.half:.2f}" if each.half < math.inf else ""
        mean = f"{each.mean:+.2f}{width}" if each.values else "none"
        yield _line(
            density,
            each.method,
            each.against,
            mean,
            _seeds(each.values, each.planned, each.failed),
            each.verdict,
        )


def _seeds(there: Sequence[Any], planned: int, failed: int) -> str:
    return f"{len(there)} of {planned}" + (f", {failed} failed" if failed else "")


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _origin(rows: Sequence[Row]) -> Iterator[str]:
    """Which states of the code the runs are of: as many as the methods, each of which reads its
    own, have at most.
    """
    commits = sorted({commit for row in rows for commit in row["commits"]})
    read: dict[str, set[str]] = {}
    for row in rows:
        method = str(row["settings"].get("method", row["method"]))
        read.setdefault(method, set()).update(
            row["sources"] if "sources" in row else row["commits"]
        )
    count = max(map(len, read.values()), default=0)
    if count:
        names = ", ".join(
            dict.fromkeys(map(provenance.short if count > 1 else provenance.head, commits))
        )
        yield from ("", f"The runs are of {count} state{'s' * (count > 1)} of the code: {names}.")


def prepare(folder: Path) -> None:
    """Make the report's folder: what cannot be written shows before hours of runs. UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.check_folder(folder)
    except OSError as error:
        raise UsageError(f"cannot write the report to {folder}: {error.strerror}") from None


def write(rows: Sequence[Row], folder: Path) -> None:
    """study.md, study.json and study.png. UsageError where the folder cannot be written."""
    compared = [_plain(each) for each in comparisons(rows)]
    report = {"rows": list(rows), "comparisons": compared, "reported_by": machine.describe("numpy")}
    text = files.json_text(report, indent=1)
    prepare(folder)
    try:
        (folder / "study.md").write_text(
            "\n".join(["# What the methods reach", "", *lines(rows)]) + "\n", encoding="utf-8"
        )
        (folder / "study.json").write_text(text + "\n", encoding="utf-8")
        chart.draw(rows, folder / "study.png")
    except OSError as error:
        raise UsageError(f"cannot write the report to {folder}: {error.strerror}") from None


def _plain(each: Comparison) -> dict[str, Any]:
    names = (
        "workload",
        "density",
        "method",
        "against",
        "values",
        "failed",
        "mean",
        "half",
        "verdict",
    )
    return {name: getattr(each, name) for name in names}
