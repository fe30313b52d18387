"""Keeps numba's machine code between runs, in a folder named after everything it depends on.

Numba's own cache considers only the file of a function. But the machine code also contains
functions and constants of other files, and vector instructions of one kind of processor. Here the
folder's name is a hash of all of these, so that other sources or another processor use another
folder. Every file starts with its checksum and is written under another name first, so that
incomplete files are never used. Ranks that compile the same function at the same time write the
same file.

If no folder can be written, the code is kept only in this process, and `notes` says so.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import pickle
import platform
import re
import time
import uuid
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import llvmlite
import numba
import numpy as np
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.dispatcher import Dispatcher
from numba.core.registry import cpu_target
from numba.core.serialize import dumps

SETTINGS = (
    "OPT",
    "LOOP_VECTORIZE",
    "SLP_VECTORIZE",
    "BOUNDSCHECK",
    "DEBUGINFO_DEFAULT",
    "USING_SVML",
)
"""Numba's settings that change machine code."""
PREFIX = "dls-"
"""How the names of the folders start."""
SUFFIX = ".code"
"""How the names of the files end."""
PACKAGES = ("gpu.numba", "gpu", "reference")
"""The packages that the machine code depends on: the first is compiled, the others only used."""
LAST = "gpu.numba.ops._sgd"
"""The function that a training step calls last: if its code is there, so is all other code."""
KEPT = 8
"""Number of folders that are kept: those used last."""
DAY = 86400.0
"""Seconds: a folder that was used within this time is kept as well."""
OURS = re.compile(PREFIX + "[0-9a-f]{20}")
"""The names of these folders; others beside them are not ours."""
PROBE = 1 << 20
"""Bytes that must fit into a folder for it to be used."""


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """`numba.njit`, with its options, for a function whose machine code is kept."""

    def decorate(function: Callable[..., Any]) -> Any:
        compiled: Any = numba.njit(**options)(function)  # noqa: TID251
        dispatches = isinstance(compiled, Dispatcher)
        if dispatches:  # it is the function itself under NUMBA_DISABLE_JIT
            compiled._cache = _CodeCache(function)
        return compiled

    return decorate


class _CodeCache(NullCache):
    """The cache of one function's machine code, as numba's dispatcher calls it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = f"{function.__module__}.{function.__qualname__}"

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        """The code for arguments of these types; None unless a complete file holds it."""
        target_context.refresh()
        for folder in folders():
            code = _read(folder / self._name(sig))
            if code is not None:
                return CompileResult._rebuild(target_context, *pickle.loads(code))
        return None

    def save_overload(self, sig: Any, cres: CompileResult) -> None:
        """Write the code to the first folder that can be written."""
        if cres.library.has_dynamic_globals:  # it holds addresses of this process
            return
        code = dumps(cres._reduce())
        any(_write(folder / self._name(sig), code) for folder in folders())

    def _name(self, sig: Any) -> str:
        return f"{self._function}-{hashlib.sha256(str(sig).encode()).hexdigest()[:16]}{SUFFIX}"


def _read(path: Path) -> bytes | None:
    """The code in a file; None if the file is missing or incomplete."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == checksum else None


def _write(path: Path, code: bytes) -> bool:
    """Write the code completely or not at all; returns whether it was written."""
    scratch = path.with_name(f"{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(hashlib.sha256(code).digest() + code)
        scratch.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            scratch.unlink()
        return False
    return True


# The folders --------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def folders() -> tuple[Path, ...]:
    """The folders for code of these sources on this processor; the first writable one is used."""
    return tuple(base / f"{PREFIX}{_key()}" for base in _bases())


def _bases() -> Iterator[Path]:
    """NUMBA_CACHE_DIR if it is set; otherwise beside the sources, then the user's cache folder."""
    if numba.config.CACHE_DIR:
        yield Path(numba.config.CACHE_DIR)
        return
    yield Path(importlib.util.cache_from_source(__file__)).parent
    with contextlib.suppress(RuntimeError):  # a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dls"


def _key() -> str:
    """A hash of everything that the machine code depends on."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for source in sorted(files(package).iterdir(), key=lambda file: file.name):
            if source.name.endswith(".py"):
                digest.update(f"{package}/{source.name}\n".encode() + source.read_bytes())
    versions: tuple[str, ...] = (platform.python_implementation(), platform.python_version())
    versions += (numba.__version__, llvmlite.__version__, np.__version__)
    settings = [(name, str(getattr(numba.config, name, None))) for name in SETTINGS]
    digest.update(repr((versions, settings, target())).encode())
    return digest.hexdigest()[:20]


def target() -> tuple[str, str, str]:
    """What numba compiles for: triple, name of the processor, and its features.

    NUMBA_CPU_NAME and NUMBA_CPU_FEATURES change them.
    """
    triple, name, features = cpu_target.target_context.codegen().magic_tuple()
    return triple, name, features


@lru_cache(maxsize=1)
def is_compiled() -> bool:
    """Whether a training step was already compiled here when this was first called."""
    for folder in folders():
        with contextlib.suppress(OSError):
            if any(name.startswith(LAST) and name.endswith(SUFFIX) for name in os.listdir(folder)):
                _mark_as_used(folder)
                return True
    return False


def _mark_as_used(folder: Path) -> None:
    """Set the folder's time to now if it is older than a day and we may change it."""
    with contextlib.suppress(OSError):
        if time.time() - folder.stat().st_mtime > DAY:
            os.utime(folder)


@lru_cache(maxsize=1)
def notes() -> tuple[str, ...]:
    """Why machine code cannot be kept, if that is so. Removes old folders if it must compile."""
    if is_compiled():
        return ()
    reasons = []
    for folder in folders():
        _remove_old(folder.parent)
        reason = _refuses(folder)
        if not reason:
            return ()
        reasons.append(f"{folder.parent}: {reason}")
    return (
        f"machine code cannot be kept ({'; '.join(reasons)}), so that every run compiles it anew; "
        "NUMBA_CACHE_DIR=FOLDER names another place",
    )


def _refuses(folder: Path) -> str:
    """Why no file can be written to the folder; empty if it can."""
    probe = folder / f"{uuid.uuid4().hex}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(PROBE))
    except OSError as error:
        return error.strerror or str(error)
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return ""


def _remove_old(base: Path) -> None:
    """Remove the folders of other sources and processors that were not used for long.

    A process that still uses one compiles the functions that it finds missing.
    """
    try:
        used = {
            each: each.stat().st_mtime
            for each in base.glob(f"{PREFIX}*")
            if OURS.fullmatch(each.name)
        }
    except OSError:  # another rank is removing them
        return
    for folder in sorted(used, key=lambda folder: -used[folder])[KEPT:]:
        if time.time() - used[folder] > DAY:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the files that this module writes, and the folder if it is then empty."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.suffix in (SUFFIX, ".tmp"):
                path.unlink()
        folder.rmdir()
