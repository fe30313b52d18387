"""`python -m dls.inspect RUN [RUN ...] [--json] [--plot FILE] [--repair]`: look into runs.

A RUN is a run's folder or a trace file. trace.h5 and the trace-STEP.h5 beside it are read as one run; what differs
between ranks is averaged before they are joined. `--json` prints one object {"runs": [...]}, also for a single run;
null is what was not recorded, is undefined, or is infinite; times are in seconds. Each run has

    run       path method density dls_steps model dataset backend lr seed ranks steps hosts version commit started
              config (null: density of dense, dls_steps of all but dls; ranks: one a file; steps: the last recorded)
    recorded window    recorded steps, and how many of them a smoothed mean looks back
    final     train_loss (smoothed) test_loss accuracy best_accuracy best_step
    curve     step loss accuracy set_size threshold_ratio: lists over at most 8 points, smoothed means over the ranks;
              set_size is max - min of the layers' thresholds, threshold_ratio max / min, accuracy the latest so far
    layers    name kind size; k_ k_rank0_ ratio_, each with first and last: lists over the layers, at the first and
              the last recorded step; k is the mean over the ranks, ratio is k / size
    traffic   bytes_per_step dense_bytes_per_step share_of_dense total_bytes dense_total_bytes compression
              uploaded_share, of one rank; totals are over the recorded steps, uploaded_share is the mean of K / n
    timing    steps; seconds and share, by phase and in total: means of a step, without each file's first recorded one
              if there are more; `exposed` is waiting for the network, `other` what no phase covers

`--repair` alone rewrites the traces that a killed run left behind, so that they open in any viewer of HDF5.

Where no step was recorded, lists, traffic and timing are empty and the layers' k is missing.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from dls import trace
from dls.files import one_line
from dls.trace import Trace, TraceError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS, MAX_WINDOW = 8, 50  # rows of the table over time; most recorded steps that a smoothed value looks back
# Okabe and Ito's colours, which stay apart for the colour-blind
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COMPARED = (  # rows of the comparison
    *("method", "density", "ranks", "steps", "accuracy", "test_loss", "train_loss", "set_size", "threshold_ratio"),
    *("bytes_per_step", "share_of_dense", "total_ms", "exposed_ms"),
)
FORMATS = (  # how the numbers of that name, or below that head, are written
    dict.fromkeys(("step", "size", "rank 0", "bytes_per_step", "sent", "dense"), ",.0f")
    | dict.fromkeys(("first k", "last k"), ",.1f")
    | dict.fromkeys(("set_size", "threshold_ratio", "compression"), ".4g")
    | dict.fromkeys(("loss", "train_loss", "test_loss"), ".4f")
    | dict.fromkeys(("accuracy", "best_accuracy", "share_of_dense"), ".2%")
    | {"k/n": ".3%", "ms": ".3f", "total_ms": ".3f", "exposed_ms": ".3f", "share": ".1%"}
)

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Series:
    """A run's traces joined, T recorded steps, ranks reduced to their mean.

    run: see the module's text; layers: name, kind, size, … [L]; evals: step, loss, accuracy [E];
    steps: step, loss, payload_bytes, set_size, threshold_ratio, warm, seconds/PHASE [T], k, k_rank0, threshold [T, L].
    """

    run: Mapping[str, Any]
    layers: Mapping[str, Sequence[Any]]
    steps: Columns
    evals: Columns


@dataclass(frozen=True)
class Summary:
    """All there is to say about a run; the module's text names the keys."""

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
    return join(path, [trace.read(file) for file in _files(path)])


def _files(path: Path) -> list[Path]:
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
    return Series(_about(path, parts, steps["step"]), layers, steps, _joined([part.evals for part in parts], ends))


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
    latest = np.searchsorted(series.evals["step"], steps["step"][at], side="right")
    accuracy = [series.evals["accuracy"][i - 1].item() if i else None for i in latest]
    curve = {"step": steps["step"][at].tolist(), "loss": smooth(steps["loss"], at).tolist(), "accuracy": accuracy}
    curve |= {name: smooth(steps[name], at).tolist() for name in ("set_size", "threshold_ratio")}
    final = {"train_loss": curve["loss"][-1] if recorded else None, **_last_and_best(series.evals)}
    traffic, timing = (_traffic(series), _timing(steps)) if recorded else ({}, {})
    return Summary(series.run, recorded, window_of(recorded), final, curve, _layers(series), traffic, timing)


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


def _timing(steps: Columns) -> dict[str, Any]:
    warm = steps["warm"]
    seconds = {name: float(steps[f"seconds/{name}"][warm].mean()) for name in trace.SECONDS}
    total = seconds.pop("total")
    seconds |= {"other": total - sum(seconds.values()), "total": total}
    share = {name: value / total if total else math.nan for name, value in seconds.items()}
    return {"steps": int(warm.sum()), "seconds": seconds, "share": share}


def to_json(summaries: Sequence[Summary]) -> str:
    """One JSON object, as the module's text describes it; null for the numbers that JSON does not have."""
    text = json.dumps({"runs": [asdict(each) for each in summaries]}, default=str)
    return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2, allow_nan=False)


def show_run(summary: Summary, console: Console) -> None:
    """Everything about one run."""
    about = {**summary.run, "hosts": dict.fromkeys(summary.run["hosts"]), "recorded": summary.recorded, **summary.final}
    rows = [(name.replace("_", " "), _format(name, value)) for name, value in about.items() if name != "config"]
    _show("", [("", column) for column in zip(*rows, strict=True)], console)
    if not summary.recorded:
        console.print("nothing recorded yet")
        return
    traffic, timing = summary.traffic, summary.timing
    title = f"Over time: means over the ranks and a window of recorded steps, here {summary.window}; latest accuracy"
    _show(title, summary.curve.items(), console)
    title = "k of each layer at the first and at the last recorded step: mean over the ranks, rank 0's own, mean k/n"
    heads = ("layer", "kind", "size", "first k", "rank 0", "k/n", "last k", "rank 0", "k/n")
    _show(title, [*zip(heads, summary.layers.values(), strict=True)], console)
    compression = _format("compression", traffic["compression"])
    title = f"Bytes that a rank sends, for {traffic['uploaded_share']:.3%} of the values: compression {compression}"
    sent, dense = ([traffic[f"{kind}bytes_per_step"], traffic[f"{kind}total_bytes"]] for kind in ("", "dense_"))
    _show(title, [("", ["a step", "all recorded steps"]), ("sent", sent), ("dense", dense)], console)
    title = f"Time of a step: mean over the ranks and {timing['steps']} recorded; exposed is waiting for the network"
    ms = [1e3 * seconds for seconds in timing["seconds"].values()]
    _show(title, [("phase", [*timing["seconds"]]), ("ms", ms), ("share", [*timing["share"].values()])], console)


def show_comparison(summaries: Sequence[Summary], console: Console) -> None:
    """Several runs side by side, one column each."""
    columns: list[tuple[str, Sequence[Any]]] = [("", [name.replace("_", " ") for name in COMPARED])]
    for label, summary in zip(labels([each.run["path"] for each in summaries]), summaries, strict=True):
        figures = _single_figures(summary)
        columns.append((label, [_format(name, figures.get(name)) for name in COMPARED]))
    _show("Set size and threshold ratio are those of the end; bytes and ms of a mean step", columns, console)


def _single_figures(summary: Summary) -> dict[str, Any]:
    """By name, what has one value; of the lists over time their last."""
    last = {name: values[-1] for name, values in summary.curve.items() if values}
    ms = {f"{name}_ms": 1e3 * seconds for name, seconds in summary.timing.get("seconds", {}).items()}
    return {**last, **summary.run, **summary.final, **summary.traffic, **ms}


def labels(paths: Sequence[str]) -> list[str]:
    """Short names of runs: their folders' names, or their paths where names are equal."""
    folders = [Path(path).resolve() for path in paths]
    names = [folder.parent.name if folder.suffix == ".h5" else folder.name for folder in folders]
    return names if len(set(names)) == len(names) else list(paths)


def _format(name: str, value: Any) -> str:
    if isinstance(value, list | dict):
        return ", ".join(map(str, value))
    if value is None or value == "" or value != value:
        return "-"
    return "inf" if value == math.inf else format(value, "" if isinstance(value, str) else FORMATS.get(name, ""))


def _show(title: str, columns: Collection[tuple[str, Sequence[Any]]], console: Console) -> None:
    """A table, numbers to the right; cells too wide for a terminal go on in the next line."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_header=any(head for head, _ in columns))
    for head, cells in columns:
        words = any(isinstance(cell, str) for cell in cells)
        table.add_column(head.replace("_", " "), justify="left" if words else "right", overflow="fold")
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*(_format(head, cell) for (head, _), cell in zip(columns, row, strict=True)))
    console.print(*([title] if title else []), table, "", sep="\n")


def plot(runs: Sequence[Series], path: Path) -> None:
    """Three panels over the steps. TraceError without matplotlib or for an unknown kind of file, OSError."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise TraceError("--plot needs matplotlib: pip install 'dls[plot]'") from None
    figure = Figure(figsize=(9, 10), layout="constrained", dpi=120)
    panels = list(figure.subplots(3, 1, sharex=True))
    (_plot_run if len(runs) == 1 else _plot_comparison)(runs, *panels)
    for axes in panels:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylim(bottom=0)
    panels[-1].set_xlabel("training step")
    try:
        figure.savefig(path)
    except ValueError as error:
        raise TraceError(f"--plot {path}: {error}") from None


def _plot_run(runs: Sequence[Series], top: Axes, middle: Axes, bottom: Axes) -> None:
    run = runs[0]
    top.set_title("{method}, {model} on {dataset}, {0} ranks".format(_format("ranks", run.run["ranks"]), **run.run))
    _plot_loss(top, run, COLOURS[0], "")
    top.yaxis.label.set_color(COLOURS[0])
    right = top.twinx()
    right.spines["top"].set_visible(False)
    right.plot(run.evals["step"], 100 * run.evals["accuracy"], "o-", color=COLOURS[1], markersize=3)
    right.set_ylabel("test accuracy (%)", color=COLOURS[1])
    _plot_layers(middle, run, "threshold")
    _log_scale(middle, run.steps["threshold"])
    _plot_layers(bottom, run, "k")
    bottom.set_yscale("symlog", linthresh=1)
    bottom.set_ylim(bottom=0)


def _plot_comparison(runs: Sequence[Series], top: Axes, middle: Axes, bottom: Axes) -> None:
    for i, (run, label) in enumerate(zip(runs, labels([run.run["path"] for run in runs]), strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        _plot_loss(top, run, colour, label)
        middle.plot(run.evals["step"], 100 * run.evals["accuracy"], "o-", color=colour, markersize=3)
        bottom.plot(run.steps["step"], smooth(run.steps["set_size"]), color=colour)
    middle.set_ylabel("test accuracy (%)")
    bottom.set_ylabel("set size: max - min threshold")
    _log_scale(bottom, np.concatenate([run.steps["set_size"] for run in runs]))
    top.legend(loc="upper right", frameon=False)


def _plot_loss(axes: Axes, run: Series, colour: str, label: str) -> None:
    axes.plot(run.steps["step"], run.steps["loss"], color=colour, alpha=0.25, lw=0.8)
    axes.plot(run.steps["step"], smooth(run.steps["loss"]), color=colour, label=label)
    axes.set_ylabel("training loss (nats)")


def _plot_layers(axes: Axes, run: Series, name: str) -> None:
    """A line per layer; where there are more than colours, coloured by depth, and not all of them named."""
    from matplotlib import colormaps

    names = [name if i % (1 + len(run.layers["name"]) // 13) == 0 else "_" for i, name in enumerate(run.layers["name"])]
    colours = COLOURS if len(names) <= len(COLOURS) else colormaps["viridis"](np.linspace(0, 0.95, len(names)))
    for label, colour, values in zip(names, colours, run.steps[name].T, strict=False):
        axes.plot(run.steps["step"], values, color=colour, lw=1, label=label)
    axes.set_ylabel(f"{name} of each layer")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False, fontsize="small")


def _log_scale(axes: Axes, values: NDArray[Any]) -> None:
    """A logarithmic axis that leaves zeros out, unless all is zero, as with dense."""
    if (values > 0).any():
        axes.set_yscale("log", nonpositive="mask")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise TraceError(f"{message}; see {self.prog} --help")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m dls.inspect", allow_abbrev=False, description="Look into runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder, or a trace file")
    parser.add_argument("--json", action="store_true", help='one JSON object {"runs": [...]} instead of tables')
    parser.add_argument("--repair", action="store_true", help="make traces that a killed run left behind open in any viewer")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw loss, thresholds and k, too: .png, .pdf, .svg")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Show runs as the command line says. Exit status: 0 done, 2 what the user can mend."""
    try:
        args = _parse(argv)
        if args.repair:
            return _repair(args.runs)
        runs = [load(path) for path in args.runs]
        if args.plot:
            plot(runs, args.plot)
    except (OSError, TraceError) as error:
        print(f"dls.inspect: {one_line(str(error))}", file=sys.stderr)
        return 2
    summaries = [summarise(run) for run in runs]
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 10_000)
    if args.json:
        console.out(to_json(summaries), highlight=False)
    elif len(summaries) == 1:
        show_run(summaries[0], console)
    else:
        show_comparison(summaries, console)
    return 0


def _repair(runs: Sequence[Path]) -> int:
    for path in [file for run in runs for file in _files(run)]:
        print(trace.repair(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
