"""What the ranks tell each other in every step beside the gradient: which parameters are frozen
and, now and then, a hash of the weights.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from dls.comm.base import Comm, Waiting
from dls.program.consensus import Consensus
from dls.torch.parameters import Tracked


class Words:
    """A rank's words. Every rank calls `post` and then `hear` in each step.

    check_every: steps between two comparisons of the weights; 0: never.
    """

    def __init__(self, comm: Comm, parameters: Sequence[Tracked], check_every: int) -> None:
        self._comm, self._parameters, self._every = comm, parameters, check_every
        nobody_stops: Any = SimpleNamespace(made=False)
        self._consensus = Consensus(comm, nobody_stops, self.weights_hash, check_every)
        self._frozen: Waiting | None = None
        self._compares = False

    def post(self, finished: int) -> None:
        """Give this rank's words on the weights after so many steps."""
        if self._comm.size == 1:
            return
        self._compares = self._every > 0 and finished > 0 and finished % self._every == 0
        own = zlib.crc32(bytes(each.frozen for each in self._parameters))
        what = "the other ranks' frozen parameters"
        self._frozen = self._comm.allgather(np.array(own, dtype=np.int64), what)
        if self._compares:
            self._consensus.speak(finished)

    def hear(self) -> None:
        """Compare. ValueError or DivergenceError, on all ranks, where one differs."""
        if self._frozen is None:
            return
        if len(set(self._frozen.wait().tolist())) > 1:
            self._name_difference()
        if self._compares:
            self._consensus.hear()

    def confirm(self, finished: int) -> None:
        """Compare the weights now, after so many steps. DivergenceError, on all ranks."""
        self._consensus.confirm(finished)

    def _name_difference(self) -> None:
        flags = [each.frozen for each in self._parameters]
        everyone = self._comm.allgather_objects(flags, "the other ranks' frozen parameters")
        for rank, theirs in enumerate(everyone):
            for each, own, first in zip(self._parameters, theirs, everyone[0], strict=True):
                if own != first:
                    words = ("is frozen", "is not") if own else ("is not frozen", "is")
                    raise ValueError(
                        f"{each.name} {words[0]} on rank {rank}, and {words[1]} on rank 0: freeze a"
                        " parameter on all ranks in the same step"
                    )

    def weights_hash(self) -> bytes:
        """SHA-256 of the parameters."""
        digest = hashlib.sha256()
        for each in self._parameters:
            flat = each.tensor.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().data)
        return digest.digest()
