"""What the runs of a study reached, from their traces: a row for each workload, density and
method.
"""

from __future__ import annotations

import glob
import json
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.cli import UsageError
from dls.program import sources
from dls.record import files, reader
from dls.record.files import one_line
from dls.record.schema import Trace, TraceError
from dls.study.experiments import Cell, Experiment, is_complete
from dls.study.rows import RunResult, StudyRow

Known = Mapping[str, RunResult]
"""Results by the names of their runs."""
STATED = (
    "method",
    "density",
    "batch_size",
    "lr",
    "lr_schedule",
    "momentum",
    "clip_norm",
    "weight_decay",
    "model",
    "dataset",
    "steps",
)
"""The settings that a report states."""


def collect(
    experiments: Sequence[Experiment], out: Path, known: Known | None = None
) -> list[StudyRow]:
    """A row for each workload, density and method: its complete runs, planned ones, failed ones.

    known: results of runs that another machine may have made.
    """
    cells: dict[Cell, list[Experiment]] = {}
    for each in experiments:
        cells.setdefault(each.cell, []).append(each)
    return [_row(runs, out, known or {}) for runs in cells.values()]


def known(report: Path, experiments: Sequence[Experiment], out: Path) -> Known:
    """What a report's study.json says of these runs, by their names; nothing where there is none.

    UsageError where it cannot be read, or has runs of a cell with other settings or ranks.
    """
    file = report / "study.json"
    if not file.exists():
        return {}
    try:
        rows = {row.cell: row for row in read(file)}
        return dict(_known(experiments, rows, out))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UsageError(f"{file} is no report to add to: {files.reason(error)}") from None


def read(file: Path) -> list[StudyRow]:
    """The rows of a report's study.json. OSError, ValueError, KeyError, TypeError."""
    records = json.loads(file.read_text(encoding="utf-8"))["rows"]
    return [StudyRow.from_json(record) for record in records]


def _known(
    experiments: Sequence[Experiment], rows: Mapping[Cell, StudyRow], out: Path
) -> Iterator[tuple[str, RunResult]]:
    """The names and results of those runs that the rows have. ValueError for other settings."""
    for each in experiments:
        row = rows.get(each.cell)
        if row is None or each.seed not in row.seeds:
            continue
        if (row.settings, row.ranks) != (_stated(each, out), each.ranks):
            raise ValueError(f"its {each.name} was run with other settings")
        yield each.name, row.result(each.seed)


def _row(runs: Sequence[Experiment], out: Path, known: Known) -> StudyRow:
    """The row of a cell's runs."""
    first = runs[0]
    results = {each.seed: known[each.name] for each in runs if each.name in known}
    results |= {each.seed: result(each, out) for each in runs if is_complete(each, out)}
    failures = {each.seed: failure(each, out) for each in runs if each.seed not in results}
    reached = [results[seed] for seed in sorted(results)]
    return StudyRow(
        workload=first.workload,
        density=first.density,
        method=first.method,
        planned=len(runs),
        seeds=sorted(results),
        failed={seed: why for seed, why in failures.items() if why},
        accuracy=[each.accuracy for each in reached],
        loss=[each.loss for each in reached],
        step_ms=[each.step_ms for each in reached],
        sent_kb=[each.sent_kb for each in reached],
        overlap=[each.overlap for each in reached],
        spread=[each.spread for each in reached],
        k=[each.k for each in reached],
        commits=_sorted(each.commits for each in reached),
        sources=_sorted(each.sources for each in reached),
        machines=_sorted(each.machines for each in reached),
        ranks=first.ranks,
        settings=_stated(first, out),
        baselines=list(first.baselines),
        repeat=_repeat(first),
    )


def _sorted(lists: Iterable[Sequence[str]]) -> list[str]:
    """All that the lists hold, each once."""
    return sorted({each for some in lists for each in some})


def _repeat(run: Experiment) -> str:
    """The command that repeats a run, and those that differ from it in their seed."""
    pattern = f"{glob.escape(run.name.rpartition('seed')[0])}seed[0-9]*"
    return shlex.join(["python", "-m", "dls.study", str(run.file), f"--only={pattern}"])


def _stated(experiment: Experiment, out: Path) -> dict[str, Any]:
    """The values of the STATED settings."""
    config = experiment.config(out)
    return {name: getattr(config, name) for name in STATED}


def result(experiment: Experiment, out: Path) -> RunResult:
    """What a complete run reached. UsageError where its trace lacks that."""
    trace = _whole_trace(experiment, out / experiment.name)
    share, about = trace.diagnostics["global_share"], trace.header.attributes
    backend, hosts = about.get("backend", "unknown"), about.get("hosts", ["unknown"])
    return RunResult(
        accuracy=float(trace.evals["accuracy"][-1]),
        loss=float(trace.evals["loss"][-1]),
        step_ms=1000 * float(np.median(trace.steps["seconds/total"].max(axis=1))),
        sent_kb=float(trace.steps["payload_bytes"].mean()) / 1000,
        overlap=float(share.mean()) if len(share) else None,
        spread=spread(trace.steps["threshold"]),
        k=trace.steps["k"].mean(axis=(0, 1)).tolist(),
        commits=str(about.get("commit", "")).split() or [""],
        sources=[state.digest or state.commit for state in sources.states(about)],
        machines=[f"{backend} on {host}" for host in hosts],
    )


def spread(thresholds: NDArray[np.float64]) -> float | None:
    """How uneven thresholds (steps, ranks, L) are, see `RunResult`."""
    if not thresholds.size or (thresholds <= 0).any():
        return None
    return float(np.log(thresholds).std(axis=2).mean())


def _whole_trace(experiment: Experiment, folder: Path) -> Trace:
    """The run's trace.

    UsageError where it cannot be read, is of several numbers of ranks, or lacks the end.
    """
    try:
        parts = [reader.read(path) for path in reader.trace_files(folder)]
    except TraceError as error:
        raise UsageError(str(error)) from None
    if len(parts) > 1:
        raise UsageError(f"{folder} was run on several numbers of ranks; move it away")
    for part in parts:
        if len(part.steps["step"]) and part.evals["step"][-1:] == [experiment.config(folder).steps]:
            return part
    raise UsageError(f"{folder} lacks the end of its trace; move it away")


def failure(experiment: Experiment, out: Path) -> str:
    """Why a run that is not complete failed, in one line of its own; "" where it did not."""
    report = out / experiment.name / "failure.txt"
    if not report.exists():
        return ""
    words = report.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    return one_line(words) or "it did not say why"
