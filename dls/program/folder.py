"""The folder of a run: whether it can be used, its lock, and its configuration file."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from dls.cli import UsageError
from dls.comm.base import Comm
from dls.program.config import Config
from dls.record import files, lock, reader
from dls.record.checkpoint import Checkpoint
from dls.record.lock import Lock

RUNS = Path("runs")
"""Where the folders of runs without `--out` are made."""


def check_out(resume: str, out: str) -> None:
    """UsageError where `out` cannot be the run's folder."""
    if resume != "never" and not out:
        raise UsageError("--resume needs --out, the folder of the run to go on with")
    folder = Path(out) if out else RUNS
    with _writing(folder):
        files.check_folder(folder)
        if resume == "never" and out and _holds_run(folder):
            raise UsageError(
                f"{out} already holds a run; add --resume to go on with it, or choose another --out"
            )


def claim(out: Path, own: Lock, patience: float) -> None:
    """Lock a folder that holds a run, before it is read.

    patience: seconds to wait for the lock. UsageError where another process keeps it.
    """
    with _writing(out):
        if _holds_run(out):
            own.take(out, patience)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """UsageError where the folder cannot be written, or another run uses it."""
    try:
        yield
    except FileExistsError as error:
        raise UsageError(f"{error.filename} is in the way; choose another --out") from None
    except OSError as error:
        where = error.filename or out
        raise UsageError(f"cannot write to {where}: {files.reason(error)}") from None
    except lock.InUse as error:
        raise UsageError(str(error)) from None


def _holds_run(out: Path) -> bool:
    has_parts = any((out / name).exists() for name in ("config.toml", "checkpoints"))
    return has_parts or bool(reader.trace_files(out))


def make(settings: Config, resumed: Checkpoint | None, own: Lock) -> tuple[Path, list[str]]:
    """Make and lock the run's folder and write its configuration there.

    Returns the folder and lines for the user. UsageError where it cannot be written, or another
    run took it meanwhile.
    """
    name = f"{settings.dataset}-{settings.model}-{settings.method}-{datetime.now():%Y%m%d-%H%M%S}"
    out = Path(settings.out or RUNS / name)
    notes: list[str] = []
    with _writing(out):
        out = out if settings.out else _fresh(out)
        out.mkdir(parents=True, exist_ok=True)
        _lock(out, own)
        if own.missing:
            notes.append(
                f"{out} has no lock ({own.missing}): see to it that no second run writes there"
            )
        if resumed is None:
            _remove_traces(out)
        notes += _write_settings(out, settings, must_succeed=resumed is None)
    return out, notes


def _lock(out: Path, own: Lock) -> None:
    if own.taken:
        return
    own.take(out)
    if _holds_run(out):
        raise UsageError(
            f"another run was faster, and has just begun in {out}; choose another --out"
        )


def _remove_traces(out: Path) -> None:
    """Remove those of an earlier run that wrote no checkpoint."""
    for path in reader.trace_files(out):
        path.unlink()


def _write_settings(out: Path, settings: Config, must_succeed: bool) -> list[str]:
    """Write config.toml. Returns a line for the user where it fails and need not succeed."""
    path = out / "config.toml"
    try:
        files.write_text(path, replace(settings, out=str(out)).to_toml())
    except OSError as error:
        if must_succeed:
            raise
        why = files.reason(error)
        return [f"{path} cannot be replaced ({why}); the checkpoints have the settings"]
    return []


def _fresh(wanted: Path) -> Path:
    """Make a folder that no other run has: the wanted one, or one with -2, -3, … appended."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    folder = wanted
    for number in itertools.count(2):
        try:
            folder.mkdir()
        except FileExistsError:
            folder = wanted.with_name(f"{wanted.name}-{number}")
        else:
            break
    return folder


def check_visible(out: Path, comm: Comm) -> None:
    """UsageError where this rank does not see the folder, in which all ranks write checkpoints."""
    if not os.path.exists(out / "config.toml"):
        raise UsageError(
            f"rank {comm.rank} on {comm.host} does not see {out}: --out must lie on a disk that all"
            " hosts share"
        )
