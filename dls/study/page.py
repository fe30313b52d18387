"""The report of a study as a page in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from dls.study import provenance
from dls.study.findings import CONFIDENCE, Comparison, comparisons, split
from dls.study.rows import StudyRow
from dls.study.sentences import sentences
from dls.tools import numbers
from dls.tools.tables import markdown_head, markdown_line

TITLE = "# What the methods reach"
"""The first line of the page."""
HOW = (
    "`±` after an accuracy is the standard deviation over the seeds.",
    f"A difference is that of two runs with the same seed, with its {CONFIDENCE:.0%} interval by"
    ' Student\'s t over the seeds; "all" is the mean over the densities, seed by seed.',
    "overlap: of the values that Global Top-k would have chosen, the share that was also sent,"
    " averaged over ranks and the steps in which it was measured. Global Top-k chooses from the"
    " run's own accumulated gradient, in which whatever a method neglects grows.",
    "spread: how uneven the layers' thresholds are, that is the standard deviation of their natural"
    " logarithms, averaged over ranks and steps; 0 is one threshold for all layers.",
    "split: the share of K that the layers get as in GOAL's own run of the same seed, averaged over"
    " ranks and steps.",
    "kB a step: what a rank sends.",
    "ms a step: the median step of the slowest rank. Each run was measured at its own time, beside"
    " whatever else the machine did, so these figures do not rank the methods.",
)
"""How the tables are read; GOAL stands for the last baseline."""
COLUMNS = (
    "density",
    "method",
    "test accuracy, %",
    "test loss",
    "overlap",
    "spread",
    "split",
    "ms a step",
    "kB a step",
    "seeds",
    "repeat",
)
"""The heads of a workload's table of results."""


def page(rows: Sequence[StudyRow]) -> str:
    """The whole page."""
    return "\n".join([TITLE, "", *lines(rows)]) + "\n"


def lines(rows: Sequence[StudyRow]) -> Iterator[str]:
    """The lines of the page below its title."""
    compared = comparisons(rows)
    baselines = list(dict.fromkeys(name for row in rows for name in row.baselines))
    goals = " or ".join(dict.fromkeys(row.goal for row in rows))
    yield from _progress(rows)
    yield from ("", "## Findings", "", *sentences(compared, baselines), "")
    yield from ("## How to read the tables", "")
    yield from (f"- {sentence.replace('GOAL', goals)}" for sentence in HOW)
    for workload in dict.fromkeys(row.workload for row in rows):
        own = [row for row in rows if row.workload == workload]
        yield from ("", f"## {workload}", "", _about(own), "")
        yield from _results(own)
        if differences := [each for each in compared if each.workload == workload]:
            yield ""
            yield from _differences(differences)
    yield from origin(rows)


def _progress(rows: Sequence[StudyRow]) -> Iterator[str]:
    """How many runs are complete, and which failed."""
    complete, planned = sum(len(row.seeds) for row in rows), sum(row.planned for row in rows)
    interim = " Verdicts on fewer seeds than planned are interim." if complete < planned else ""
    yield f"{complete} of {planned} planned runs are complete.{interim}"
    for row in rows:
        name = f"{row.workload}, {row.method} at density {_density(row)}"
        for seed, why in row.failed.items():
            yield f"- {name}, seed {seed}, failed: {why}"


def _about(rows: Sequence[StudyRow]) -> str:
    """The settings of a workload's runs; for those in which runs differ, all values."""

    def value(name: str, form: str = "") -> str:
        values = dict.fromkeys(row.settings[name] for row in rows)
        return " or ".join(format(each, form) for each in values)

    used = [
        name for name in ("clip_norm", "weight_decay") if any(row.settings[name] for row in rows)
    ]
    parts = [
        f"{value('model')} on {value('dataset')}: {rows[0].ranks} ranks of {value('batch_size')}"
        " images",
        f"{value('steps')} steps",
        f"learning rate {value('lr', 'g')} ({value('lr_schedule')} schedule)",
        f"momentum {value('momentum', 'g')}",
        *(f"{name.replace('_', ' ')} {value(name, 'g')}" for name in used),
    ]
    machines = ", ".join(sorted({machine for row in rows for machine in row.machines}))
    return ", ".join(parts) + (f"; {machines}." if machines else ".")


def _results(rows: Sequence[StudyRow]) -> Iterator[str]:
    """A table of what each cell reached."""
    yield from markdown_head(*COLUMNS)
    of_goal = {row.density: row for row in rows if row.method == rows[0].goal}
    for row in rows:
        figures = _figures(row, of_goal.get(row.density))
        seeds = _seeds(row.seeds, row.planned, len(row.failed))
        yield markdown_line(_density(row), row.method, *figures, seeds, f"`{row.repeat}`")


def _density(row: StudyRow) -> str:
    return f"{row.settings['density']:g}"


def _figures(row: StudyRow, of_goal: StudyRow | None) -> list[str]:
    """Accuracy, loss, overlap, spread, split, time and bytes, as far as there are any.

    of_goal: the goal's row at the same density.
    """
    if not row.seeds:
        return ["none" if row.failed else "not run yet", *[""] * 6]
    alike = split(row, of_goal) if of_goal else []
    return [
        numbers.percent(row.accuracy),
        f"{fmean(row.loss):.3f}",
        _mean(row.overlap),
        _mean(row.spread),
        f"{fmean(alike):.3f}" if alike else numbers.MISSING,
        f"{fmean(row.step_ms):.1f}",
        f"{fmean(row.sent_kb):.2f}",
    ]


def _mean(values: Sequence[float | None]) -> str:
    """The mean of a figure that not every run has."""
    known = [value for value in values if value is not None]
    return f"{fmean(known):.3f}" if known else "not recorded"


def _differences(compared: Sequence[Comparison]) -> Iterator[str]:
    """A table of the comparisons."""
    difference = f"accuracy, percentage points ({CONFIDENCE:.0%} interval)"
    yield f"| density | method | against | {difference} | seeds | |"
    yield markdown_line(*["---"] * 6)
    for each in compared:
        density = "all" if each.density is None else f"{each.density:g}"
        width = each.half if each.half < math.inf else None
        mean = numbers.plus_minus(each.mean, width, "+.2f") if each.values else "none"
        seeds = _seeds(each.values, each.planned, each.failed)
        yield markdown_line(density, each.method, each.against, mean, seeds, each.verdict)


def _seeds(complete: Sequence[Any], planned: int, failed: int) -> str:
    return f"{len(complete)} of {planned}" + (f", {failed} failed" if failed else "")


def origin(rows: Sequence[StudyRow]) -> Iterator[str]:
    """How many states of the code the runs are of, and which.

    Each method reads files of its own, so there are as many states as one method has at most.
    """
    commits = sorted({commit for row in rows for commit in row.commits})
    states: dict[str, set[str]] = {}
    for row in rows:
        method = str(row.settings.get("method", row.method))
        states.setdefault(method, set()).update(row.sources)
    count = max(map(len, states.values()), default=0)
    if count:
        shown = map(provenance.short if count > 1 else provenance.head, commits)
        names = ", ".join(dict.fromkeys(shown))
        noun = "states" if count > 1 else "state"
        yield from ("", f"The runs are of {count} {noun} of the code: {names}.")
