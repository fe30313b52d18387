"""Which code this is: the files that are here, and the commit that they are of."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import dls

ROOT = Path(dls.__file__).parent.parent
PACKAGES = ("dls", "reference", "gpu")


def fingerprint(root: Path = ROOT) -> str:
    """A hash of all sources, the same wherever the same code runs: 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted(path for path in (root / package).rglob("*") if path.suffix in (".py", ".cu")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def version() -> str:
    """The program's version, and the hash of its sources."""
    return f"{dls.__version__}+{fingerprint()}"


def commit(root: Path = ROOT) -> str:
    """The git commit of the sources. Where they differ from it, or are no checkout, a + and their hash come after it."""

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "dls/train.py")
        head, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", *PACKAGES)
    except (OSError, subprocess.CalledProcessError):
        head, changed = "", "all"
    return f"{head}+{fingerprint(root)}" if changed else head
