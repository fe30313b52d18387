"""Which code this is: the files that are here, and the commit that they are of."""

from __future__ import annotations

import ast
import hashlib
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import dls

ROOT = Path(dls.__file__).parent.parent
PACKAGES = ("dls", "reference", "gpu")
BY_NAME = ("reference", "gpu", "dls/assets")
"""What training loads by name, or reads: all of it counts."""
DIGITS = 12


def version() -> str:
    """The program's version, and a hash of all its sources, the same wherever the same code runs."""
    return f"{dls.__version__}+{_hash(_below(ROOT, PACKAGES), ROOT)}"


def training_hash(method: str, root: Path = ROOT, own: Iterable[Path] = ()) -> str:
    """A hash of what a run of this method reads of the program, and of what else is its own."""
    return _hash([*_below(root, training_files(method, root)), *own], root)


def commit(method: str = "", root: Path = ROOT) -> str:
    """The git commit of the sources. Where they differ from it, or are no checkout, a + and the hash of a run come after it.

    A program that takes the place of dls.train is one of the sources, and of no commit.
    """

    def git(*args: str) -> str:
        return subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True, check=True).stdout.strip()

    own = [*_own_program(root)]
    try:
        git("ls-files", "--error-unmatch", "dls/train.py")
        head, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", *PACKAGES)
    except (OSError, subprocess.CalledProcessError):
        head, changed = "", "all"
    return f"{head}+{training_hash(method, root, own)}" if changed or own else head


def training_files(method: str, root: Path = ROOT) -> list[str]:
    """The modules of dls that `dls.train` and the method import, directly or by others, and the folders of what has no import."""
    found: set[str] = set()
    waiting = {"", "train", f"sparsifiers.{method.replace('-', '_')}"}
    while waiting:
        place = "/".join(["dls", *filter(None, waiting.pop().split("."))])
        for path in (f"{place}.py", f"{place}/__init__.py"):
            if path not in found and (root / path).exists():
                found.add(path)
                waiting.update(_imported(root / path))
    return sorted(found.union(BY_NAME))


def _imported(path: Path) -> Iterator[str]:
    """The modules of dls that a file may import, as what comes after `dls.`; imports inside functions count."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # no run can read it either, and says so
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        yield from (name.removeprefix("dls.") for name in names if name.startswith("dls."))


def _own_program(root: Path) -> Iterator[Path]:
    """The program that runs, where it is none of dls."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    path = Path(file or root / "dls").resolve()
    if not path.is_relative_to((root / "dls").resolve()):
        yield path


def _below(root: Path, names: Iterable[str]) -> list[Path]:
    """The files of these names, and those in the folders of these names."""
    places = [root / name for name in names]
    return [path for place in places for path in ([place] if place.is_file() else sorted(place.rglob("*"))) if _is_source(path)]


def _is_source(path: Path) -> bool:
    return path.is_file() and path.suffix in (".py", ".cu", ".npz")


def _hash(files: Iterable[Path], root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        digest.update(name.encode() + _content(path))
    return digest.hexdigest()[:DIGITS]


def _content(path: Path) -> bytes:
    """A file's bytes or, for a program in an archive, the archive's; none where it was read from a pipe, or is gone by now."""
    found = next((place for place in (path, *path.parents) if place.is_file()), None)
    return found.read_bytes() if found else b""
