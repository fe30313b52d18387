"""Whether the runs of a study were made by the code that is there now, as far as training reads it.

A trace names the commit of its run, or several where a resume brought another. What differs between a commit and the files as
they are counts where `dls.train` could have read it: a change of the documentation, or of a tool that looks at runs, makes no
other run. Where the files were no commit's, the trace has a hash of them: the one of the files as they are, or it tells nothing.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from dls import sources, trace
from dls.config import UsageError
from dls.study.experiments import Experiment

BY_NAME = ("reference", "gpu", "dls/sparsifiers", "dls/assets")
"""What is loaded by name, or read: all of it counts."""
HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
SHOWN = 3
"""Changed files that a message names."""


def training_files(root: Path = sources.ROOT) -> list[str]:
    """What of dls `dls.train` imports, directly or by others, packages as a whole, and the folders that are loaded by name."""
    found, waiting = {"dls/__init__.py"}, {"train"}
    while waiting:
        name = waiting.pop()
        paths = [path for path in (f"dls/{name}.py", f"dls/{name}") if (root / path).exists() and path not in found]
        found.update(paths)
        waiting.update(other for path in paths for source in _sources(root / path) for other in _imported(source))
    return sorted(found.union(BY_NAME))


def _sources(path: Path) -> Sequence[Path]:
    """The file, or those of a package."""
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def _imported(path: Path) -> Iterator[str]:
    """The modules of dls that a file names in its imports, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "dls":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from node.module.split(".")[1:2] if node.module.startswith("dls.") else ()
        elif isinstance(node, ast.Import):
            yield from (alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dls."))


def changed(commit: str, root: Path = sources.ROOT) -> list[str] | None:
    """The files, of those that training reads, that differ between a commit and now, new ones too; None where it cannot be told.

    commit: what `sources.commit` said.
    """
    if commit.endswith(f"+{sources.fingerprint(root)}"):
        return []
    if not HASH.fullmatch(commit):  # a trace is anybody's file, and git takes a word that begins with - for an option
        return None
    files = training_files(root)
    try:
        differ = _git(root, "diff", "--name-only", commit, "--", *files)
        new = _git(root, "ls-files", "--others", "--exclude-standard", "--", *files)
    except (OSError, subprocess.CalledProcessError):
        return None
    return [name for name in (*differ, *new) if not name.endswith(".md")]


def _git(root: Path, *args: str) -> list[str]:
    return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True).stdout.splitlines()


def commits(runs: Sequence[Experiment], out: Path) -> dict[str, list[str]]:
    """The commits of the runs that have begun, each with the names of its runs. UsageError where a trace cannot be read.

    A run without a checkpoint starts afresh, whatever else is there.
    """
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for path in trace.series(out / run.name) if (out / run.name / "checkpoints").exists() else ():
            try:
                text = str(trace.read(path).header.attributes.get("commit", ""))
            except trace.TraceError as error:
                raise UsageError(str(error)) from None
            for commit in text.split() or [""]:
                found.setdefault(commit, {})[run.name] = None
    return {commit: [*names] for commit, names in found.items()}


def short(commit: str) -> str:
    """A commit as people read it: twelve digits, and a + where the files differed from it."""
    head, changed, _ = commit.partition("+")
    return (head[:12] or "no checkout") + "+" * bool(changed and head)


def notes(runs: Sequence[Experiment], out: Path, root: Path = sources.ROOT) -> tuple[list[str], list[str]]:
    """Two lists of sentences: runs whose code has changed since, and runs of which that cannot be told."""
    differ, unknown = [], []
    for commit, names in commits(runs, out).items():
        files = changed(commit, root)
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
        raise UsageError(f"code has changed since runs were made ({found}); move them away, or keep them with --any-code")
    kept = [f"kept, though code has changed: {each}" for each in differ]
    return kept + [f"whether code has changed cannot be told: {each}" for each in unknown]
