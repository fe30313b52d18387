"""Finds out which ranks are missing when a wait has taken too long."""

from __future__ import annotations

import time

from dls.comm.mpi import MPI

GRACE = 2.0
"""Seconds within which the other ranks must answer."""
NAP = 0.0001
"""Seconds between two looks at whether messages have arrived."""


class RollCall:
    """A rank that has waited too long asks all others; those that are waiting answer."""

    ASK = 1
    """The tag of questions."""
    ANSWER = 2
    """The tag of answers."""

    def __init__(self, world: MPI.Comm) -> None:
        self._comm = world.Dup()
        self._sent: list[MPI.Request] = []

    def finish(self) -> None:
        """Release its communicator."""
        self._comm.Free()

    def answer(self, what: str) -> None:
        """Tell the ranks that have asked that this one waits for `what`."""
        while self._comm.Iprobe(tag=self.ASK):
            asking = MPI.Status()
            self._comm.recv(tag=self.ASK, status=asking)
            self._sent.append(self._comm.isend(what, dest=asking.Get_source(), tag=self.ANSWER))

    def missing(self, what: str) -> str:
        """One line that names the ranks that do not answer.

        It also says what the others wait for, if that is not `what`.
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
        reasons: list[str] = []
        if silent := [str(rank) for rank in others if rank not in answers]:
            ranks = "rank" if len(silent) == 1 else "ranks"
            reasons.append(f"no word from {ranks} {', '.join(silent)}")
        for rank, theirs in answers.items():
            if theirs != what:
                reasons.append(f"rank {rank} waits for {theirs}")
        return f"{what}: " + ("; ".join(reasons) or "all ranks wait, and nothing arrives")
