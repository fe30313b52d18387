"""The lock of a run's folder: rank 0 locks OUT/lock before it touches anything, until the run ends.

It is a lock of the kernel (flock), so it ends with its process, however that ends; no program that
the process starts inherits it. NFS grants an exclusive lock only to a descriptor that may write,
and a shared one to a descriptor that may read. So the holder's lock is exclusive, and whoever wants
to know tries a shared one, for which the right to read the file is enough.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from contextlib import suppress
from enum import Enum
from pathlib import Path

from dls.record import files

NAME = "lock"
"""The locked file, in a run's folder."""
PATIENCE = 2.0
"""Seconds to wait for a lock: a killed process may still be ending, or another one be asking."""
PAUSE = 0.05
"""Seconds between two attempts."""
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system without locks answers."""
WORDS = 200
"""The most bytes of a lock's file that are read; it says who holds the lock."""


class InUse(ValueError):
    """Another run that is still going on has the folder: one line that says what to do."""


class State(Enum):
    """Whether a process holds a folder's lock."""

    HELD = "a running process has it"
    FREE = "no process has it"
    UNKNOWN = "its file system has no locks, or its lock may not be read"


def state(out: Path) -> State:
    """Whether a running process has the folder."""
    try:
        descriptor = os.open(out / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return State.FREE
    except OSError:
        return State.UNKNOWN
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return State.HELD
    except OSError:
        return State.UNKNOWN
    finally:
        os.close(descriptor)
    return State.FREE


class Lock:
    """This process's lock on a run's folder, not taken yet.

    `missing`: why the file system gave none; empty where it did.
    """

    def __init__(self) -> None:
        self.missing = ""
        self._descriptor = -1

    @property
    def taken(self) -> bool:
        """Whether it was, with or without a lock that the file system gave."""
        return self._descriptor >= 0

    def take(self, out: Path, patience: float = PATIENCE) -> None:
        """Take the lock, unless it is taken already.

        patience: seconds to wait where another process holds it. InUse, OSError.
        """
        if self.taken:
            return
        descriptor = _open(out / NAME)
        try:
            self._wait(descriptor, out, time.monotonic() + patience)
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        with suppress(OSError):  # the lock holds without this text as well
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock."""
        if self.taken:
            os.close(self._descriptor)
            self._descriptor = -1

    def _wait(self, descriptor: int, out: Path, deadline: float) -> None:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise InUse(
                        f"{out} is in use, by a run that goes on{_holder(descriptor)}; let that end"
                        " first"
                    ) from None
            except OSError as error:
                if error.errno not in WITHOUT_LOCKS:
                    raise
                self.missing = files.reason(error)
                return
            else:
                return
            time.sleep(PAUSE)


def _open(path: Path) -> int:
    """A descriptor to lock.

    It may write, as NFS demands, unless the file is another user's, in a shared folder.
    """
    how = os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | how, 0o666)
    except PermissionError:
        if not path.exists():
            raise
        return os.open(path, os.O_RDONLY | how)


def _holder(descriptor: int) -> str:
    words = files.one_line(os.pread(descriptor, WORDS, 0).decode(errors="replace"))
    return f" ({words})" if words else ""
