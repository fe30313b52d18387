"""The command line: what is asked for, and in which order it is done."""

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


def run_what_is_missing(
    runs: Sequence[Experiment], out: Path, jobs: int, known: results.Known
) -> int:
    """Run what is neither complete nor known and say how each ends.

    Returns the study's exit status.

    UsageError, before any run, for a folder whose run was made with other settings.
    """
    missing = [
        each for each in runs if each.name not in known and not experiments.is_complete(each, out)
    ]
    stop, failed, done = processes.Stop(), 0, len(runs) - len(missing)
    print(f"{done} of {len(runs)} runs are complete already", flush=True)
    with stop.on_signals():
        for experiment, status in processes.run_all(missing, out, jobs, stop):
            failed, done = failed + bool(status), done + 1
            print(
                f"{done} of {len(runs)}:"
                f" {experiment.name}{_fate(status, out / f'{experiment.name}.log')}",
                flush=True,
            )
    return processes.STOPPED if stop.made else 1 if failed else 0


def _fate(status: int, log: Path) -> str:
    """How a run ended, where it is not complete."""
    if status == processes.ELSEWHERE:
        return " is left to another process, which is at it"
    return f" failed, see {log}: {processes.last_words(log)}" if status else ""


def _check_out(out: Path, reads: bool) -> None:
    """UsageError where the study's folder is not there to be read, or cannot be written."""
    try:
        if not reads:
            files.check_folder(out)
        elif not out.is_dir():
            raise UsageError(f"--out {out} is no folder; there is nothing to report on")
    except OSError as error:
        raise UsageError(f"--out {out}: {files.reason(error)}") from None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(
        prog=usage_name("study"), description="Run a study, or go on with it, and report on it."
    )
    parser.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help="experiments, see runs/study/"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/study-out"),
        help="where the runs go (runs/study-out)",
    )
    parser.add_argument(
        "--report", type=Path, help="write study.md, study.json and study.png to this folder"
    )
    parser.add_argument(
        "--add", action="store_true", help="keep the runs that the report has, and run the others"
    )
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing; report on what is complete"
    )
    parser.add_argument(
        "--only",
        default="*",
        help="run, and show, those whose name fits this pattern of * ? [letters] (*)",
    )
    parser.add_argument(
        "--any-code",
        action="store_true",
        help="keep, and go on with, runs of code that has changed since",
    )
    parser.add_argument(
        "--workers",
        action="store_true",
        help="each run as workers of one process, without MPI; --jobs runs that many at a time",
    )
    plugins.add_flag(parser)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all runs are complete, 1 some are not, 2 bad usage, 75 stopped: the same
    command goes on.
    """
    try:
        with output.unheard():
            options = build_parser().parse_args(argv)
            for name in options.imports:
                plugins.run(Path(name))
            return _do(options)
    except (OSError, UsageError) as error:
        print(f"dls.study: {files.described(error)}", file=sys.stderr)
        return 2


def _do(options: argparse.Namespace) -> int:
    report = _reporter()
    if options.jobs < 1:
        raise UsageError("--jobs must be 1 or more")
    planned = [
        replace(each, in_one_process=options.workers) for each in experiments.load(options.files)
    ]
    runs = [each for each in planned if fnmatchcase(each.name, options.only)]
    if not runs:
        raise UsageError(f"no run's name fits {options.only!r}; {planned[0].name} is one")
    _check_out(options.out, options.report_only)
    if options.report:
        report.prepare(options.report)
    elif options.add:
        raise UsageError("--add needs the report that it adds to: --report FOLDER")
    known = results.known(options.report, planned, options.out) if options.add else {}
    for sentence in provenance.check(runs, options.out, options.any_code or options.report_only):
        print(sentence, flush=True)
    status = (
        0 if options.report_only else run_what_is_missing(runs, options.out, options.jobs, known)
    )
    cells = {each.cell for each in runs}
    rows = results.collect(
        [each for each in planned if options.report or each.cell in cells], options.out, known
    )
    if options.report:
        report.write(rows, options.report)
    if status == processes.STOPPED:
        print("dls.study: stopped; the same command goes on", file=sys.stderr)
    else:
        print(*report.lines([row for row in rows if results.cell(row) in cells]), sep="\n")
    return status


def _reporter() -> ModuleType:
    """dls.study.report.

    UsageError, before hours of runs, where a library that it needs is missing.
    """
    try:
        return import_module("dls.study.report")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        raise UsageError(f"the report needs {missing}: pip install 'dls[study]'") from None


if __name__ == "__main__":
    sys.exit(main())
