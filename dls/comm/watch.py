"""A limit to waits that the library makes without one, and the last words of a rank that ends."""

from __future__ import annotations

import array
import fcntl
import os
import stat
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager

WATCHER = 'timeout "$1" cat; [ $? != 124 ] || { echo "$2" >&2; kill -KILL "$PPID"; }'
"""Reads nothing from the rank until that closes the pipe or ends; after so many seconds it says
why, and ends the rank.
"""
LAST_WORDS = 2.0
"""Seconds that a failing rank gives the launcher to read what it said, before it ends the run."""


def watch(timeout: float, when: str) -> tuple[int, int]:
    """Let this process live for so many seconds at most; returns the process that watches it, and
    what to close to stop that.

    At the start and at the end the library waits for other ranks without a limit, and keeps Python
    from running.
    """
    words = (
        f"dls: no word from other ranks at the {when} after {timeout:g} s of waiting (--timeout)"
    )
    reader, writer = os.pipe()
    actions = [
        (os.POSIX_SPAWN_DUP2, reader, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
    ]
    watcher = os.posix_spawnp(
        "sh",
        ["sh", "-c", WATCHER, "watcher", str(timeout), words],
        os.environ,
        file_actions=actions,
    )
    os.close(reader)
    return watcher, writer


@contextmanager
def watched(timeout: float, when: str) -> Iterator[None]:
    """Let this block take so many seconds at most."""
    watcher, writer = watch(timeout, when)
    try:
        yield
    finally:
        os.close(writer)
        os.waitpid(watcher, 0)


def flush() -> None:
    """Send off what this rank has said."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        _wait_until_read(stream.fileno())


def _wait_until_read(descriptor: int) -> None:
    """Return when the launcher has read what this rank wrote: it may drop what is left in the pipe
    of a rank that aborts.
    """
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return
    deadline, unread = time.monotonic() + LAST_WORDS, array.array("i", [1])
    while unread[0] and time.monotonic() < deadline:
        fcntl.ioctl(descriptor, termios.FIONREAD, unread)
        time.sleep(0.01)
