"""Writing files completely or not at all, and saying briefly why one cannot be written."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import stat
from collections.abc import Callable
from contextlib import suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

LONGEST_LINE = 1000
"""The most characters of a message."""


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, sync to disk, rename. OSError leaves no partial file behind."""
    temporary = aside(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        sync(temporary)
        publish(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def aside(path: Path) -> Path:
    """A temporary name beside the path.

    A file of that name, which an earlier process left, is removed; where it cannot be, the next
    name is taken.
    """
    for number in itertools.count(1):
        temporary = path.with_name(f"{path.name}.partial{'' if number == 1 else f'-{number}'}")
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if not os.path.lexists(temporary):  # where nothing can be written, the writing will say so
            break
    return temporary


def check_folder(path: Path) -> None:
    """Raise the OSError that writing to a folder would meet; the folder need not exist.

    Nothing is written.
    """
    existing = path
    while not (found := _look(existing)):
        existing = existing.parent
    for name in path.parts[len(existing.parts) :]:
        _look(existing / name)  # whether it is too long
    if not stat.S_ISDIR(found.st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(existing).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), str(path))


def _look(path: Path) -> os.stat_result | None:
    """The status of what has that name, None where nothing does. OSError.

    A dangling link counts as a file that is in the way.
    """
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            return path.lstat()
        if path == path.parent:
            raise
        return None


def obstacle(path: Path) -> str:
    """Why a file cannot be written there, in a few words; empty where it probably can."""
    try:
        if path.is_dir():
            return "that is a folder"
        if not path.parent.is_dir():
            return f"there is no folder {path.parent}"
        check_folder(path.parent)
        if _look(path) and not os.access(path, os.W_OK):
            return os.strerror(errno.EACCES)
    except OSError as error:
        return reason(error)
    return ""


def json_text(value: Any, indent: int, default: Callable[[Any], Any] | None = None) -> str:
    """The value as JSON, with null for NaN and infinity.

    default: makes something of a value of a type that JSON does not have.
    """
    text = json.dumps(value, default=default)
    return json.dumps(
        json.loads(text, parse_constant=lambda _: None), indent=indent, allow_nan=False
    )


def publish(written: Path, final: Path) -> None:
    """Give a complete file or folder its final name, and sync that to disk."""
    os.replace(written, final)
    sync(final.parent)


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file to read. OSError for anything else: a pipe would be waited for."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    number = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
    raise OSError(
        number,
        os.strerror(errno.EISDIR) if stat.S_ISDIR(kind) else "it is no plain file",
        str(path),
    )


def sync(path: Path) -> None:
    """Sync a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def one_line(text: str) -> str:
    """A message as one line without control characters, of limited length.

    It may quote what came from elsewhere.
    """
    words = " ".join(text.split())
    plain = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in words
    )
    return plain if len(plain) <= LONGEST_LINE else plain[:LONGEST_LINE] + " …"


def reason(error: BaseException) -> str:
    """Why the system refused, in its own words; HDF5 puts the errno into a long text."""
    if isinstance(error, OSError) and error.strerror and not error.strerror.count("="):
        return error.strerror
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    number = re.search(r"errno = (\d+)", str(error))
    return (
        os.strerror(int(number[1]))
        if number
        else (str(error).splitlines() or [type(error).__name__])[0]
    )


def described(error: BaseException) -> str:
    """An error in words: for a file its name and the reason, else the error's own text."""
    named = isinstance(error, OSError) and error.filename is not None
    return f"{error.filename}: {reason(error)}" if named else str(error)  # type: ignore[attr-defined]
