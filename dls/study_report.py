"""What a study found: accuracies with their spread, paired differences with confidence intervals, and a plain verdict for each.

All figures come from the traces of complete runs. A difference is that of two runs with the same seed, and so the same weights to
begin with and the same mini-batches; its interval is Student's, at 95 %, over the seeds.
"""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np

from dls import trace
from dls.config import UsageError
from dls.experiments import Experiment, is_complete
from dls.pictures import COLOURS, MARKERS, MISSING

Row = dict[str, Any]
CONFIDENCE = 0.95
BETTER, WORSE = "better", "worse"
BASELINES = ("layerwise-topk", "global-topk")
"""Those that the others are compared with: what DLS wants to beat, and what it wants to reach."""


def collect(experiments: Sequence[Experiment], out: Path) -> list[Row]:
    """A row for each workload, density and method: what its complete runs reached, and those that are planned."""
    groups: dict[tuple[str, float | None, str], list[Experiment]] = {}
    for each in experiments:
        groups.setdefault((each.workload, each.density, each.method), []).append(each)
    rows = []
    for (workload, density, method), runs in groups.items():
        results = {each.seed: found for each in runs if (found := result(each, out)) is not None}
        row: Row = {"workload": workload, "density": density, "method": method, "planned": len(runs), "seeds": sorted(results)}
        row |= {name: [results[seed][name] for seed in row["seeds"]] for name in ("accuracy", "loss", "ms", "kB", "overlap")}
        row["commits"] = sorted({found["commit"] for found in results.values()})
        row["repeat"] = shlex.join(["python", "-m", "dls.study", str(runs[0].file), f"--only={_prefix(runs[0])}"])
        rows.append(row)
    return rows


def _prefix(experiment: Experiment) -> str:
    return experiment.name.rpartition("seed")[0]


def result(experiment: Experiment, out: Path) -> Row | None:
    """What a complete run reached; None for one that is not. UsageError where its settings are others.

    accuracy, loss: of the test set, at the end; ms: the median step of the slowest rank; kB: what a rank sent in a step, on
    average; overlap: the share of Global Top-k's choice that was sent, averaged over ranks and the steps that were looked at,
    None where none was.
    """
    if not is_complete(experiment, out):
        return None
    try:
        found = trace.read(out / experiment.name / "trace.h5")
    except trace.TraceError as error:
        raise UsageError(str(error)) from None
    share = found.diagnostics["global_share"]
    return {
        "accuracy": float(found.evals["accuracy"][-1]),
        "loss": float(found.evals["loss"][-1]),
        "ms": 1000 * float(np.median(found.steps["seconds/total"].max(axis=1))),
        "kB": float(found.steps["payload_bytes"].mean()) / 1000,
        "overlap": float(share.mean()) if len(share) else None,
        "commit": str(found.header.attributes.get("commit", "")),
    }


# --- statistics ------------------------------------------------------------------------------


def t_quantile(p: float, freedom: int) -> float:
    """Student's t below which a share p ≥ 1/2 lies, by bisection on its integral. ValueError outside 1/2 ≤ p < 1, freedom ≥ 1."""
    if not (0.5 <= p < 1 and freedom >= 1):
        raise ValueError(f"no quantile {p} of Student's t with {freedom} degrees of freedom")
    low, high = 0.0, math.pi / 2
    while high - low > 1e-13:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < p else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _t_share(angle: float, freedom: int) -> float:
    """The share below t = √freedom · tan(angle): there the density is a power of the cosine, which sums exactly by parts."""
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = (cosine if freedom % 2 else 1.0), 0.0
    for j in range(2 if freedom % 2 else 1, freedom, 2):
        total += term
        term *= cosine * cosine * j / (j + 1)
    if freedom % 2:
        return 0.5 + (angle + sine * total) / math.pi
    return 0.5 + sine * total / 2


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of the confidence interval of a sample; the width is infinite where there are fewer than two."""
    if len(values) < 2:
        return fmean(values), math.inf
    return fmean(values), t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))


def differences(row: Row, other: Row) -> list[float]:
    """Accuracy of a row less that of another, seed by seed, in percentage points."""
    theirs = dict(zip(other["seeds"], other["accuracy"], strict=True))
    return [100 * (own - theirs[seed]) for seed, own in zip(row["seeds"], row["accuracy"], strict=True) if seed in theirs]


def verdict(values: Sequence[float]) -> str:
    """What the interval of the differences says."""
    mean, half = interval(values)
    if half == math.inf:
        return "too few seeds to tell"
    return BETTER if mean - half > 0 else WORSE if mean + half < 0 else "no difference to be told from chance"


def comparisons(rows: Sequence[Row]) -> Iterator[Row]:
    """Every row beside each baseline of its workload and density."""
    cells = {(row["workload"], row["density"], row["method"]): row for row in rows}
    for row in rows:
        for name in BASELINES:
            other = cells.get((row["workload"], row["density"], name))
            if other is None or other is row or row["method"] in BASELINES:
                continue
            if values := differences(row, other):
                mean, half = interval(values)
                place = {key: row[key] for key in ("workload", "density", "method")}
                yield place | {"against": name, "mean": mean, "half": half, "seeds": len(values), "verdict": verdict(values)}


# --- the report ------------------------------------------------------------------------------


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """The report, in Markdown."""
    complete, planned = sum(len(row["seeds"]) for row in rows), sum(row["planned"] for row in rows)
    yield f"{complete} of {planned} planned runs are complete."
    yield from findings(rows)
    for workload in dict.fromkeys(row["workload"] for row in rows):
        own = [row for row in rows if row["workload"] == workload]
        yield from ("", f"## {workload}", "")
        yield from _results(own)
        compared = list(comparisons(own))
        if compared:
            yield ""
            yield from _compared(compared)
    commits = sorted({commit for row in rows for commit in row["commits"]})
    if len(commits) > 1:
        states = ", ".join(commit[:12] or "unknown" for commit in commits)
        yield from ("", f"The runs are of {len(commits)} states of the code: {states}.")


def findings(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for each method and baseline: in how many of the cells with all seeds it is better, worse or neither."""
    planned = {(row["workload"], row["density"], row["method"]): row["planned"] for row in rows}
    whole = [row for row in comparisons(rows) if row["seeds"] == planned[row["workload"], row["density"], row["method"]]]
    for method, against in dict.fromkeys((row["method"], row["against"]) for row in whole):
        own = [row for row in whole if (row["method"], row["against"]) == (method, against)]
        told = Counter(row["verdict"] for row in own)
        least, most = min(own, key=_mean), max(own, key=_mean)
        yield ""
        yield (
            f"**{method} against {against}**: better in {told[BETTER]}, worse in {told[WORSE]} of {len(own)} cells "
            f"(workload and density) with all seeds, in the others not to be told apart. "
            f"{fmean(row['mean'] for row in own):+.2f} points on average, from {_cell(least)} to {_cell(most)}."
        )


def _mean(row: Row) -> float:
    return float(row["mean"])


def _cell(row: Row) -> str:
    return f"{row['mean']:+.2f} ({row['workload']}, {row['density']:g})"


def _results(rows: Sequence[Row]) -> Iterator[str]:
    yield "| density | method | test accuracy, % | overlap | ms a step | kB a step | seeds | repeat |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for row in rows:
        density = "1" if row["density"] is None else f"{row['density']:g}"
        seeds = f"{len(row['seeds'])} of {row['planned']}"
        yield _line(density, row["method"], *_figures(row), seeds, f"`{row['repeat']}`")


def _figures(row: Row) -> list[str]:
    """Accuracy, overlap, time and bytes, as far as there are any."""
    if not row["seeds"]:
        return ["not run yet", "", "", ""]
    spread = f" ± {100 * stdev(row['accuracy']):.2f}" if len(row["seeds"]) > 1 else ""
    seen = [share for share in row["overlap"] if share is not None]
    overlap = f"{fmean(seen):.3f}" if seen else "not recorded"
    return [f"{100 * fmean(row['accuracy']):.2f}{spread}", overlap, f"{fmean(row['ms']):.1f}", f"{fmean(row['kB']):.2f}"]


def _compared(compared: Sequence[Row]) -> Iterator[str]:
    yield f"| density | method | against | accuracy, percentage points ({CONFIDENCE:.0%} interval) | seeds | |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for row in compared:
        width = f" ± {row['half']:.2f}" if row["half"] < math.inf else ""
        mean = f"{row['mean']:+.2f}{width}"
        yield _line(f"{row['density']:g}", row["method"], row["against"], mean, str(row["seeds"]), row["verdict"])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def write(rows: Sequence[Row], folder: Path, title: str = "# What the methods reach") -> None:
    """study.md, study.json and study.png. UsageError where matplotlib is missing or the folder cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.md").write_text("\n".join([title, "", *lines(rows)]) + "\n", encoding="utf-8")
        report = {"rows": list(rows), "comparisons": [_plain(row) for row in comparisons(rows)]}
        (folder / "study.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        chart(rows, folder / "study.png")
    except OSError as error:
        raise UsageError(f"cannot write the report to {folder}: {error.strerror}") from None


def _plain(row: Row) -> Row:
    """JSON knows no infinity."""
    return row | {"half": row["half"] if row["half"] < math.inf else None}


def chart(rows: Sequence[Row], path: Path) -> None:
    """Accuracy over density, a panel for each workload; bars are standard deviations. UsageError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError(f"the chart {MISSING}") from None
    workloads = list(dict.fromkeys(row["workload"] for row in rows if row["seeds"]))
    figure = Figure(figsize=(5 * max(1, len(workloads)), 4), layout="constrained")
    for place, workload in enumerate(workloads, start=1):
        axes = figure.add_subplot(1, len(workloads), place, title=workload, xlabel="density", ylabel="test accuracy, %")
        _draw(axes, [row for row in rows if row["workload"] == workload and row["seeds"]])
    figure.savefig(path, dpi=150)


def _draw(axes: Any, rows: Sequence[Row]) -> None:
    """Methods side by side at each density; one without a density is a line across."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    styles: Mapping[str, Any] = {name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(methods)}
    for name in methods:
        own, (colour, marker) = [row for row in rows if row["method"] == name], styles[name]
        means = [100 * fmean(row["accuracy"]) for row in own]
        spread = [100 * stdev(row["accuracy"]) if len(row["accuracy"]) > 1 else 0.0 for row in own]
        if own[0]["density"] is None:
            axes.axhline(means[0], color=colour, linestyle="--", label=name)
            continue
        shift = 1.06 ** (methods.index(name) - len(methods) / 2)
        x = [row["density"] * shift for row in own]
        axes.errorbar(x, means, spread, color=colour, marker=marker, capsize=3, linestyle=":", label=name)
    axes.set_xscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
