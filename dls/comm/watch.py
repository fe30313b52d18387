"""A time limit for waits inside MPI, and output that must be read before a rank ends."""

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
"""Shell code that waits for the rank to close a pipe or to end.

After $1 seconds it prints $2 and kills the rank.
"""
LAST_WORDS = 2.0
"""Seconds that a failing rank gives the launcher to read its output before it ends the run."""


def watch(timeout: float, when: str) -> tuple[int, int]:
    """Kill this process after `timeout` seconds.

    At the start and at the end MPI waits for other ranks without a limit, and Python cannot run
    meanwhile. Returns the number of the watching process, and the file descriptor whose closing
    stops it. when: "start" or "end", for the message.
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
    """Kill this process if the block takes longer than `timeout` seconds."""
    watcher, writer = watch(timeout, when)
    try:
        yield
    finally:
        os.close(writer)
        os.waitpid(watcher, 0)


def flush() -> None:
    """Flush stdout and stderr, and wait until the launcher has read them."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        _wait_until_read(stream.fileno())


def _wait_until_read(descriptor: int) -> None:
    """Wait until a pipe is empty: launchers may lose what is left in that of a rank that aborts."""
    if not stat.S_ISFIFO(os.fstat(descriptor).st_mode):
        return
    deadline, unread = time.monotonic() + LAST_WORDS, array.array("i", [1])
    while unread[0] and time.monotonic() < deadline:
        fcntl.ioctl(descriptor, termios.FIONREAD, unread)
        time.sleep(0.01)
