"""The command line: what is asked for, and in which order it is done."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from dls.called import usage_name
from dls.cli import Parser, UsageError
from dls.inspect import page, perfetto, pictures, points
from dls.inspect.follow import follow
from dls.inspect.groups import Group, apart, by_seed
from dls.inspect.runs import find, load_all
from dls.inspect.series import files_of
from dls.inspect.summary import summarise, to_json
from dls.inspect.tables import comparison, everything
from dls.program import output
from dls.record import files, reader
from dls.record.files import one_line
from dls.record.lock import State
from dls.record.repair import repair
from dls.record.schema import TraceError

SMALLEST, LARGEST = 1, 40
"""Inches of a figure's sides."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog=usage_name("inspect"), description="Look into runs.")
    words = "a run's folder, a trace file, or a folder with runs below it"
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help=words)
    parser.add_argument(
        "--json", action="store_true", help='one JSON object {"runs": [...]} instead of tables'
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="watch runs that still go on, until they end or Ctrl-C",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="make traces that a killed run left behind open in any viewer",
    )
    parser.add_argument(
        "--html", metavar="FILE", type=Path, help="write one page with tables and pictures, too"
    )
    parser.add_argument(
        "--plot",
        metavar="FILE",
        type=Path,
        help="write the pictures on one sheet, too: .png, .pdf, .svg",
    )
    words = (
        "of the pictures this one, for a paper:"
        f" {', '.join((*pictures.SIDE_BY_SIDE, *pictures.OF_LAYERS))}"
    )
    parser.add_argument("--figure", metavar="NAME", help=words)
    width, height = pictures.ONE_COLUMN
    words = f"inches of that figure ({width}x{height})"
    parser.add_argument("--size", metavar="WxH", help=words)
    parser.add_argument(
        "--csv", metavar="FILE", type=Path, help="write what the pictures show as a table, too"
    )
    parser.add_argument(
        "--perfetto", metavar="FILE", type=Path, help="write one run's timeline for Perfetto, too"
    )
    return parser


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.follow and (args.json or args.repair):
        parser.error("--follow goes with neither --json nor --repair")
    if args.figure and not (args.plot or args.csv):
        parser.error("--figure needs --plot FILE to draw it, or --csv FILE for its numbers")
    if args.size and not (args.figure and args.plot):
        parser.error("--size needs --figure and --plot")
    args.size = _size(args.size) if args.size else pictures.ONE_COLUMN
    return args


def _size(text: str) -> tuple[float, float]:
    """Width and height in inches. UsageError."""
    found = re.fullmatch(r"([0-9.]{1,9})[x×,]([0-9.]{1,9})", text)
    try:
        size = (float(found[1]), float(found[2])) if found else (0.0, 0.0)
    except ValueError:
        size = (0.0, 0.0)
    if not all(SMALLEST <= length <= LARGEST for length in size):
        raise UsageError(
            f"--size {text}: give width and height in inches, each from {SMALLEST} to {LARGEST},"
            " such as 3.4x2.2"
        )
    return size


def main(argv: Sequence[str] | None = None) -> int:
    """Show runs as the command line says. Exit status: 0 done, 2 what the user can mend."""
    console = Console(
        markup=False, highlight=False, emoji=False, width=None if sys.stdout.isatty() else 10_000
    )
    try:
        with output.unheard():
            return _do(_parse(argv), console)
    except KeyboardInterrupt:
        return 0
    except (OSError, TraceError, UsageError) as error:
        print(f"dls.inspect: {files.one_line(files.described(error))}", file=sys.stderr)
        return 2


def _do(args: argparse.Namespace, console: Console) -> int:
    _check_outputs(args)
    if args.repair:
        return _repair(find(args.runs))
    if args.follow:
        with suppress(
            KeyboardInterrupt
        ):  # then all is said that there is to say, as when the runs end
            follow([Path(run.run["path"]) for run in load_all(args.runs)[0]], console)
    runs, skipped = load_all(args.runs)
    if args.perfetto:
        if len(runs) != 1:
            raise UsageError(f"--perfetto shows one run, and there are {len(runs)} here")
        perfetto.write(Path(runs[0].run["path"]), args.perfetto)
    together = by_seed(runs)
    _write(together, args)
    if args.json:
        console.out(to_json([summarise(run) for run in runs]), highlight=False)
    else:
        console.print(
            *(everything(summarise(runs[0])) if len(runs) == 1 else comparison(together)), sep="\n"
        )
    _mention(together, skipped)
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """TraceError, before any work, for what cannot be drawn or written."""
    for option, file in (
        ("--plot", args.plot),
        ("--html", args.html),
        ("--csv", args.csv),
        ("--perfetto", args.perfetto),
    ):
        if file:
            if option not in ("--csv", "--perfetto"):
                pictures.need(option)
            _check_target(option, file)
    if args.figure:
        pictures.check_name(args.figure)


def _write(together: Sequence[Group], args: argparse.Namespace) -> None:
    """The files that were asked for."""
    one = pictures.named(together, args.figure) if args.figure else None
    if args.plot and one:
        pictures.single(one, args.plot, args.size)
    elif args.plot:
        pictures.sheet(together, args.plot)
    if args.html:
        page.write(together, args.html)
    if args.csv:
        shown = (
            [one]
            if one
            else [
                *pictures.together(together),
                *(each for group in together for each in pictures.alone(group)),
            ]
        )
        points.write((point for picture in shown for point in picture.points()), args.csv)


def _check_target(option: str, file: Path) -> None:
    """TraceError for a place that cannot be written, or a name that is no page's or table's: it may
    be the trace.
    """
    for kind, what, suffixes in (
        ("--html", "page", (".html", ".htm")),
        ("--csv", "table", (".csv",)),
        ("--perfetto", "timeline", (".json",)),
    ):
        if option == kind and file.suffix not in suffixes:
            raise TraceError(f"{option} {file}: a {what}'s name ends in {suffixes[0]}")
    if obstacle := files.obstacle(file):
        raise TraceError(f"{option} {file}: {obstacle}")


def _mention(together: Sequence[Group], skipped: Sequence[str]) -> None:
    """What is left out, what does not group and why, and what was killed: its trace this program
    reads, and others do not.
    """
    lines = list(apart(together))
    if skipped:
        lines.append(f"{len(skipped)} of the runs found are skipped: {'; '.join(skipped)}")
    for path in [
        file for group in together for run in group.runs for file in files_of(Path(run.run["path"]))
    ]:
        state = reader.state(path)  # first: what nobody writes any more stays as it is
        if state is State.UNKNOWN:
            lines.append(f"whether a run still writes {path} cannot be told here ({state.value})")
        elif state is State.FREE and reader.left_open(path):
            lines.append(f"what wrote {path} was killed; --repair lets other programs open it, too")
    for line in lines:
        print(f"dls.inspect: {one_line(line)}", file=sys.stderr)


def _repair(runs: Sequence[tuple[Path, bool]]) -> int:
    """Repair each.

    What was found below a folder, and cannot be repaired, does not keep the others from it.
    """
    status = 0
    for path, was_named in runs:
        try:
            for file in files_of(path):
                print(repair(file))
        except (OSError, TraceError) as error:
            if was_named:
                raise
            print(f"dls.inspect: {one_line(files.described(error))}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
