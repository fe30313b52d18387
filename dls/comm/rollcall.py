"""Which ranks are missing, when a wait has taken too long."""

from __future__ import annotations

import time

from dls.comm.mpi import MPI

GRACE = 2.0
"""Seconds that the others have to say that they wait too."""
NAP = 0.0001
"""Seconds of a pause between two looks."""


class RollCall:
    """Finds out which ranks are missing: whoever has waited too long asks all others, and who is
    waiting answers.
    """

    ASK, ANSWER = 1, 2

    def __init__(self, world: MPI.Comm) -> None:
        self._comm = world.Dup()
        self._sent: list[MPI.Request] = []

    def finish(self) -> None:
        """Ask and answer no more."""
        self._comm.Free()

    def answer(self, what: str) -> None:
        """Tell those who ask that this rank waits for `what`."""
        while self._comm.Iprobe(tag=self.ASK):
            asking = MPI.Status()
            self._comm.recv(tag=self.ASK, status=asking)
            self._sent.append(self._comm.isend(what, dest=asking.Get_source(), tag=self.ANSWER))

    def missing(self, what: str) -> str:
        """One line that names the ranks that do not answer, and what those that do wait for if it
        is something else.
        """
        others = [rank for rank in range(self._comm.Get_size()) if rank != self._comm.Get_rank()]
        self._sent += [self._comm.isend(None, dest=rank, tag=self.ASK) for rank in others]
        answers: dict[int, str] = {}
        deadline = time.monotonic() + GRACE
        while len(answers) < len(others) and time.monotonic() < deadline:
            self.answer(what)
            if self._comm.Iprobe(tag=self.ANSWER):
                answered = MPI.Status()
                words = self._comm.recv(tag=self.ANSWER, status=answered)
                answers[answered.Get_source()] = words
            time.sleep(NAP)
        silent = [str(rank) for rank in others if rank not in answers]
        elsewhere = [
            f"rank {rank} waits for {theirs}" for rank, theirs in answers.items() if theirs != what
        ]
        found = (
            [f"no word from rank{'s' * (len(silent) > 1)} {', '.join(silent)}"] if silent else []
        ) + elsewhere
        return f"{what}: " + ("; ".join(found) or "all ranks wait, and nothing arrives")
