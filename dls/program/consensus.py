"""What the ranks agree on besides the gradient: when to stop, and that their weights are the same.

At the beginning of every step each rank starts a non-blocking allgather of a short message, which
travels while the step computes. The message says whether a signal has asked the rank to stop and,
every `check_every` steps, it holds a hash of the rank's weights. At the end of the step each rank
reads all messages. All ranks read the same messages after the same step, so they decide alike.
Nobody waits for them: to end a step a rank needs the other ranks' gradients, which were sent after
the messages. The run ends with the step in which the signal came, or with the next one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from dls.comm.base import Comm, Waiting
from dls.program.signals import StopRequest


class DivergenceError(RuntimeError):
    """The ranks no longer hold the same weights."""


class Consensus:
    """One rank's part in it. Every rank calls `speak` before each step and `hear` after it.

    weights_hash: SHA-256 of what must be the same on all ranks. check_every: steps between
    comparisons; 0: never.
    """

    def __init__(
        self, comm: Comm, request: StopRequest, weights_hash: Callable[[], bytes], check_every: int
    ) -> None:
        self._comm, self._request = comm, request
        self._weights_hash, self._check_every = weights_hash, check_every
        self._finished = 0
        self._words: Waiting

    def speak(self, finished: int) -> None:
        """Start to send this rank's message, after so many finished steps."""
        due = self._check_every and finished % self._check_every == 0
        word = np.array([self._request.made, self._hash() if due else 0], dtype=np.uint64)
        self._finished = finished
        self._words = self._comm.allgather(word, "the other ranks' word")

    def hear(self) -> bool:
        """Whether all ranks stop now, because one of them was asked to.

        DivergenceError, on all ranks, where their weights differ.
        """
        stops, hashes = self._words.wait().T
        self._compare(hashes.tolist(), self._finished)
        return bool(stops.any())

    def confirm(self, finished: int) -> None:
        """Compare the weights now, before the checkpoint of so many finished steps.

        DivergenceError, on all ranks, where they differ.
        """
        if self._check_every:
            self._compare(
                self._comm.allgather_objects(self._hash(), "the other ranks' hash of the weights"),
                finished,
            )

    def _hash(self) -> int:
        return int.from_bytes(self._weights_hash()[:8], "little")

    def _compare(self, hashes: Sequence[int], finished: int) -> None:
        """DivergenceError that names the ranks which differ from the majority.

        Where there is no majority, those that differ from rank 0.
        """
        common, count = Counter(hashes).most_common(1)[0]
        right, whose = (common, "most ranks") if 2 * count > len(hashes) else (hashes[0], "rank 0")
        odd = [str(rank) for rank, value in enumerate(hashes) if value != right]
        if odd:
            ranks = f"{'rank' if len(odd) == 1 else 'ranks'} {', '.join(odd)}"
            raise DivergenceError(
                f"after step {finished} the weights of {ranks} are not those of {whose}"
            )
