"""`python -m dls.inspect RUN [RUN ...] [--html FILE] [--plot FILE] [--follow] [--json] [--repair]`: look into runs.

A RUN is a run's folder or a trace file. trace.h5 and the trace-STEP.h5 beside it are read as one run; what differs
between ranks is averaged before they are joined. `--json` prints one object {"runs": [...]}, also for a single run;
null is what was not recorded, is undefined, or is infinite; times are in seconds. Each run has

    run       path method density dls_steps model dataset backend lr seed ranks steps hosts version commit started
              config (null: density of dense, dls_steps of all but dls; ranks: one a file; steps: the last recorded)
    recorded window    recorded steps, and how many of them a smoothed mean looks back
    final     train_loss (smoothed) test_loss accuracy best_accuracy best_step
    curve     step loss accuracy set_size threshold_ratio global_share: lists over at most 8 points, smoothed means over
              the ranks; set_size is max - min of the layers' thresholds, threshold_ratio max / min; accuracy and
              global_share are the latest so far
    layers    name kind size; k_ k_rank0_ ratio_ threshold_ residual_norm_, each with first and last: lists over the
              layers, at the first and the last recorded step; means over the ranks, ratio is k / size
    traffic   bytes_per_step dense_bytes_per_step share_of_dense total_bytes dense_total_bytes compression
              uploaded_share, of one rank; totals are over the recorded steps, uploaded_share is the mean of K / n
    timing    steps; seconds and share, by phase and in total: means of a step, without each file's first recorded one
              if there are more; `exposed` is waiting for the network, `other` what no phase covers; hidden_share: of the
              time that messages were under way, the share in which the rank did not wait, mean over the ranks and
              the recorded steps that --diagnose-every looked at

`--html` writes a page, `--plot` its pictures alone, both of all runs together. `--follow` shows runs as they go on, and
then the rest when they are over. `--repair` alone rewrites the traces that a killed run left behind, so that they open in any
viewer of HDF5.

Where no step was recorded, lists, traffic and timing are empty and of the layers only name, kind and size are there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from dls import page, pictures, trace
from dls.files import one_line
from dls.follow import follow
from dls.summary import files_of, groups, load, summarise, to_json
from dls.tables import comparison, everything
from dls.trace import TraceError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise TraceError(f"{message}; see {self.prog} --help")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog="python -m dls.inspect", allow_abbrev=False, description="Look into runs.")
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help="a run's folder, or a trace file")
    parser.add_argument("--json", action="store_true", help='one JSON object {"runs": [...]} instead of tables')
    parser.add_argument("--follow", action="store_true", help="watch runs that still go on, until they end or Ctrl-C")
    parser.add_argument("--repair", action="store_true", help="make traces that a killed run left behind open in any viewer")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write one page with tables and pictures, too")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="write the pictures on one sheet, too: .png, .pdf, .svg")
    args = parser.parse_args(argv)
    if args.follow and (args.json or args.repair):
        parser.error("--follow goes with neither --json nor --repair")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Show runs as the command line says. Exit status: 0 done, 2 what the user can mend."""
    console = Console(markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 10_000)
    try:
        return _do(_parse(argv), console)
    except KeyboardInterrupt:
        return 0
    except (OSError, TraceError) as error:
        print(f"dls.inspect: {one_line(str(error))}", file=sys.stderr)
        return 2


def _do(args: argparse.Namespace, console: Console) -> int:
    if args.repair:
        return _repair(args.runs)
    for option, file in (("--plot", args.plot), ("--html", args.html)):
        if file:
            pictures.need(option)
    if args.follow:
        follow(args.runs, console)
    runs = [load(path) for path in args.runs]
    together = groups(runs)
    if args.plot:
        pictures.sheet(together, args.plot)
    if args.html:
        page.write(together, args.html)
    if args.json:
        console.out(to_json([summarise(run) for run in runs]), highlight=False)
    else:
        console.print(*(everything(summarise(runs[0])) if len(runs) == 1 else comparison(together)), sep="\n")
    _mention_killed(args.runs)
    return 0


def _mention_killed(runs: Sequence[Path]) -> None:
    """What was killed left a trace that this program reads, and others do not."""
    for path in [file for run in runs for file in files_of(run) if trace.left_open(file)]:
        print(f"dls.inspect: what wrote {path} was killed; --repair lets other programs open it, too", file=sys.stderr)


def _repair(runs: Sequence[Path]) -> int:
    for path in [file for run in runs for file in files_of(run)]:
        print(trace.repair(path))
    return 0


if __name__ == "__main__":
    sys.exit(main())
