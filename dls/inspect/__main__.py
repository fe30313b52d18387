"""The command line: what is asked for, and in which order it is done."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from dls import trace
from dls.config import Parser, UsageError
from dls.files import one_line
from dls.inspect import page, pictures
from dls.inspect.follow import follow
from dls.inspect.groups import apart, by_seed
from dls.inspect.series import files_of, load
from dls.inspect.summary import summarise, to_json
from dls.inspect.tables import comparison, everything
from dls.trace import TraceError


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m dls.inspect", description="Look into runs.")
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
    except (OSError, TraceError, UsageError) as error:
        print(f"dls.inspect: {one_line(str(error))}", file=sys.stderr)
        return 2


def _do(args: argparse.Namespace, console: Console) -> int:
    if args.repair:
        return _repair(args.runs)
    for option, file in (("--plot", args.plot), ("--html", args.html)):
        if file:
            pictures.need(option)
            _check_target(option, file)
    if args.follow:
        with suppress(KeyboardInterrupt):  # then all is said that there is to say, as when the runs end
            follow(args.runs, console)
    runs = [load(path) for path in args.runs]
    together = by_seed(runs)
    if args.plot:
        pictures.sheet(together, args.plot)
    if args.html:
        page.write(together, args.html)
    if args.json:
        console.out(to_json([summarise(run) for run in runs]), highlight=False)
    else:
        console.print(*(everything(summarise(runs[0])) if len(runs) == 1 else comparison(together)), sep="\n")
    for line in apart(together):
        print(f"dls.inspect: {one_line(line)}", file=sys.stderr)
    _mention_killed(args.runs)
    return 0


def _check_target(option: str, file: Path) -> None:
    """TraceError, before any work, for a place that cannot be written, or a name that is no page's: it may be the trace."""
    if option == "--html" and file.suffix not in (".html", ".htm"):
        raise TraceError(f"--html {file}: a page's name ends in .html")
    if file.is_dir() or not file.parent.is_dir():
        raise TraceError(f"{option} {file}: " + ("that is a folder" if file.is_dir() else f"there is no folder {file.parent}"))


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
