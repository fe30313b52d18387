"""What runs come to: the traces of a run joined, the figures that sum it up, and runs that differ only in their seed."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls import timeline, trace
from dls.trace import Trace, TraceError

POINTS, MAX_WINDOW, DRAWN = 8, 50, 400
"""Rows of the table over time; most recorded steps that a smoothed value looks back; most points of a curve that is drawn."""
LARGEST = 1e60
"""No run records anything as large: squares of float32 values, summed, stay below."""

COMPARED = (  # rows of the comparison
    *("method", "density", "ranks", "steps", "accuracy", "test_loss", "train_loss"),
    *("set_size", "threshold_ratio", "global_share", "bytes_per_step", "share_of_dense"),
    *("total_ms", "exposed_ms", "hidden_share"),
)
SHOWN_ENDS = ("first threshold", "last threshold", "first residual", "last residual")
FORMATS = (  # how the numbers of that name, or below that head, are written
    dict.fromkeys(("step", "size", "rank 0", "bytes_per_step", "sent", "dense"), ",.0f")
    | dict.fromkeys(("first k", "last k"), ",.1f")
    | dict.fromkeys(("set_size", "threshold_ratio", "compression", *SHOWN_ENDS), ".4g")
    | dict.fromkeys(("loss", "train_loss", "test_loss"), ".4f")
    | dict.fromkeys(("accuracy", "best_accuracy", "share_of_dense", "global_share", "hidden_share"), ".2%")
    | {"k/n": ".3%", "ms": ".3f", "total_ms": ".3f", "exposed_ms": ".3f", "share": ".1%"}
)

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Series:
    """A run's traces joined, T recorded steps, ranks reduced to their mean.

    run: see dls.inspect; layers: name, kind, size, … [L]; evals: step, loss, accuracy [E];
    steps: step, loss, payload_bytes, set_size, threshold_ratio, residual, warm, seconds/PHASE [T], k, k_rank0, threshold,
    residual_norm [T, L]; diagnostics: step, global_share, hidden_share [D]; closest: the last step that was looked at closely.
    """

    run: Mapping[str, Any]
    layers: Mapping[str, Sequence[Any]]
    steps: Columns
    evals: Columns
    diagnostics: Columns
    closest: Closest | None


@dataclass(frozen=True)
class Closest:
    """The timeline of one step: begin and end of each phase [P, L, phases], in seconds since the step began."""

    step: int
    begin: NDArray[np.float64]
    end: NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """All there is to say about a run; dls.inspect names the keys."""

    run: Mapping[str, Any]
    recorded: int
    window: int
    final: Mapping[str, float | None]
    curve: Mapping[str, Sequence[Any]]
    layers: Mapping[str, Sequence[Any]]
    traffic: Mapping[str, float]
    timing: Mapping[str, Any]


def load(path: Path) -> Series:
    """Read a run's folder, or one trace file. TraceError."""
    return join(path, [_plausible(trace.read(file)) for file in files_of(path)])


def _plausible(found: Trace) -> Trace:
    """The trace with NaN, as what was not recorded, where a number of a file from anywhere is infinite or beyond all measure."""
    return replace(found, steps=_bounded(found.steps), evals=_bounded(found.evals), diagnostics=_bounded(found.diagnostics))


def _bounded(columns: Columns) -> Columns:
    wild = {name: np.abs(column) > LARGEST for name, column in columns.items() if column.dtype.kind == "f"}
    return {**columns, **{name: np.where(where, np.nan, columns[name]) for name, where in wild.items() if where.any()}}


def files_of(path: Path) -> list[Path]:
    """The traces of a run's folder, or the one file. TraceError."""
    files = trace.series(path) if path.is_dir() else [path]
    if not files:
        raise TraceError(f"{path} holds no trace.h5; give the folder of a run")
    return files


def join(path: Path, traces: Sequence[Trace]) -> Series:
    """One run from its traces; rows that a later trace took again are left out. TraceError where the models differ."""
    parts = sorted(traces, key=_first_step)
    layers = parts[0].header.layers
    if any(list(part.header.layers["size"]) != list(layers["size"]) for part in parts):
        raise TraceError(f"{path}: its traces are of different models")
    ends = [*(_first_step(part) for part in parts[1:]), math.inf]
    steps = _joined([reduce_ranks(part.steps) for part in parts], ends)
    evals = _joined([part.evals for part in parts], ends)
    shares = [{name: part.diagnostics[name] for name in ("step", "global_share")} for part in parts]
    shares = [share | {"global_share": share["global_share"].mean(axis=1)} for share in shares]
    shares = [share | {"hidden_share": hidden_share(part).mean(axis=1)} for share, part in zip(shares, parts, strict=True)]
    return Series(_about(path, parts, steps["step"]), layers, steps, evals, _joined(shares, ends), _closest(parts))


def _closest(parts: Sequence[Trace]) -> Closest | None:
    looked = [part.diagnostics for part in parts if len(part.diagnostics["step"])]
    return Closest(*(looked[-1][name][-1] for name in ("step", "begin", "end"))) if looked else None


def hidden_share(part: Trace) -> NDArray[np.float64]:
    """Of the time that a rank's messages were under way, the share in which it did not stand waiting: [D, P].

    NaN where a step that was looked at was not recorded as well, or sent nothing.
    """
    exchange, looked = timeline.PHASES.index("exchange"), part.diagnostics
    under_way = _covered(*(looked[name][..., exchange] for name in ("begin", "end")))
    recorded, steps = np.isin(looked["step"], part.steps["step"]), part.steps["step"]
    waited = np.full(under_way.shape, np.nan)
    waited[recorded] = part.steps["seconds/exposed"][np.searchsorted(steps, looked["step"][recorded])]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(under_way > 0, np.clip(1 - waited / under_way, 0, 1), np.nan)


def _covered(begin: NDArray[np.float64], end: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much time the intervals of the last axis cover together; NaN is none."""
    order = begin.argsort(axis=-1)  # NaN last
    begin, end = (np.take_along_axis(each, order, axis=-1) for each in (begin, end))
    before = np.roll(np.fmax.accumulate(end, axis=-1), 1, axis=-1)
    before[..., 0] = -np.inf
    covered: NDArray[np.float64] = np.nansum(np.maximum(end - np.fmax(begin, before), 0), axis=-1)
    return covered


def _first_step(part: Trace) -> float:
    return float(part.steps["step"][0]) if len(part.steps["step"]) else math.inf


def _joined(parts: Sequence[Columns], ends: Sequence[float]) -> Columns:
    """The rows of each part that come before its end."""
    kept = [part["step"] < end for part, end in zip(parts, ends, strict=True)]
    cut = [{name: column[rows] for name, column in part.items()} for part, rows in zip(parts, kept, strict=True)]
    return {name: np.concatenate([part[name] for part in cut]) for name in cut[0]}


def reduce_ranks(steps: Columns) -> Columns:
    """The steps of a Series from those of one trace."""
    low, high = steps["threshold"].min(axis=2), steps["threshold"].max(axis=2)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = high / low
    own = {"step": steps["step"], "k_rank0": steps["k"][:, 0], "warm": np.arange(len(low)) >= min(1, len(low) - 1)}
    per_rank = {name: column for name, column in steps.items() if name not in ("step", "epoch", "lr")}
    per_rank |= {"set_size": high - low, "threshold_ratio": ratio}
    per_rank |= {"residual": np.sqrt((steps["residual_norm"] ** 2).sum(axis=2))}
    return own | {name: column.mean(axis=1) for name, column in per_rank.items()}


def _about(path: Path, parts: Sequence[Trace], steps: NDArray[Any]) -> dict[str, Any]:
    """What the run was, None where its traces do not say: of a resumed run its last settings, and when it started."""
    attributes = parts[-1].header.attributes
    try:
        config = tomllib.loads(str(attributes.get("config", "")))
    except tomllib.TOMLDecodeError as error:
        raise TraceError(f"{parts[-1].path}: its configuration is not valid TOML: {error}") from None
    names = ("method", "density", "dls_steps", "model", "dataset", "backend", "lr", "seed")
    about = {"path": str(path)} | {name: config.get(name) for name in names}
    about |= {"density": None} if about["method"] == "dense" else {}
    about |= {"dls_steps": None} if about["method"] != "dls" else {}
    return about | {
        "ranks": [part.steps["loss"].shape[1] for part in parts],
        "steps": int(steps[-1]) if len(steps) else 0,
        "hosts": [str(host) for host in attributes.get("hosts", ())],
        "version": attributes.get("version"),
        "commit": attributes.get("commit"),
        "started": parts[0].header.attributes.get("started"),
        "config": config,
    }


def summarise(series: Series) -> Summary:
    """The figures of a run."""
    steps, recorded = series.steps, len(series.steps["step"])
    at = np.unique(np.linspace(0, recorded - 1, POINTS).round().astype(int)) if recorded else np.zeros(0, int)
    curve = {"step": steps["step"][at].tolist(), "loss": smooth(steps["loss"], at).tolist()}
    curve |= {"accuracy": _latest(series.evals, "accuracy", curve["step"])}
    curve |= {name: smooth(steps[name], at).tolist() for name in ("set_size", "threshold_ratio")}
    curve |= {"global_share": _latest(series.diagnostics, "global_share", curve["step"])}
    final = {"train_loss": curve["loss"][-1] if recorded else None, **_last_and_best(series.evals)}
    traffic, timing = (_traffic(series), _timing(series)) if recorded else ({}, {})
    return Summary(series.run, recorded, window_of(recorded), final, curve, _layers(series), traffic, timing)


def _latest(columns: Columns, name: str, steps: Sequence[int]) -> list[float | None]:
    """The last value so far, at each of these steps."""
    return [columns[name][i - 1].item() if i else None for i in np.searchsorted(columns["step"], steps, side="right")]


def window_of(recorded: int) -> int:
    """How many recorded steps a smoothed mean looks back."""
    return max(1, min(MAX_WINDOW, recorded // 20))


def smooth(values: NDArray[Any], at: NDArray[Any] | None = None) -> NDArray[np.float64]:
    """For each row number in `at`, or for all, the mean of that row and of those before it in the window, NaN left out."""
    window, rows = window_of(len(values)), range(len(values)) if at is None else at
    recent = (values[max(0, i + 1 - window) : i + 1] for i in rows)
    known = (part[~np.isnan(part)] for part in recent)
    return np.array([part.mean() if part.size else np.nan for part in known], dtype=np.float64)


def _last_and_best(evals: Columns) -> Mapping[str, float | None]:
    if not len(evals["step"]):
        return dict.fromkeys(("test_loss", "accuracy", "best_accuracy", "best_step"))
    best = int(evals["accuracy"].argmax())
    last = {"test_loss": float(evals["loss"][-1]), "accuracy": float(evals["accuracy"][-1])}
    return last | {"best_accuracy": float(evals["accuracy"][best]), "best_step": int(evals["step"][best])}


def _layers(series: Series) -> dict[str, list[Any]]:
    sizes = np.array(series.layers["size"])
    layers = {"name": list(series.layers["name"]), "kind": list(series.layers["kind"]), "size": sizes.tolist()}
    for end, row in (("first", 0), ("last", -1)) if len(series.steps["k"]) else ():
        layers |= {f"{name}_{end}": series.steps[name][row].tolist() for name in ("k", "k_rank0")}
        layers[f"ratio_{end}"] = (series.steps["k"][row] / sizes).tolist()
        layers |= {f"{name}_{end}": series.steps[name][row].tolist() for name in ("threshold", "residual_norm")}
    return layers


def _traffic(series: Series) -> dict[str, float]:
    sent, values = series.steps["payload_bytes"], int(sum(series.layers["size"]))
    mean, dense = float(sent.mean()), 4 * values
    return {
        "bytes_per_step": mean,
        "dense_bytes_per_step": dense,
        "share_of_dense": mean / dense,
        "total_bytes": float(sent.sum()),
        "dense_total_bytes": dense * len(sent),
        "compression": dense / mean if mean else math.inf,
        "uploaded_share": float(series.steps["k"].sum(axis=1).mean()) / values,
    }


def _timing(series: Series) -> dict[str, Any]:
    steps, warm = series.steps, series.steps["warm"]
    hidden = series.diagnostics["hidden_share"]
    hidden = hidden[~np.isnan(hidden)]
    seconds = {name: float(steps[f"seconds/{name}"][warm].mean()) for name in trace.SECONDS}
    total = seconds.pop("total")
    seconds |= {"other": total - sum(seconds.values()), "total": total}
    share = {name: value / total if total else math.nan for name, value in seconds.items()}
    known = {"hidden_share": float(hidden.mean()) if len(hidden) else None}
    return {"steps": int(warm.sum()), "seconds": seconds, "share": share, **known}


def to_json(summaries: Sequence[Summary]) -> str:
    """One JSON object, as dls.inspect describes it; null for the numbers that JSON does not have."""
    text = json.dumps({"runs": [asdict(each) for each in summaries]}, default=str)
    return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2, allow_nan=False)


def labels(paths: Sequence[str]) -> list[str]:
    """Short names of runs: their folders' names, or their paths where names are equal."""
    folders = [Path(path).resolve() for path in paths]
    names = [folder.parent.name if folder.suffix == ".h5" else folder.name for folder in folders]
    return names if len(set(names)) == len(names) else list(paths)


def single_figures(summary: Summary) -> dict[str, Any]:
    """By name, what has one value; of the lists over time their last."""
    last = {name: values[-1] for name, values in summary.curve.items() if values}
    ms = {f"{name}_ms": 1e3 * seconds for name, seconds in summary.timing.get("seconds", {}).items()}
    hidden = {"hidden_share": summary.timing.get("hidden_share")}
    return {**last, **summary.run, **summary.final, **summary.traffic, **ms, **hidden}


def written(name: str, value: Any) -> str:
    """A figure of that name, or below that head, as people read it; - where there is none."""
    if isinstance(value, list | dict):
        return ", ".join(map(str, value))
    if value is None or value == "" or value != value:
        return "-"
    return "inf" if value == math.inf else format(value, "" if isinstance(value, str) else FORMATS.get(name, ""))


def written_pair(name: str, value: Any) -> str:
    """A figure, or a mean and its standard deviation, as people read it."""
    if not isinstance(value, tuple):
        return written(name, value)
    mean, sd = (written(name, number) for number in value)
    return f"{mean} ± {sd}"


# --- runs that differ only in their seed -----------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """Mean over the runs of a group and their standard deviation, at steps that all of them have: [T], [T, …], [T, …]."""

    step: NDArray[np.int64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed; a run alone is a group, too."""

    label: str
    runs: Sequence[Series]

    def curve(self, table: str, name: str, smoothed: bool = False) -> Curve:
        """A column of `steps`, `evals` or `diagnostics`, at no more than DRAWN steps. `smoothed`: those of one number a step."""
        tables: list[Columns] = [getattr(run, table) for run in self.runs]
        steps = reduce(np.intersect1d, [each["step"] for each in tables])
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, DRAWN).round().astype(int))] if len(steps) else steps
        values = []
        for each in tables:
            at = np.searchsorted(each["step"], steps)
            values.append(smooth(each[name], at) if smoothed else np.asarray(each[name][at], dtype=np.float64))
        return Curve(steps, *mean_and_sd(np.array(values)))


def mean_and_sd(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Over the first axis: the mean, and the standard deviation of a sample (n - 1), 0 for a single one."""
    with np.errstate(invalid="ignore"):  # of what is infinite
        mean = values.mean(axis=0)
        return mean, values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)


def groups(runs: Sequence[Series]) -> list[Group]:
    """Runs put together, in the order of their first ones. Two of the same seed are no group: they are the same run twice."""
    found: list[list[tuple[Series, str]]] = []
    for run, label in zip(runs, labels([run.run["path"] for run in runs]), strict=True):
        fitting = (group for group in found if all(_differ_in_seed(run, other) for other, _ in group))
        group = next(fitting, None)
        if group is None:
            found.append([(run, label)])
        else:
            group.append((run, label))
    named = [_group_label([label for _, label in group]) for group in found]
    return [Group(name, [run for run, _ in group]) for name, group in zip(_unlike(named), found, strict=True)]


def _differ_in_seed(one: Series, two: Series) -> bool:
    """Whether they do in nothing else. Runs that do not say what they were may differ in anything, and one must have begun."""
    known = all(run.run["config"] and len(run.steps["step"]) for run in (one, two))
    return known and _identity(one) == _identity(two) and one.run["seed"] != two.run["seed"]


def _identity(run: Series) -> tuple[Any, ...]:
    """All that tells what a run was, but its seed, its folder and where and when it ran."""
    settings = {name: value for name, value in run.run["config"].items() if name not in ("seed", "out")}
    return settings, [*run.layers["size"]], *(run.run[name] for name in ("ranks", "version", "commit"))


def _group_label(names: Sequence[str]) -> str:
    """What the names of runs have in common in front, and how many they are."""
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    common = "".join(letters[0] for letters in alike)
    common = re.sub(r"[-_. =]+(s(eed)?[-_=]*[0-9]*)?$", "", common) or names[0]
    return f"{common} ({len(names)} seeds)"


def _unlike(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} #{i + 1}" for i, name in enumerate(names)]


def group_figures(group: Group) -> dict[str, Any]:
    """By name: mean and standard deviation over the group's runs; what is the same in all, or no number, as it is.

    None is what one of them does not have: the mean of the others would be that of another group.
    """
    found = [single_figures(summarise(run)) for run in group.runs]
    figures: dict[str, Any] = {}
    for name, first in found[0].items():
        values = [each.get(name) for each in found]
        if None in values:
            figures[name] = None
            continue
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        differ = numbers and values != [first] * len(values)
        figures[name] = tuple(float(x) for x in mean_and_sd(np.array(values, dtype=np.float64))) if differ else first
    return figures
