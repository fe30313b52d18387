"""Which code this is: the files that are here, and the commit that they are of.

Two runs are of one state where their trainings read the same: `dls.train` and the method with all
that they import, and what is loaded by name. Another method, a tool or a page beside them makes no
other state.
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
"""What training loads by name, or reads: all of it counts.

The last is where older commits have the digits.
"""
METHODS = ("exchange.methods", "sparsifiers")
"""The packages of the methods; the last is where older commits have them."""
OF_NO_COMMIT = "files that were of no commit"


@dataclass(frozen=True)
class State:
    """What a training read of the program: a hash of all of it; of each file, where that is known;
    the commit as `commit` has it.

    The hash is empty where a trace names a commit alone. States are equal by hash and commit;
    `same` asks for more.
    """

    digest: str
    commit: str = ""
    files: Mapping[str, str] = field(default_factory=dict, compare=False)

    def to_text(self) -> str:
        """For a trace: the hash of all, then a line for each file with its own."""
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
    """What a run of this method would read now, and what else is its own."""
    files = [*files_below(root, training_files(method, root)), *own, *imported()]
    named = _named(sorted(files), root)
    return State(
        hash_files(files, root), "", {name: hash_files([named[name]], root) for name in named}
    )


def state_of_run(method: str, root: Path = ROOT) -> State:
    """That of the run that this process is."""
    return state(method, root, _own_program(root))


def states(attributes: Mapping[str, Any]) -> list[State]:
    """Those that a trace's attributes tell of: one, or those of the programs that went on with the
    run, in order.
    """
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
    """The state with its hash, which a commit alone has in this checkout's history; None where that
    does not know it.
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
    """Whether two runs of a method are of one state: their hashes, or else their commits, are the
    same.
    """
    ones, others = list(ones), list(others)
    if ones == others:
        return True
    known = [[resolved(each, method, root) for each in each_run] for each_run in (ones, others)]
    return None not in known[0] and [each and each.digest for each in known[0]] == [
        each and each.digest for each in known[1]
    ]


def training_hash(method: str, root: Path = ROOT, own: Iterable[Path] = ()) -> str:
    """A hash of what a run of this method reads of the program, and of what else is its own."""
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
    """The modules of dls that `dls.train` and the method import, directly or by others, and the
    folders of what has no import.
    """
    found: set[str] = set()
    waiting = {"", "train", *(f"{package}.{method.replace('-', '_')}" for package in METHODS)}
    waiting |= {name for path in imported() for name in _imported(path.read_bytes())}
    while waiting:
        name = waiting.pop()
        place = "/".join(["dls", *filter(None, name.split("."))])
        for path in (f"{place}.py", f"{place}/__init__.py"):
            if path not in found and (root / path).exists():
                found.add(path)
                waiting.add(
                    name.rpartition(".")[0]
                )  # the package that it is in is imported with it
                waiting.update(_imported((root / path).read_bytes()))
    return sorted(found.union(BY_NAME))


def imported() -> list[Path]:
    """The files that `--import` has run.

    They count for every run, as each may bring a method, a model or a data set.
    """
    modules = [module for name, module in sys.modules.items() if name.startswith(PREFIX)]
    return [Path(module.__file__) for module in modules if module.__file__]


@lru_cache(maxsize=1024)
def _imported(source: bytes) -> tuple[str, ...]:
    """The modules of dls that a source may import, as what comes after `dls.`; imports inside
    functions count.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # no run can read it either, and says so
        return ()
    names: list[str] = []
    for node in _statements(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return tuple(name.removeprefix("dls.") for name in names if name.startswith("dls."))


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node, and what holds some; expressions, of which there are many times
    more, hold none.
    """
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
    """Files by name; one from elsewhere whose name is taken has folders before it, as it needs."""
    named: dict[str, Path] = {}
    for path in dict.fromkeys(files):
        name, above = name_of(path, root), iter(path.parents)
        while name in named:
            name = f"{next(above).name}/{name}"
        named[name] = path
    return named
