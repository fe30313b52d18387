"""A run's folder: rank 0 makes it, and holds its lock as long as the sync lives."""

from __future__ import annotations

from pathlib import Path

from dls.comm.base import Comm
from dls.record.lock import Lock


class Folders:
    """The folders that a sync writes to."""

    def __init__(self, comm: Comm) -> None:
        self._comm = comm
        self._locks: dict[Path, Lock] = {}

    def open(self, folder: str | Path) -> Path:
        """A folder that no other run writes to; every rank calls it.

        ValueError, on all ranks, where another one does; OSError where it cannot be written.
        """
        path = Path(self._comm.from_rank_0(lambda: str(Path(folder).absolute())))
        if path not in self._locks:
            self._locks[path] = Lock()
        lock = self._locks[path]

        def take() -> None:
            path.mkdir(parents=True, exist_ok=True)
            lock.take(path)

        self._comm.from_rank_0(take)
        return path

    def close(self) -> None:
        """Let others write there."""
        for lock in self._locks.values():
            lock.release()
        self._locks.clear()
