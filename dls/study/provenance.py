"""Whether the runs of a study were made by the code that is there now, as far as training reads it.

A trace tells what its run read of the program, or several such states where a resume brought
another (`dls.program.sources`): a change of the documentation, of a tool that looks at runs, or of
another method makes no other run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from dls.cli import UsageError
from dls.program import sources
from dls.program.sources import State
from dls.record import reader
from dls.record.schema import TraceError
from dls.study.experiments import Experiment

SHOWN = 3
"""Changed files that a message names."""


def changed(state: State, method: str, root: Path = sources.ROOT) -> list[str] | None:
    """The files that a run of the method reads and that differ between a state and now.

    None where that cannot be told.
    """
    then = sources.resolved(state, method, root)
    return None if then is None else then.differing(sources.state(method, root))


def states(runs: Sequence[Experiment], out: Path) -> dict[tuple[State, str], list[str]]:
    """The states of code that runs were made by, each with a method; the names of its runs.

    A run without a checkpoint does not count: it starts afresh, whatever else is there. UsageError
    for a damaged trace.
    """
    names: dict[tuple[State, str], dict[str, None]] = {}
    for run in runs:
        for state in _states(out / run.name):
            names.setdefault((state, str(run.settings["method"])), {})[run.name] = None
    return {key: [*of_runs] for key, of_runs in names.items()}


def _states(folder: Path) -> Iterator[State]:
    """The states of code that the run in a folder was made by."""
    if not (folder / "checkpoints").exists():
        return
    for path in reader.trace_files(folder):
        try:
            attributes = reader.read(path).header.attributes
        except TraceError as error:
            raise UsageError(str(error)) from None
        yield from sources.states(attributes)


def short(commit: str) -> str:
    """A commit in short: twelve digits and, where files differed from it, what identifies them."""
    head, dirty, digest = commit.partition("+")
    return f"{head[:12] or 'no checkout'}{dirty}{digest[:6]}"


def head(commit: str) -> str:
    """A commit in short, and whether files differed from it."""
    digits, changed, _ = short(commit).partition("+")
    return f"{digits} with changes" if changed else digits


def notes(
    runs: Sequence[Experiment], out: Path, root: Path = sources.ROOT
) -> tuple[list[str], list[str]]:
    """Two lists of sentences: runs whose code has changed since, and runs where nobody knows."""
    differ, unknown = [], []
    for (state, method), names in states(runs, out).items():
        files = changed(state, method, root)
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        if files is None:
            unknown.append(f"{names[0]}{others}: of {short(state.commit)}")
        elif files:
            more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
            differ.append(
                f"{names[0]}{others}: since {short(state.commit)}, {', '.join(files[:SHOWN])}{more}"
            )
    return differ, unknown


def check(runs: Sequence[Experiment], out: Path, any_code: bool) -> list[str]:
    """Sentences about runs that are kept though their code has changed, or may have.

    UsageError where code has changed since a run, unless any_code.
    """
    differ, unknown = notes(runs, out)
    if differ and not any_code:
        which = "; ".join(differ)
        raise UsageError(
            f"code has changed since runs were made ({which}); move those runs away, or keep them"
            " with --any-code"
        )
    kept = [f"kept, though code has changed: {each}" for each in differ]
    return kept + [f"whether code has changed cannot be told: {each}" for each in unknown]
