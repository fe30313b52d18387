"""P workers in one process, without MPI: the meaning of a distributed training step.

`docs/algorithm.md`, section 3, is the text; its step numbers stand at the lines that execute them. A run of the program on P
ranks with the numpy backend gives these bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reference import methods, nn, ops, wire
from reference.adjustment import Counts
from reference.methods import Method, Sent
from reference.ops import Vector

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


class Model(Protocol):
    """What a worker needs of a model: flat float32 buffers (n) and where its layers begin, offsets int64 (L + 1)."""

    parameters: Vector
    gradients: Vector
    offsets: NDArray[np.int64]

    def forward(self, images: NDArray[np.float32], training: bool) -> NDArray[np.float32]:
        """The logits."""

    def backward(self, dlogits: NDArray[np.float32], on_gradient: Callable[[int], None]) -> Any:
        """Fill `gradients`."""


def layers(flat: Vector, offsets: NDArray[np.int64]) -> list[Vector]:
    """The layers' views into a flat buffer."""
    return [flat[start:stop] for start, stop in itertools.pairwise(offsets)]


def mean_update(sent: Sequence[Sent], sizes: Sequence[int]) -> Vector:
    """u = float32(1/P) · Σ_p scatter(S^p), summed from +0.0, what leaves first before what leaves later, each in rank order.

    One `sent` of each rank; result (n).
    """
    summed = [ops.zeros(n) for n in sizes]
    for of_ranks in zip(*sent, strict=True):
        for selection in of_ranks:
            for layer, (index, values) in zip(summed, selection, strict=True):
                ops.scatter_add(layer, index, values)
    update = np.concatenate(summed)
    ops.scale(update, 1 / len(sent))
    return update


class Cluster:
    """P replicas of a model that train with one sparse method.

    `models` holds P replicas with the same parameters; k (L) is the first step's. Attributes of interest: `residuals` (P
    vectors of n), `k` (P vectors of L), `momentum` (n), `step_count`.
    """

    def __init__(
        self,
        models: Sequence[Model],
        method: Method,
        k: Counts,
        *,
        mu: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        clip_norm: float = 0.0,
        value_dtype: str = "float32",
    ) -> None:
        self.models, self.method = models, method
        self.mu, self.weight_decay, self.nesterov, self.clip_norm = mu, weight_decay, nesterov, clip_norm
        self.value_dtype = value_dtype
        self.offsets = models[0].offsets
        self.sizes = [int(n) for n in np.diff(self.offsets)]
        self.residuals = [ops.zeros(sum(self.sizes)) for _ in models]
        self.momentum = ops.zeros(sum(self.sizes))
        self.k = [k.copy() for _ in models]
        self.step_count = 0

    def step(self, batches: Sequence[Batch], lr: float, budget: int | None = None) -> list[float]:
        """One training step on one batch a worker; returns the P losses. A budget given replaces K from this step on."""
        if budget is not None and budget != self.k[0].sum():
            self.k = [methods.rescale(k, self.sizes, budget) for k in self.k]
        self.step_count += 1
        work = [self._work(rank, *batch) for rank, batch in enumerate(batches)]
        update = mean_update([sent for _, sent in work], self.sizes)  # 5, 6
        first = self.models[0].parameters
        ops.sgd_update(first, self.momentum, update, lr, self.mu, self.weight_decay, self.nesterov)  # 7
        for model in self.models[1:]:
            model.parameters[...] = first
        return [loss for loss, _ in work]

    def _work(self, rank: int, images: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, Sent]:
        """One worker's own part of a step: gradient, selection, residual, the next k."""
        model, residual = self.models[rank], self.residuals[rank]
        logits = model.forward(images, training=True)
        loss, dlogits, _ = nn.softmax_cross_entropy(logits, labels)
        model.backward(dlogits, lambda layer: None)  # 1
        if self.clip_norm:
            ops.clip_norm(model.gradients, self.clip_norm)
        ops.accumulate(residual, model.gradients)  # 2
        v = layers(residual, self.offsets)
        chosen = self.method.select(v, self.k[rank])  # 3
        sent = [[(index, wire.round_values(values, self.value_dtype)) for index, values in each] for each in chosen]
        gradients = layers(model.gradients, self.offsets)
        self.k[rank] = self.method.next_k(v, self.k[rank], self.step_count, sent, gradients)  # 8
        for selections in sent:
            for layer, entries in zip(v, selections, strict=True):
                ops.scatter_subtract(layer, *entries)  # 4
        return loss, sent
