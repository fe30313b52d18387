"""Which version this is, and of which commit: of a git checkout, or of an installed wheel.

A wheel holds `build.json`, which the build writes (hatch_build.py). Standard library alone, as the
build loads this file by its path.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

__version__ = "0.1.0"

ROOT = Path(__file__).parent.parent
"""The folder in which the packages are."""
PACKAGES = ("dls", "reference", "gpu")
"""What is installed."""
SUFFIXES = (".py", ".cu", ".npz")
"""Files that count as sources."""
BUILD_FILE = "dls/build.json"
"""Where a wheel says of which commit it is."""
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
"""A whole commit hash."""
DIGITS = 12
"""Digits of a hash of sources, and of a commit in the version."""


@dataclass(frozen=True)
class Origin:
    """The commit that sources come from ("": unknown), and whether they differ from it."""

    commit: str
    changed: bool

    def short(self) -> str:
        """For people: 12 digits, with a + where the sources differ."""
        return self.commit[:DIGITS] + "+" * self.changed


NOWHERE = Origin("", True)
"""Sources of no known commit."""


def origin(root: Path = ROOT) -> Origin:
    """Of which commit the sources below `root` are: what git says, or the wheel's build."""
    from_git = of_checkout(root)
    return from_git if from_git.commit else _of_build(root)


def of_checkout(root: Path) -> Origin:
    """What git says of a checkout's sources; NOWHERE where `root` is none."""
    try:
        _git(root, "ls-files", "--error-unmatch", "dls/train.py")
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--", *PACKAGES)
    except (OSError, subprocess.CalledProcessError):
        return NOWHERE
    return Origin(commit, bool(changes))


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _of_build(root: Path) -> Origin:
    """The commit that the build wrote, and whether the files have changed since."""
    try:
        about = json.loads((root / BUILD_FILE).read_text(encoding="utf-8"))
        commit, sources = str(about["commit"]), str(about["sources"])
    except (OSError, ValueError, KeyError, TypeError):
        return NOWHERE
    if not COMMIT.fullmatch(commit):
        return NOWHERE
    return Origin(commit, bool(about.get("changed")) or sources != hash_of(root))


def build_record(root: Path) -> str | None:
    """The text of BUILD_FILE for a build from `root`; None where its commit is unknown."""
    found = origin(root)
    if not found.commit:
        return None
    about = {"commit": found.commit, "changed": found.changed, "sources": hash_of(root)}
    return json.dumps(about) + "\n"


def hash_of(root: Path) -> str:
    """A hash of all sources below `root`."""
    return hash_files(files_below(root, PACKAGES), root)


def files_below(root: Path, names: Iterable[str]) -> list[Path]:
    """The source files of these names, and those in the folders of these names."""
    found: list[Path] = []
    for place in (root / name for name in names):
        paths = [place] if place.is_file() else sorted(place.rglob("*"))
        found += [path for path in paths if path.is_file() and path.suffix in SUFFIXES]
    return found


def hash_files(files: Iterable[Path], root: Path) -> str:
    """A hash of files' names, relative to `root` where they lie there, and contents."""
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(name_of(path, root).encode() + content(path))
    return digest.hexdigest()[:DIGITS]


def name_of(path: Path, root: Path) -> str:
    """A file's name relative to `root`; its last part where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def content(path: Path) -> bytes:
    """A file's bytes; for a program in an archive, the archive's; none where there is no file."""
    found = next((place for place in (path, *path.parents) if place.is_file()), None)
    return found.read_bytes() if found else b""


def described() -> str:
    """The version with its commit, for `--version`."""
    found = origin()
    return f"dls {__version__}" + (f" (commit {found.short()})" if found.commit else "")
