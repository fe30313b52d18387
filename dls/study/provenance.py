"""Whether the runs of a study were made by the code that is there now, as far as training reads it.

A trace tells what its run read of the program, or several such states where a resume brought
another (`dls.program.sources`): a change of the documentation, of a tool that looks at runs, or of
another method makes no other run.
"""

from __future__ import annotations

from collections.abc import Sequence
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
    """The files, of those that a run of the method reads, that differ between a state and now;
    None: nobody knows.
    """
    then = sources.resolved(state, method, root)
    return None if then is None else then.differing(sources.state(method, root))


def states(runs: Sequence[Experiment], out: Path) -> dict[tuple[State, str], list[str]]:
    """Those of the runs that have begun, with their methods, and the names of the runs.

    UsageError for a damaged trace.

    A run without a checkpoint starts afresh, whatever else is there.
    """
    found: dict[tuple[State, str], dict[str, None]] = {}
    for run in runs:
        for path in (
            reader.series(out / run.name) if (out / run.name / "checkpoints").exists() else ()
        ):
            try:
                attributes = reader.read(path).header.attributes
            except TraceError as error:
                raise UsageError(str(error)) from None
            for state in sources.states(attributes):
                found.setdefault((state, str(run.settings["method"])), {})[run.name] = None
    return {key: [*names] for key, names in found.items()}


def short(commit: str) -> str:
    """A commit as people read it: twelve digits, and what tells the files apart where they differed
    from it.
    """
    head, dirty, digest = commit.partition("+")
    return f"{head[:12] or 'no checkout'}{dirty}{digest[:6]}"


def head(commit: str) -> str:
    """The same without what tells the files of one method from those of another."""
    digits, dirty, _ = short(commit).partition("+")
    return digits + " with changes" * bool(dirty)


def notes(
    runs: Sequence[Experiment], out: Path, root: Path = sources.ROOT
) -> tuple[list[str], list[str]]:
    """Two lists of sentences: runs whose code has changed since, and runs of which that cannot be
    told.
    """
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
    """Sentences on what cannot be told, or was let pass.

    UsageError where code has changed since a run, unless any will do.
    """
    differ, unknown = notes(runs, out)
    if differ and not any_code:
        found = "; ".join(differ)
        raise UsageError(
            f"code has changed since runs were made ({found}); move those runs away, or keep them"
            " with --any-code"
        )
    kept = [f"kept, though code has changed: {each}" for each in differ]
    return kept + [f"whether code has changed cannot be told: {each}" for each in unknown]
