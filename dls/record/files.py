"""Files that are whole or not there, why one cannot be written, in a few words, and what may stand
in one.
"""

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
"""Characters."""


def write_text(path: Path, text: str) -> None:
    """Write aside, sync to disk, rename. OSError leaves no half file behind."""
    place = aside(path)
    try:
        place.write_text(text, encoding="utf-8")
        sync(place)
        publish(place, path)
    except OSError:
        place.unlink(missing_ok=True)
        raise


def aside(path: Path) -> Path:
    """A free name beside the path, to write at; a file that an earlier process left there goes, or
    keeps its name if it stays.
    """
    for number in itertools.count(1):
        place = path.with_name(f"{path.name}.partial{'' if number == 1 else f'-{number}'}")
        with suppress(OSError):
            place.unlink(missing_ok=True)
        if not os.path.lexists(place):  # where nothing can be written, the writing will say so
            break
    return place


def check_folder(path: Path) -> None:
    """The OSError of writing to a folder, which need not be there yet, before any work; nothing is
    touched.
    """
    place = path
    while not (found := _look(place)):
        place = place.parent
    for name in path.parts[len(place.parts) :]:
        _look(place / name)  # whether it is too long
    if not stat.S_ISDIR(found.st_mode):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
    if not os.access(place, os.W_OK | os.X_OK):
        number = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
        raise OSError(number, os.strerror(number), str(path))


def _look(path: Path) -> os.stat_result | None:
    """What is there, None where nothing is; a link to nothing is a file that is in the way.

    OSError.
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
    """Why a file cannot be written there, in a few words, before any work; empty where nothing
    speaks against it.
    """
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
    """The value as JSON, with null for the numbers that JSON does not have. default: what is made
    of what is no JSON at all.
    """
    text = json.dumps(value, default=default)
    return json.dumps(
        json.loads(text, parse_constant=lambda _: None), indent=indent, allow_nan=False
    )


def publish(written: Path, final: Path) -> None:
    """Give what is complete its final name, for good."""
    os.replace(written, final)
    sync(final.parent)


def open_plain(path: Path) -> BufferedReader:
    """Open a plain file to read.

    OSError for anything else: a pipe in its place would be waited for.
    """
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
    """Return when the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def one_line(text: str) -> str:
    """A message that may quote what came from elsewhere, as one line without control characters,
    cut where it grows too long.
    """
    words = " ".join(text.split())
    plain = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode()
        for c in words
    )
    return plain if len(plain) <= LONGEST_LINE else plain[:LONGEST_LINE] + " …"


def reason(error: BaseException) -> str:
    """Why the system refused, in its own words; HDF5 hides its errno in the middle of a long
    text.
    """
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
    """An error in words: of a file its name and why, else what it says itself."""
    named = isinstance(error, OSError) and error.filename is not None
    return f"{error.filename}: {reason(error)}" if named else str(error)  # type: ignore[attr-defined]
