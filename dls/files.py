"""Files that are whole or not there, why one cannot be written, in a few words, and what may stand in one."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

LONGEST_LINE = 1000
"""Characters."""


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write aside, sync to disk, rename. `new`: FileExistsError where the name is taken. OSError leaves no half file behind."""
    if new:
        path.touch(exist_ok=False)  # takes the name, so that of two runs only one goes on
    aside = path.with_name(path.name + ".partial")
    try:
        aside.write_text(text, encoding="utf-8")
        sync(aside)
        publish(aside, path)
    except OSError:
        for left in [aside, path] if new else [aside]:
            left.unlink(missing_ok=True)
        raise


def json_text(value: Any, indent: int, default: Callable[[Any], Any] | None = None) -> str:
    """The value as JSON, with null for the numbers that JSON does not have. default: what is made of what is no JSON at all."""
    text = json.dumps(value, default=default)
    return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=indent, allow_nan=False)


def publish(aside: Path, final: Path) -> None:
    """Give what is complete its final name, for good."""
    os.replace(aside, final)
    sync(final.parent)


def sync(path: Path) -> None:
    """Return when the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def one_line(text: str) -> str:
    """A message that may quote what came from elsewhere, as one line without control characters, cut where it grows too long."""
    words = " ".join(text.split())
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in words)
    return plain if len(plain) <= LONGEST_LINE else plain[:LONGEST_LINE] + " …"


def reason(error: BaseException) -> str:
    """Why the system refused, in its own words; HDF5 hides its errno in the middle of a long text."""
    if isinstance(error, OSError) and error.strerror and not error.strerror.count("="):
        return error.strerror
    if isinstance(error, KeyError) and error.args:
        return str(error.args[0])
    number = re.search(r"errno = (\d+)", str(error))
    return os.strerror(int(number[1])) if number else (str(error).splitlines() or [type(error).__name__])[0]
