"""Under mpirun: the steps of many exchanges on this rank, and what MPI itself was given meanwhile.

exchanging_ranks.py FOLDER reads the jobs there, and leaves what each rank has seen.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from dls.comm.world import World
from tests import exchanging, newcomers
from tests.cases import Case
from tests.exchanging import Seen

Job = tuple[Case, bool]
"""A case, and whether its layers are ready in random order, some of them late."""
Moved = tuple[int, int]


def main(folder: Path) -> None:
    newcomers.register()
    comm = World(60.0, Counting(MPI.COMM_WORLD))
    jobs: list[Job] = pickle.loads((folder / "jobs").read_bytes())
    seen = [run(comm, *job) for job in jobs]
    (folder / f"seen{comm.rank}").write_bytes(pickle.dumps(seen))


def run(comm: World, case: Case, shuffled: bool) -> list[tuple[Seen, Moved]]:
    """What each step leaves, and what MPI moved for it."""
    exchanger, found = case.exchanger(comm), []
    for step in range(exchanging.STEPS):
        before = moved.copy()
        seen = exchanging.take_step(exchanger, case, step, shuffled)
        found.append((seen, tuple((moved - before).tolist())))
    return found


moved = np.zeros(2, dtype=np.int64)
"""Bytes that this process has given to MPI, each once, and that have come of other ranks."""


class Counting(MPI.Intracomm):
    """A communicator, and so its duplicates, that counts what goes through it."""

    def Iallgather(self, own: Any, everyone: Any) -> MPI.Request:
        self.count(size_of(own), size_of(everyone) - size_of(own))
        return super().Iallgather(own, everyone)

    def Iallgatherv(self, own: Any, everyone: Any) -> MPI.Request:
        self.count(size_of(own), size_of(everyone) - size_of(own))
        return super().Iallgatherv(own, everyone)

    def Ialltoallv(self, own: Any, theirs: Any) -> MPI.Request:
        """What a rank tells itself goes nowhere."""
        kept = size_of(theirs) // self.Get_size()
        self.count(size_of(own) - kept, size_of(theirs) - kept)
        return super().Ialltoallv(own, theirs)

    def Iallreduce(self, own: Any, total: Any, op: MPI.Op) -> MPI.Request:
        """A ring would bring every value twice, but for this rank's share."""
        self.count(size_of(own), 2 * size_of(own) * (self.Get_size() - 1) // self.Get_size())
        return super().Iallreduce(own, total, op)

    def Isend(self, own: Any, dest: int, tag: int = 0) -> MPI.Request:
        self.count(size_of(own), 0)
        return super().Isend(own, dest, tag)

    def Irecv(self, theirs: Any, source: int, tag: int = 0) -> MPI.Request:
        self.count(0, size_of(theirs))
        return super().Irecv(theirs, source, tag)

    def count(self, sent: int, received: int) -> None:
        moved[:] += sent, received


def size_of(buffer: Any) -> int:
    """Bytes of what mpi4py takes as a buffer: an array, or one with counts and types."""
    return (buffer if isinstance(buffer, np.ndarray) else buffer[0]).nbytes


main(Path(sys.argv[1]))
