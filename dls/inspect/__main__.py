"""The command line of `python -m dls.inspect`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from dls.called import usage_name
from dls.cli import Parser, UsageError
from dls.inspect import page, perfetto, pictures, points, sheets
from dls.inspect.finding import find, load_all
from dls.inspect.follow import follow
from dls.inspect.groups import Group, apart, by_seed
from dls.inspect.pictures import Picture
from dls.inspect.summary import summarise, to_json
from dls.inspect.tables import comparison, everything
from dls.program import output
from dls.record import files, reader
from dls.record.files import one_line
from dls.record.lock import State
from dls.record.repair import repair
from dls.record.schema import TraceError
from dls.tools import plotting

SMALLEST = 1
"""The smallest side of a figure, in inches."""
LARGEST = 40
"""The largest side of a figure, in inches."""
SUFFIXES = {
    "--html": ("page", (".html", ".htm")),
    "--csv": ("table", (".csv",)),
    "--perfetto": ("timeline", (".json",)),
}
"""What an option writes, and how the name of its file ends: another may be that of the trace."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog=usage_name("inspect"), description="Look into runs.")
    words = "a run's folder, a trace file, or a folder with runs below it"
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path, help=words)
    words = 'print one JSON object {"runs": [...]} instead of tables'
    parser.add_argument("--json", action="store_true", help=words)
    words = "watch runs that still go on, until they end or Ctrl-C"
    parser.add_argument("--follow", action="store_true", help=words)
    words = "mend traces that a killed run left behind, so that other programs open them, too"
    parser.add_argument("--repair", action="store_true", help=words)
    _add_file_options(parser)
    return parser


def _add_file_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("files to write")
    words = "a page with tables and pictures, which needs no other file"
    group.add_argument("--html", metavar="FILE", type=Path, help=words)
    words = "the pictures on one sheet: .png, .pdf, .svg"
    group.add_argument("--plot", metavar="FILE", type=Path, help=words)
    words = "what the pictures show, as a table"
    group.add_argument("--csv", metavar="FILE", type=Path, help=words)
    words = "one run's timeline, for Perfetto and chrome://tracing"
    group.add_argument("--perfetto", metavar="FILE", type=Path, help=words)
    names = ", ".join((*pictures.OF_GROUPS, *pictures.OF_ONE_GROUP))
    words = f"with --plot or --csv, only this figure: {names}"
    group.add_argument("--figure", metavar="NAME", help=words)
    width, height = sheets.ONE_COLUMN
    words = f"with --figure and --plot, the size in inches (default: {width}x{height})"
    group.add_argument("--size", metavar="WxH", help=words)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options. UsageError where they do not go together."""
    parser = build_parser()
    given = parser.parse_args(argv)
    if given.follow and (given.json or given.repair):
        parser.error("--follow goes with neither --json nor --repair")
    if given.figure and not (given.plot or given.csv):
        parser.error("--figure needs --plot FILE to draw it, or --csv FILE for its numbers")
    if given.size and not (given.figure and given.plot):
        parser.error("--size needs --figure and --plot")
    given.size = _size(given.size) if given.size else sheets.ONE_COLUMN
    return given


def _size(text: str) -> tuple[float, float]:
    """Width and height in inches. UsageError."""
    match = re.fullmatch(r"([0-9.]{1,9})[x×,]([0-9.]{1,9})", text)
    try:
        size = (float(match[1]), float(match[2])) if match else (0.0, 0.0)
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
    width = None if sys.stdout.isatty() else 10_000
    console = Console(markup=False, highlight=False, emoji=False, width=width)
    try:
        with output.unheard():
            return _do(_parse(argv), console)
    except KeyboardInterrupt:
        return 0
    except (OSError, TraceError, UsageError) as error:
        print(f"dls.inspect: {one_line(files.described(error))}", file=sys.stderr)
        return 2


def _do(given: argparse.Namespace, console: Console) -> int:
    _check_files(given)
    if given.repair:
        return _repair(find(given.runs))
    if given.follow:
        _follow(given.runs, console)
    runs, skipped = load_all(given.runs)
    if given.perfetto and len(runs) != 1:
        raise UsageError(f"--perfetto shows one run, and there are {len(runs)} here")
    groups = by_seed(runs)
    _write(groups, given)
    if given.json:
        console.out(to_json([summarise(run) for run in runs]), highlight=False)
    elif len(runs) == 1:
        console.print(*everything(summarise(runs[0])), sep="\n")
    else:
        console.print(*comparison(groups), sep="\n")
    for line in _remarks(groups, skipped):
        print(f"dls.inspect: {one_line(line)}", file=sys.stderr)
    return 0


def _follow(runs: Sequence[Path], console: Console) -> None:
    """Watch the runs until they end. After Ctrl-C everything is shown as if they had ended."""
    paths = [Path(run.about.path) for run in load_all(runs)[0]]
    with suppress(KeyboardInterrupt):
        follow(paths, console)


def _check_files(given: argparse.Namespace) -> None:
    """UsageError, before any work, for what cannot be drawn or written."""
    if given.plot:
        plotting.check_picture("--plot", given.plot)
    if given.html:
        plotting.need_matplotlib("--html")
        _check_file("--html", given.html)
    if given.csv:
        _check_file("--csv", given.csv)
    if given.perfetto:
        _check_file("--perfetto", given.perfetto)
    if given.figure:
        pictures.check_name(given.figure)


def _check_file(option: str, file: Path) -> None:
    """UsageError for a file that cannot be written, or whose name is not that of its kind."""
    kind, suffixes = SUFFIXES[option]
    if file.suffix not in suffixes:
        raise UsageError(f"{option} {file}: a {kind}'s name ends in {suffixes[0]}")
    if obstacle := files.obstacle(file):
        raise UsageError(f"{option} {file}: {obstacle}")


def _write(groups: Sequence[Group], given: argparse.Namespace) -> None:
    """Write the files that were asked for."""
    figure = pictures.named(groups, given.figure) if given.figure else None
    if given.plot and figure:
        sheets.single(figure, given.plot, given.size)
    elif given.plot:
        sheets.sheet(groups, given.plot)
    if given.html:
        page.write(groups, given.html)
    if given.perfetto:
        perfetto.write(Path(groups[0].runs[0].about.path), given.perfetto)
    if given.csv:
        shown = [figure] if figure else _all_pictures(groups)
        points.write((point for picture in shown for point in picture.points()), given.csv)


def _all_pictures(groups: Sequence[Group]) -> list[Picture]:
    of_each = [picture for group in groups for picture in pictures.of_one_group(group)]
    return [*pictures.of_groups(groups), *of_each]


def _remarks(groups: Sequence[Group], skipped: Sequence[str]) -> Iterator[str]:
    """What was left out, what does not group and why, and which traces a killed run left behind."""
    yield from apart(groups)
    if skipped:
        yield f"{len(skipped)} of the runs found are skipped: {'; '.join(skipped)}"
    for group in groups:
        for run in group.runs:
            for path in reader.files_of(Path(run.about.path)):
                yield from _state_of(path)


def _state_of(path: Path) -> Iterator[str]:
    """A sentence on a trace whose writer is unknown, or was killed."""
    state = reader.state(path)  # first: a trace without a writer stays as it is
    if state is State.UNKNOWN:
        yield f"whether a run still writes {path} cannot be told here ({state.value})"
    elif state is State.FREE and reader.left_open(path):
        yield f"the run that wrote {path} was killed; --repair lets other programs open it, too"


def _repair(runs: Sequence[tuple[Path, bool]]) -> int:
    """Repair each run's traces; the exit status.

    One that was only found below a folder, and cannot be repaired, does not stop the others.
    """
    status = 0
    for path, was_named in runs:
        try:
            for file in reader.files_of(path):
                print(repair(file))
        except (OSError, TraceError) as error:
            if was_named:
                raise
            print(f"dls.inspect: {one_line(files.described(error))}", file=sys.stderr)
            status = 2
    return status


if __name__ == "__main__":
    sys.exit(main())
