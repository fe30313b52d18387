"""What the runs of a study reached, from their traces: a row for each workload, density and method."""

from __future__ import annotations

import glob
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dls import sources, trace
from dls.config import UsageError
from dls.files import one_line
from dls.study.experiments import BASELINES, Cell, Experiment, is_complete

Row = dict[str, Any]
FIGURES = ("accuracy", "loss", "ms", "kB", "overlap", "k")
"""What a row lists, seed by seed."""
STATED = (
    *("method", "density", "batch_size", "lr", "lr_schedule", "momentum", "clip_norm", "weight_decay"),
    *("model", "dataset", "steps"),
)
"""Settings that a report states."""


def collect(experiments: Sequence[Experiment], out: Path) -> list[Row]:
    """A row for each workload, density and method: what its complete runs reached, those planned, and those that failed."""
    groups: dict[Cell, list[Experiment]] = {}
    for each in experiments:
        groups.setdefault(each.cell, []).append(each)
    return [_row(runs, out) for runs in groups.values()]


def baselines(rows: Sequence[Row]) -> list[str]:
    """The methods that the others of a workload are compared with, in order; rows of before there was a choice name none."""
    return list(rows[0].get("baselines", BASELINES))


def cell(row: Row) -> Cell:
    """Which runs the row is of."""
    return row["workload"], row["density"], row["method"]


def _row(runs: Sequence[Experiment], out: Path) -> Row:
    first = runs[0]
    results = {each.seed: result(each, out) for each in runs if is_complete(each, out)}
    failures = {each.seed: failure(each, out) for each in runs if each.seed not in results}
    row: Row = {"workload": first.workload, "density": first.density, "method": first.method, "planned": len(runs)}
    row |= {"seeds": sorted(results), "failed": {seed: why for seed, why in failures.items() if why}}
    row |= {name: [results[seed][name] for seed in row["seeds"]] for name in FIGURES}
    row["commits"] = sorted({commit for found in results.values() for commit in found["commits"]})
    row["sources"] = sorted({state for found in results.values() for state in found["sources"]})
    row["places"] = sorted({place for found in results.values() for place in found["places"]})
    row["ranks"], row["settings"], row["baselines"] = first.ranks, _stated(first, out), list(first.baselines)
    pattern = f"{glob.escape(first.name.rpartition('seed')[0])}seed[0-9]*"
    row["repeat"] = shlex.join(["python", "-m", "dls.study", str(first.file), f"--only={pattern}"])
    return row


def _stated(experiment: Experiment, out: Path) -> Row:
    config = experiment.config(out)
    return {name: getattr(config, name) for name in STATED}


def result(experiment: Experiment, out: Path) -> Row:
    """What a complete run reached. UsageError where its trace lacks that.

    accuracy, loss: of the test set, at the end; ms: the median step of the slowest rank; kB: what a rank sent in a step, on
    average; overlap: the share of Global Top-k's choice that was sent, averaged over ranks and the steps that were looked at,
    None where none was; k: what each layer sent in a step, averaged over ranks and steps.
    """
    found = _whole_trace(experiment, out / experiment.name)
    share, about = found.diagnostics["global_share"], found.header.attributes
    return {
        "accuracy": float(found.evals["accuracy"][-1]),
        "loss": float(found.evals["loss"][-1]),
        "ms": 1000 * float(np.median(found.steps["seconds/total"].max(axis=1))),
        "kB": float(found.steps["payload_bytes"].mean()) / 1000,
        "overlap": float(share.mean()) if len(share) else None,
        "k": found.steps["k"].mean(axis=(0, 1)).tolist(),
        "commits": str(about.get("commit", "")).split() or [""],
        "sources": [state.digest or state.commit for state in sources.states(about)],
        "places": [f"{about.get('backend', 'unknown')} on {host}" for host in about.get("hosts", ["unknown"])],
    }


def _whole_trace(experiment: Experiment, folder: Path) -> trace.Trace:
    """UsageError where it cannot be read, is of several numbers of ranks, or does not reach the end."""
    try:
        parts = [trace.read(path) for path in trace.series(folder)]
    except trace.TraceError as error:
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
    return one_line(report.read_text(encoding="utf-8", errors="replace").partition("\n")[0]) or "it left no words"
