"""Which code a run used: a hash of its source files, and the commit that they come from.

Two runs used the same state of the code if `dls.train`, their method, everything these import and
everything they load by name are the same. Other methods, tools or pages do not matter.
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from dls import version as origins
from dls.program.plugins import PREFIX
from dls.version import files_below, hash_files, name_of

ROOT = origins.ROOT
"""The folder that holds the packages of this program."""
BY_NAME = ("reference", "gpu", "dls/tasks/assets", "dls/assets")
"""Folders from which training loads modules by name, or reads files: all of them count.

The last one holds the digits in older commits.
"""
METHODS = ("exchange.methods", "sparsifiers")
"""The packages of the methods; the last one is that of older commits."""
OF_NO_COMMIT = "files that were of no commit"
"""Stands for the names of differing files where they are not known."""


@dataclass(frozen=True)
class State:
    """The state of the code that a run used.

    digest: a hash of all files; "" where a trace names only a commit. commit: as `commit` returns
    it. files: a hash of each file, where they are known. States are equal if digest and commit are;
    `same` compares more thoroughly.
    """

    digest: str
    commit: str = ""
    files: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_text(self) -> str:
        """For a trace: the digest, then a line for each file with its hash."""
        return "\n".join(
            [self.digest, *(f"{digest} {name}" for name, digest in self.files.items())]
        )

    def differing(self, other: State) -> list[str]:
        """The files in which it differs from another state."""
        if self.digest == other.digest:
            return []
        if not (self.files and other.files):
            return [OF_NO_COMMIT]
        names = sorted(self.files.keys() | other.files.keys())
        return [name for name in names if self.files.get(name) != other.files.get(name)]


def version() -> str:
    """The program's version and a hash of all sources, the same wherever the same code runs."""
    files = [*files_below(ROOT, origins.PACKAGES), *imported()]
    return f"{origins.__version__}+{hash_files(files, ROOT)}"


def state(method: str, root: Path = ROOT, own: Iterable[Path] = ()) -> State:
    """The state that a run of this method would use now. own: further files of the run."""
    files = [*files_below(root, training_files(method, root)), *own, *imported()]
    named = _named(sorted(files), root)
    return State(
        hash_files(files, root), "", {name: hash_files([named[name]], root) for name in named}
    )


def state_of_run(method: str, root: Path = ROOT) -> State:
    """The state of the run in this process."""
    return state(method, root, _own_program(root))


def states(attributes: Mapping[str, Any]) -> list[State]:
    """The states in a trace's attributes: one for each program that took part in the run."""
    commits = str(attributes.get("commit", "")).split() or [""]
    texts = attributes.get("sources") or []
    if texts:
        return [
            _from_text(str(text), commit or "")
            for text, commit in zip_longest(texts, commits[: len(texts)])
        ]
    return [State(commit.partition("+")[2], commit) for commit in commits]


def _from_text(text: str, commit: str) -> State:
    digest, *lines = text.splitlines() or [""]
    pairs = (line.partition(" ") for line in lines)
    return State(digest, commit, {name: own for own, _, name in pairs})


@lru_cache(maxsize=256)
def resolved(found: State, method: str, root: Path) -> State | None:
    """The state with its digest, which may have to be computed from the commit.

    None where this checkout's history does not hold the commit.
    """
    if found.digest:
        return found
    if not origins.COMMIT.fullmatch(found.commit):
        return None
    try:
        command = ["git", "-C", str(root), "archive", "--format=tar", found.commit]
        archive = subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    with (
        tempfile.TemporaryDirectory() as folder,
        tarfile.open(fileobj=io.BytesIO(archive)) as files,
    ):
        files.extractall(folder, filter="data")
        return replace(state(method, Path(folder)), commit=found.commit)


def same(ones: Iterable[State], others: Iterable[State], method: str, root: Path) -> bool:
    """Whether two runs of a method used the same code: the same digests, or else commits."""
    ones, others = list(ones), list(others)
    if ones == others:
        return True
    known = [[resolved(each, method, root) for each in each_run] for each_run in (ones, others)]
    return None not in known[0] and [each and each.digest for each in known[0]] == [
        each and each.digest for each in known[1]
    ]


def training_hash(method: str, root: Path = ROOT, own: Iterable[Path] = ()) -> str:
    """The digest of `state`."""
    return state(method, root, own).digest


def commit(method: str = "", root: Path = ROOT) -> str:
    """The git commit of the sources, in a checkout or in a wheel.

    A + and the hash of a run follow where the sources differ from the commit, or where none is
    known. A program of the user's that calls dls.train, and files that `--import` has run, are
    sources too, and belong to no commit.
    """
    own = [*_own_program(root), *imported()]
    found = origins.origin(root)
    if not found.changed and not own:
        return found.commit
    return f"{found.commit}+{training_hash(method, root, own)}"


def training_files(method: str, root: Path = ROOT) -> list[str]:
    """The modules that `dls.train` and the method import, directly or indirectly, and BY_NAME."""
    found: set[str] = set()
    waiting = {"", "train", *(f"{package}.{method.replace('-', '_')}" for package in METHODS)}
    waiting |= {name for path in imported() for name in _imported(path.read_bytes())}
    while waiting:
        name = waiting.pop()
        stem = "/".join(["dls", *filter(None, name.split("."))])
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if path not in found and (root / path).exists():
                found.add(path)
                waiting.add(name.rpartition(".")[0])  # its package is imported, too
                waiting.update(_imported((root / path).read_bytes()))
    return sorted(found.union(BY_NAME))


def imported() -> list[Path]:
    """The files that `--import` has run. They count for every run, whatever they register."""
    modules = [module for name, module in sys.modules.items() if name.startswith(PREFIX)]
    return [Path(module.__file__) for module in modules if module.__file__]


@lru_cache(maxsize=1024)
def _imported(source: bytes) -> tuple[str, ...]:
    """The modules of dls that a source file imports, also in functions, without `dls.`."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # a run reports such a file itself
        return ()
    names: list[str] = []
    for node in _statements(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return tuple(name.removeprefix("dls.") for name in names if name.startswith("dls."))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node. Expressions, of which there are many more, are passed over."""
    for part in ("body", "orelse", "finalbody", "handlers", "cases"):
        for statement in getattr(node, part, ()):
            yield statement
            yield from _statements(statement)


def _own_program(root: Path) -> Iterator[Path]:
    """The user's program that calls dls.train, if there is one."""
    file = getattr(sys.modules["__main__"], "__file__", None)
    path = Path(file or root / "dls").resolve()
    if not path.is_relative_to((root / "dls").resolve()):
        yield path


def _named(files: Iterable[Path], root: Path) -> dict[str, Path]:
    """Files by name. Where names would collide, folders are put before them."""
    named: dict[str, Path] = {}
    for path in dict.fromkeys(files):
        name, above = name_of(path, root), iter(path.parents)
        while name in named:
            name = f"{next(above).name}/{name}"
        named[name] = path
    return named
