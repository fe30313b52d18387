"""Whether the runs of a study were made by the code that is there now, as far as training reads it.

A trace names the commit of its run, or several where a resume brought another. What differs between a commit and the files as
they are counts where a run of its method could have read it: a change of the documentation, of a tool that looks at runs, or of
another method makes no other run. Where the files were no commit's, the trace has a hash of them.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from dls import sources, trace
from dls.config import UsageError
from dls.study.experiments import Experiment

HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
SHOWN = 3
"""Changed files that a message names."""


def changed(commit: str, method: str, root: Path = sources.ROOT) -> list[str] | None:
    """The files, of those that a run of the method reads, that differ between a commit and now, new ones too; None: nobody knows.

    commit: what `sources.commit` said.
    """
    head, dirty, digest = commit.partition("+")
    if dirty and digest:
        return [] if digest == sources.training_hash(method, root) else ["files that were of no commit"]
    if dirty or not HASH.fullmatch(head):  # a trace is anybody's file, and git takes a word that begins with - for an option
        return None
    files = sources.training_files(method, root)
    try:
        differ = _git(root, "diff", "--name-only", head, "--", *files)
        new = _git(root, "ls-files", "--others", "--exclude-standard", "--", *files)
    except (OSError, subprocess.CalledProcessError):
        return None
    return [name for name in (*differ, *new) if not name.endswith(".md")]


def _git(root: Path, *args: str) -> list[str]:
    return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True).stdout.splitlines()


def commits(runs: Sequence[Experiment], out: Path) -> dict[tuple[str, str], list[str]]:
    """The commits of the runs that have begun, with their methods, and the names of the runs. UsageError for a damaged trace.

    A run without a checkpoint starts afresh, whatever else is there.
    """
    found: dict[tuple[str, str], dict[str, None]] = {}
    for run in runs:
        for path in trace.series(out / run.name) if (out / run.name / "checkpoints").exists() else ():
            try:
                text = str(trace.read(path).header.attributes.get("commit", ""))
            except trace.TraceError as error:
                raise UsageError(str(error)) from None
            for commit in text.split() or [""]:
                found.setdefault((commit, str(run.settings["method"])), {})[run.name] = None
    return {key: [*names] for key, names in found.items()}


def short(commit: str) -> str:
    """A commit as people read it: twelve digits, and what tells the files apart where they differed from it."""
    head, dirty, digest = commit.partition("+")
    return f"{head[:12] or 'no checkout'}{dirty}{digest[:6]}"


def notes(runs: Sequence[Experiment], out: Path, root: Path = sources.ROOT) -> tuple[list[str], list[str]]:
    """Two lists of sentences: runs whose code has changed since, and runs of which that cannot be told."""
    differ, unknown = [], []
    for (commit, method), names in commits(runs, out).items():
        files = changed(commit, method, root)
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        if files is None:
            unknown.append(f"{names[0]}{others}: of {short(commit)}")
        elif files:
            more = f" and {len(files) - SHOWN} more" if len(files) > SHOWN else ""
            differ.append(f"{names[0]}{others}: since {short(commit)}, {', '.join(files[:SHOWN])}{more}")
    return differ, unknown


def check(runs: Sequence[Experiment], out: Path, any_code: bool) -> list[str]:
    """Sentences on what cannot be told, or was let pass. UsageError where code has changed since a run, unless any will do."""
    differ, unknown = notes(runs, out)
    if differ and not any_code:
        found = "; ".join(differ)
        raise UsageError(f"code has changed since runs were made ({found}); move those runs away, or keep them with --any-code")
    kept = [f"kept, though code has changed: {each}" for each in differ]
    return kept + [f"whether code has changed cannot be told: {each}" for each in unknown]
