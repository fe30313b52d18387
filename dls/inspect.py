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
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich import box
from rich.console import Console
from rich.table import Table

from dls import page, pictures, trace
from dls.files import one_line
from dls.summary import COMPARED, Summary, files_of, groups, labels, load, single_figures, summarise, to_json, written
from dls.trace import TraceError


def show_run(summary: Summary, console: Console) -> None:
    """Everything about one run."""
    about = {**summary.run, "hosts": dict.fromkeys(summary.run["hosts"]), "recorded": summary.recorded, **summary.final}
    rows = [(name.replace("_", " "), written(name, value)) for name, value in about.items() if name != "config"]
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
    compression = written("compression", traffic["compression"])
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
        figures = single_figures(summary)
        columns.append((label, [written(name, figures.get(name)) for name in COMPARED]))
    _show("Set size and threshold ratio are those of the end; bytes and ms of a mean step", columns, console)


def _show(title: str, columns: Collection[tuple[str, Sequence[Any]]], console: Console) -> None:
    """A table, numbers to the right; cells too wide for a terminal go on in the next line."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, show_header=any(head for head, _ in columns))
    for head, cells in columns:
        words = any(isinstance(cell, str) for cell in cells)
        table.add_column(head.replace("_", " "), justify="left" if words else "right", overflow="fold")
    for row in zip(*(cells for _, cells in columns), strict=True):
        table.add_row(*(written(head, cell) for (head, _), cell in zip(columns, row, strict=True)))
    console.print(*([title] if title else []), table, "", sep="\n")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise TraceError(f"{message}; see {self.prog} --help")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m dls.inspect", allow_abbrev=False, description="Look into runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder, or a trace file")
    parser.add_argument("--json", action="store_true", help='one JSON object {"runs": [...]} instead of tables')
    parser.add_argument("--repair", action="store_true", help="make traces that a killed run left behind open in any viewer")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write one page with tables and pictures, too")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="write the pictures on one sheet, too: .png, .pdf, .svg")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Show runs as the command line says. Exit status: 0 done, 2 what the user can mend."""
    try:
        args = _parse(argv)
        if args.repair:
            return _repair(args.runs)
        runs = [load(path) for path in args.runs]
        if args.plot:
            pictures.need("--plot")
            pictures.sheet(groups(runs), args.plot)
        if args.html:
            page.write(groups(runs), args.html)
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
    for path in [file for run in runs for file in files_of(run)]:
        print(trace.repair(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
