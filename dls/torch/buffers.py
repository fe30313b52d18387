"""A model's buffers, such as batch norm's running statistics, and the ranks' share in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dls.comm.base import PROGRAM, Comm, Waiting
from dls.torch.parameters import Tensor
from reference.collectives import Gather, Reduce

KINDS = ("mean", "rank0", "local")
"""What every rank has after a step: the mean over the ranks, rank 0's, or each its own."""


class Buffers:
    """The floating buffers of a model; others, such as counts of batches, stay each rank's own.

    Every rank calls `post` and then `apply` in each step.
    """

    def __init__(self, model: Tensor, kind: str, comm: Comm) -> None:
        if kind not in KINDS:
            raise ValueError(f"buffers is {kind!r}, not one of {', '.join(KINDS)}")
        self._model, self._comm, self._kind = model, comm, kind
        self._word: Waiting | None = None

    def post(self) -> None:
        """Send this rank's values, or begin to receive rank 0's."""
        if self._kind == "local" or self._comm.size == 1:
            return
        own = self._own()
        if not own.size:
            return
        what, comm = "the other ranks' buffers", self._comm
        if self._kind == "mean":
            asked: Any = Reduce(own)
        else:
            sizes = [own.nbytes] + [0] * (comm.size - 1)
            asked = Gather((own if comm.rank == 0 else own[:0]).view(np.uint8), sizes)
        self._word = Waiting(comm, comm.post(PROGRAM, asked, what), what, lambda answer: answer)

    def apply(self) -> None:
        """Wait for what was sent, and take it over."""
        if self._word is None:
            return
        answer, self._word = self._word.wait(), None
        mean = self._kind == "mean"
        values = answer * np.float32(1 / self._comm.size) if mean else answer[0].view(np.float32)
        buffers = self._floating()
        moved = torch.from_numpy(np.array(values)).to(buffers[0].device)
        pieces = moved.split([buffer.numel() for buffer in buffers])
        with torch.no_grad():
            for buffer, piece in zip(buffers, pieces, strict=True):
                buffer.copy_(piece.view(buffer.shape))

    def _own(self) -> np.ndarray[Any, Any]:
        """One copy from a GPU, and in `apply` one to it."""
        buffers = self._floating()
        if not buffers:
            return np.zeros(0, dtype=np.float32)
        device = buffers[0].device
        pieces = [buffer.detach().reshape(-1).to(device, torch.float32) for buffer in buffers]
        whole: np.ndarray[Any, Any] = torch.cat(pieces).cpu().numpy()
        return whole

    def _floating(self) -> list[Tensor]:
        return [each for each in self._model.buffers() if each.is_floating_point()]
