"""`python -m dls.study FILE…`: runs every method of an experiment file at every density and seed, and reports what they reached.

Every run is an ordinary `mpirun python -m dls.train --resume=auto`: what was interrupted goes on, what is complete stays, and
a run that was made with other settings, or by code that has changed since, is named, never reused in silence. Seeds come one
after the other, each with all methods, so that early results already compare.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from dls import experiments, study_code, study_report, study_results
from dls.config import UsageError
from dls.experiments import Experiment
from dls.hosts import HostsError


def perform(experiment: Experiment, out: Path) -> int:
    """Run it to its end, what it says going to a file beside its folder. Returns its exit status, 0 where it is complete."""
    if experiments.is_complete(experiment, out):
        return 0
    log = out / f"{experiment.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    with log.open("a", encoding="utf-8") as file:
        command = experiment.command(out)
        print(f"$ {shlex.join(command)}", file=file, flush=True)
        return subprocess.run(command, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


def run_all(runs: Sequence[Experiment], out: Path, jobs: int) -> int:
    """Run what is not complete, so many at a time, and say how each ends. Returns how many failed.

    A run that was asked to stop (status 75) stops the study.
    """
    failed, done = 0, 0
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(perform, experiment, out): experiment for experiment in runs}
        try:
            for future in as_completed(waiting):
                status, name = future.result(), waiting[future].name
                if status == os.EX_TEMPFAIL:
                    raise UsageError(f"{name} was stopped; the same command goes on")
                failed, done = failed + bool(status), done + 1
                print(f"{done} of {len(runs)}: {name}" + (f" failed, see {out / name}.log" if status else ""), flush=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # what waits is not begun; the block waits for what runs
    return failed


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m dls.study", description="Run a study, or go on with it, and report on it.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="experiments, see runs/study/")
    parser.add_argument("--out", type=Path, default=Path("runs/study-out"), help="where the runs go (runs/study-out)")
    parser.add_argument("--report", type=Path, help="write study.md, study.json and study.png to this folder")
    parser.add_argument("--report-only", action="store_true", help="run nothing; report on what is complete")
    parser.add_argument("--only", default="", help="of the runs those whose name holds this text")
    parser.add_argument("--any-code", action="store_true", help="keep, and go on with, runs of code that has changed since")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (1)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0 all runs are complete, 1 some failed, 2 bad usage, or the study was stopped."""
    options = build_parser().parse_args(argv)
    try:
        if options.jobs < 1:
            raise UsageError("--jobs must be 1 or more")
        runs = [each for path in options.files for each in experiments.load(path) if options.only in each.name]
        if not runs:
            raise UsageError(f"no run's name holds {options.only!r}")
        for sentence in study_code.check(runs, options.out, options.any_code or options.report_only):
            print(sentence, flush=True)
        failed = 0 if options.report_only else run_all(runs, options.out, options.jobs)
        rows = study_results.collect(runs, options.out)
        if options.report:
            study_report.write(rows, options.report)
        for line in study_report.lines(rows):
            print(line)
    except (UsageError, HostsError) as error:
        print(f"dls.study: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("dls.study: interrupted; the same command goes on", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
