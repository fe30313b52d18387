"""Who has a run's folder: one lock, on OUT/lock, which rank 0 takes before anything is touched and
holds to the end.

It is the kernel's (flock), so it ends with its process, however that ends; no program that the
process starts inherits it. NFS grants an exclusive lock only to a descriptor that may write, and a
shared one to a descriptor that may read: so the holder's is exclusive, and whoever asks tries a
shared one, for which the right to read the file is enough.
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
PATIENCE, PAUSE = 2.0, 0.05
"""Seconds that a lock is waited for, as a killed process may still be dying, or somebody asking;
and those between two looks.
"""
WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""What a file system answers that has no locks."""
WORDS = 200
"""Bytes of a lock's file, at most: who holds it."""


class InUse(ValueError):
    """Another run, which goes on, has the folder: one clear line that says what to do."""


class State(Enum):
    """Whether anybody has a folder."""

    HELD = "a run that lives has it"
    FREE = "nobody has it"
    UNKNOWN = "its file system has no locks, or its lock may not be read"


def state(out: Path) -> State:
    """Whether a run that lives has the folder."""
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
    """This process's lock on a run's folder, not taken yet. `missing`: why the file system gave
    none; empty where it did.
    """

    def __init__(self) -> None:
        self.missing = ""
        self._descriptor = -1

    @property
    def taken(self) -> bool:
        """Whether it was, with or without a lock that the file system gave."""
        return self._descriptor >= 0

    def take(self, out: Path, patience: float = PATIENCE) -> None:
        """Take it, unless it is taken already; `patience`: seconds to wait for one who has it.

        InUse, OSError.
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
        with suppress(OSError):  # it is a lock without these words, too
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)

    def release(self) -> None:
        """Let others have it."""
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
    """A descriptor to lock: one that may write, as NFS wants it, unless the file is another user's,
    in a shared folder.
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
