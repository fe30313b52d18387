"""What the runs of a study reached, from their traces: a row for each workload, density and
method.
"""

from __future__ import annotations

import glob
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.cli import UsageError
from dls.program import sources
from dls.record import files, reader
from dls.record.files import one_line
from dls.record.schema import Trace, TraceError
from dls.study.experiments import BASELINES, Cell, Experiment, is_complete

Row = dict[str, Any]
FIGURES = ("accuracy", "loss", "ms", "kB", "overlap", "spread", "k")
"""What a row lists, seed by seed."""
ORIGINS = ("commits", "sources", "places")
"""What a row says of all its runs together: where and with which code they were made."""
Known = Mapping[str, Row]
"""Results by the names of their runs."""
STATED = (
    *(
        "method",
        "density",
        "batch_size",
        "lr",
        "lr_schedule",
        "momentum",
        "clip_norm",
        "weight_decay",
    ),
    *("model", "dataset", "steps"),
)
"""Settings that a report states."""


def collect(experiments: Sequence[Experiment], out: Path, known: Known | None = None) -> list[Row]:
    """A row for each workload, density and method: what its complete runs reached, those planned,
    and those that failed.

    `known`: results of runs that another machine may have made.
    """
    groups: dict[Cell, list[Experiment]] = {}
    for each in experiments:
        groups.setdefault(each.cell, []).append(each)
    return [_row(runs, out, known or {}) for runs in groups.values()]


def known(report: Path, experiments: Sequence[Experiment], out: Path) -> Known:
    """What a report's study.json says of these runs, by their names; nothing where there is none.

    UsageError where it cannot be read, or has runs of a cell with other settings or ranks.
    """
    file = report / "study.json"
    if not file.exists():
        return {}
    try:
        rows = {cell(row): row for row in json.loads(file.read_text(encoding="utf-8"))["rows"]}
        return {
            each.name: found
            for each in experiments
            for found in _known(each, rows.get(each.cell), out)
        }
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise UsageError(f"{file} is no report to add to: {files.reason(error)}") from None


def _known(experiment: Experiment, row: Row | None, out: Path) -> Iterator[Row]:
    """The run's result, where its row has it."""
    if row is None or experiment.seed not in row["seeds"]:
        return
    if (row["settings"], row["ranks"]) != (_stated(experiment, out), experiment.ranks):
        raise ValueError(f"its {experiment.name} was run with other settings")
    place = row["seeds"].index(experiment.seed)
    yield {name: row[name][place] if name in row else None for name in FIGURES} | {
        name: row[name] for name in ORIGINS
    }


def baselines(rows: Sequence[Row]) -> list[str]:
    """The methods that the others of a workload are compared with, in order; rows of before there
    was a choice name none.
    """
    return list(rows[0].get("baselines", BASELINES))


def cell(row: Row) -> Cell:
    """Which runs the row is of."""
    return row["workload"], row["density"], row["method"]


def _row(runs: Sequence[Experiment], out: Path, known: Known) -> Row:
    first = runs[0]
    results = {each.seed: known[each.name] for each in runs if each.name in known}
    results |= {each.seed: result(each, out) for each in runs if is_complete(each, out)}
    failures = {each.seed: failure(each, out) for each in runs if each.seed not in results}
    row: Row = {
        "workload": first.workload,
        "density": first.density,
        "method": first.method,
        "planned": len(runs),
    }
    row |= {
        "seeds": sorted(results),
        "failed": {seed: why for seed, why in failures.items() if why},
    }
    row |= {name: [results[seed][name] for seed in row["seeds"]] for name in FIGURES}
    row |= {
        name: sorted({each for found in results.values() for each in found[name]})
        for name in ORIGINS
    }
    row["ranks"], row["settings"], row["baselines"] = (
        first.ranks,
        _stated(first, out),
        list(first.baselines),
    )
    pattern = f"{glob.escape(first.name.rpartition('seed')[0])}seed[0-9]*"
    row["repeat"] = shlex.join(["python", "-m", "dls.study", str(first.file), f"--only={pattern}"])
    return row


def _stated(experiment: Experiment, out: Path) -> Row:
    config = experiment.config(out)
    return {name: getattr(config, name) for name in STATED}


def result(experiment: Experiment, out: Path) -> Row:
    """What a complete run reached. UsageError where its trace lacks that.

    accuracy, loss: of the test set, at the end; ms: the median step of the slowest rank; kB: what a
    rank sent in a step, on average; overlap: the share of Global Top-k's choice that was sent,
    averaged over ranks and the steps that were looked at, None where none was; spread: the standard
    deviation over the layers of the threshold's logarithm, averaged over ranks and steps, None
    where a threshold is 0; k: what each layer sent in a step, averaged over ranks and steps.
    """
    found = _whole_trace(experiment, out / experiment.name)
    share, about = found.diagnostics["global_share"], found.header.attributes
    return {
        "accuracy": float(found.evals["accuracy"][-1]),
        "loss": float(found.evals["loss"][-1]),
        "ms": 1000 * float(np.median(found.steps["seconds/total"].max(axis=1))),
        "kB": float(found.steps["payload_bytes"].mean()) / 1000,
        "overlap": float(share.mean()) if len(share) else None,
        "spread": spread(found.steps["threshold"]),
        "k": found.steps["k"].mean(axis=(0, 1)).tolist(),
        "commits": str(about.get("commit", "")).split() or [""],
        "sources": [state.digest or state.commit for state in sources.states(about)],
        "places": [
            f"{about.get('backend', 'unknown')} on {host}"
            for host in about.get("hosts", ["unknown"])
        ],
    }


def spread(thresholds: NDArray[np.float64]) -> float | None:
    """How uneven thresholds (steps, ranks, L) are: see `result`."""
    return (
        float(np.log(thresholds).std(axis=2).mean())
        if thresholds.size and (thresholds > 0).all()
        else None
    )


def _whole_trace(experiment: Experiment, folder: Path) -> Trace:
    """UsageError where it cannot be read, is of several numbers of ranks, or does not reach the
    end.
    """
    try:
        parts = [reader.read(path) for path in reader.series(folder)]
    except TraceError as error:
        raise UsageError(str(error)) from None
    if len(parts) > 1:
        raise UsageError(f"{folder} was run on several numbers of ranks; move it away")
    for part in parts:
        if len(part.steps["step"]) and part.evals["step"][-1:] == [experiment.config(folder).steps]:
            return part
    raise UsageError(f"{folder} lacks the end of its trace; move it away")


def failure(experiment: Experiment, out: Path) -> str:
    """Why a run that is not complete failed, in its own first line; empty where it did not."""
    report = out / experiment.name / "failure.txt"
    if not report.exists():
        return ""
    return (
        one_line(report.read_text(encoding="utf-8", errors="replace").partition("\n")[0])
        or "it left no words"
    )
