"""What the trainer differentiates: a model and the batches that it sees."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.backends import Backend
from dls.comm.base import Comm
from dls.exchange.exchanger import Exchanger
from dls.tasks.batches import Batches, test_shard
from dls.tasks.data import Dataset
from dls.tasks.models import Model
from reference.ops import NonFiniteError

EVALUATION_BATCH = 256
"""Images in one forward pass of an evaluation."""


class Task:
    """One rank's model.

    clip_norm: largest L2 norm of the rank's own gradient; 0: no limit. skips: steps whose loss is
    not finite are skipped instead of raising NonFiniteError.
    """

    def __init__(
        self, model: Model, backend: Backend, clip_norm: float = 0.0, skips: bool = False
    ) -> None:
        self.model, self.backend, self.clip_norm, self.skips = model, backend, clip_norm, skips
        self._statistics = model.statistics.copy()

    def differentiate(self, batches: Batches, finished: int, exchanger: Exchanger) -> float:
        """The loss of the mini-batch after `finished` steps; its gradient goes to the exchanger.

        Each layer's gradient is handed over as soon as it is complete. NonFiniteError if the loss
        is not finite, unless such steps are skipped.
        """
        clock = exchanger.clock
        images, labels = batches.batch(finished)
        with clock.phase("forward"):
            if self.skips:
                self._statistics[...] = self.model.statistics
            logits = self.model.forward(images, training=True)
            loss, dlogits, _ = self.backend.nn.softmax_cross_entropy(logits, labels)
        if not (self.skips or math.isfinite(loss)):
            raise NonFiniteError(f"the loss is {loss}")
        exchanger.begin(finished)
        exchanger.note(not math.isfinite(loss))
        with clock.phase("backward"):
            self._backward(dlogits, exchanger)
        return float(loss)

    def _backward(self, dlogits: NDArray[np.float32], exchanger: Exchanger) -> None:
        """From the last layer to the first; hand each gradient over as soon as it can be sent."""
        if not self.clip_norm:
            self.model.backward(dlogits, exchanger.ready)
            return
        self.model.backward(dlogits, lambda layer: None)
        self.backend.ops.clip_norm(self.model.gradients, self.clip_norm)
        for layer in reversed(range(len(self.model.layers))):
            exchanger.ready(layer)

    def undo(self) -> None:
        """Skip the step: restore batch norm's statistics from before it."""
        self.model.statistics[...] = self._statistics

    def mean_statistics(self, comm: Comm) -> NDArray[np.float32]:
        """Batch norm's running statistics (m), averaged over the ranks.

        They are summed from +0.0 in rank order.
        """
        own = self.backend.ops.to_host(self.model.statistics)
        gathered: NDArray[Any] = comm.allgather(own, "the other ranks' statistics").wait()
        total = np.zeros(gathered.shape[1], dtype=np.float32)
        for statistics in gathered:
            total += statistics
        return total * np.float32(1 / comm.size)

    def evaluate(self, dataset: Dataset, comm: Comm) -> tuple[float, float]:
        """Mean loss and accuracy over the test set, of which each rank evaluates its share.

        Batch norm uses the statistics averaged over the ranks.
        """
        own = self.model.statistics.copy()
        self.model.statistics[...] = self.backend.ops.from_host(self.mean_statistics(comm))
        sums = np.zeros(3)
        for images, labels in test_shard(dataset, comm.rank, comm.size, EVALUATION_BATCH):
            loss, _, correct = self.backend.nn.softmax_cross_entropy(
                self.model.forward(images, training=False), labels
            )
            sums += (loss * len(labels), correct, len(labels))
        self.model.statistics[...] = own
        gathered = comm.allgather(sums, "the other ranks' evaluation").wait()
        loss_sum, correct, count = gathered.sum(axis=0)
        return float(loss_sum / count), float(correct / count)
