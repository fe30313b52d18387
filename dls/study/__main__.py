"""The command line of `python -m dls.study`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from importlib import import_module
from pathlib import Path
from types import ModuleType

from dls.called import usage_name
from dls.cli import Parser, UsageError
from dls.program import output, plugins
from dls.record import files
from dls.study import experiments, processes, provenance, results
from dls.study.experiments import Experiment
from dls.tools import plotting


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog=usage_name("study"), description="Run a study, or go on with it, and report on it."
    )
    words = "experiment files (TOML), see runs/study/"
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=words)
    _add_run_options(parser)
    _add_report_options(parser)
    return parser


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("runs")
    folder = Path("runs/study-out")
    words = "folder of the runs (default: %(default)s)"
    group.add_argument("--out", type=Path, default=folder, metavar="FOLDER", help=words)
    words = "only runs whose name matches this shell pattern (default: *)"
    group.add_argument("--only", default="*", metavar="PATTERN", help=words)
    words = "runs at a time (default: %(default)s)"
    group.add_argument("--jobs", type=int, default=1, metavar="N", help=words)
    words = "make each run with workers in one process, without MPI"
    group.add_argument("--workers", action="store_true", help=words)
    words = "keep, and go on with, runs made by code that has changed since"
    group.add_argument("--any-code", action="store_true", help=words)
    plugins.add_flag(parser)


def _add_report_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    words = "write study.md, study.json and study.png to FOLDER"
    group.add_argument("--report", type=Path, metavar="FOLDER", help=words)
    words = "keep the results that the report has, and make the other runs"
    group.add_argument("--add", action="store_true", help=words)
    words = "make no run; report on those that are complete"
    group.add_argument("--report-only", action="store_true", help=words)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all runs are complete, 1 some are not, 2 bad usage, 75 stopped.

    After a stop the same command goes on.
    """
    try:
        with output.unheard():
            given = build_parser().parse_args(argv)
            for name in given.imports:
                plugins.run(Path(name))
            return _do(given)
    except (OSError, UsageError) as error:
        print(f"dls.study: {files.described(error)}", file=sys.stderr)
        return 2


def _do(given: argparse.Namespace) -> int:
    report, page = _load_report()
    if given.jobs < 1:
        raise UsageError("--jobs must be 1 or more")
    planned = _planned(given)
    runs = _asked_for(planned, given.only)
    _check_out(given.out, given.report_only)
    if given.report:
        report.prepare(given.report)
    elif given.add:
        raise UsageError("--add needs the report that it adds to: --report FOLDER")
    known = results.known(given.report, planned, given.out) if given.add else {}
    for sentence in provenance.check(runs, given.out, given.any_code or given.report_only):
        print(sentence, flush=True)
    status = 0 if given.report_only else run_missing(runs, given.out, given.jobs, known)
    cells = {each.cell for each in runs}
    shown = [each for each in planned if given.report or each.cell in cells]
    rows = results.collect(shown, given.out, known)
    if given.report:
        report.write(rows, given.report)
    if status == processes.STOPPED:
        print("dls.study: stopped; the same command goes on", file=sys.stderr)
    else:
        print(*page.lines([row for row in rows if row.cell in cells]), sep="\n")
    return status


def _planned(given: argparse.Namespace) -> list[Experiment]:
    """All runs of the experiment files. UsageError."""
    loaded = experiments.load(given.files)
    return [replace(each, in_one_process=given.workers) for each in loaded]


def _asked_for(planned: Sequence[Experiment], pattern: str) -> list[Experiment]:
    """The runs whose names match the pattern. UsageError where there is none."""
    runs = [each for each in planned if fnmatchcase(each.name, pattern)]
    if not runs:
        raise UsageError(f"no run's name matches {pattern!r}; {planned[0].name} is one of them")
    return runs


def _check_out(out: Path, only_read: bool) -> None:
    """UsageError where the folder of the runs cannot be written, or read where that is all."""
    try:
        if not only_read:
            files.check_folder(out)
        elif not out.is_dir():
            raise UsageError(f"--out {out} is no folder; there is nothing to report on")
    except OSError as error:
        raise UsageError(f"--out {out}: {files.reason(error)}") from None


def run_missing(runs: Sequence[Experiment], out: Path, jobs: int, known: results.Known) -> int:
    """Make the runs that are neither complete nor known, and say how each ends.

    Returns the study's exit status. UsageError, before any run, for a folder whose run was made
    with other settings.
    """
    missing = [
        each for each in runs if each.name not in known and not experiments.is_complete(each, out)
    ]
    stop, failed, done = processes.Stop(), 0, len(runs) - len(missing)
    print(f"{done} of {len(runs)} runs are complete already", flush=True)
    with stop.on_signals():
        for run, status in processes.run_all(missing, out, jobs, stop):
            failed, done = failed + bool(status), done + 1
            end = _end(status, out / f"{run.name}.log")
            print(f"{done} of {len(runs)}: {run.name}{end}", flush=True)
    if stop.made:
        return processes.STOPPED
    return 1 if failed else 0


def _end(status: int, log: Path) -> str:
    """How a run ended, where it is not complete."""
    if status == processes.ELSEWHERE:
        return " is left to another process, which is running it"
    return f" failed, see {log}: {processes.last_words(log)}" if status else ""


def _load_report() -> tuple[ModuleType, ModuleType]:
    """dls.study.report and dls.study.page.

    UsageError, before hours of runs, where a library that they need is missing.
    """
    try:
        return import_module("dls.study.report"), import_module("dls.study.page")
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        raise plotting.missing("the report", library, extra="study") from None


if __name__ == "__main__":
    sys.exit(main())
