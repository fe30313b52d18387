"""P workers in one process, without MPI: the meaning of a distributed training step.

`docs/algorithm.md`, section 3, is the text; its step numbers stand at the lines that execute them.
A run of the program on P ranks with the numpy backend gives these bits.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from reference import collectives, methods, nn, ops, wire
from reference.adjustment import Counts
from reference.collectives import Chosen, Entries, Exchanged, Net
from reference.methods import Method, Sent
from reference.ops import Selection, Vector

Batch = tuple[NDArray[np.float32], NDArray[np.int64]]


class Model(Protocol):
    """What a worker needs of a model: flat float32 buffers (n) and where its layers begin, offsets
    int64 (L + 1).
    """

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


def flat(selections: Sequence[Selection], offsets: NDArray[np.int64]) -> Selection:
    """Selections from neighbouring layers, which begin at offsets (L + 1), as one from all of them
    together.
    """
    indices, values = zip(*selections, strict=True)
    return np.concatenate(
        [index + start for index, start in zip(indices, offsets, strict=False)]
    ), np.concatenate(values)


class Cluster:
    """P replicas of a model that train with one sparse method.

    collective: how what they send is summed; buckets: the layers that travel together, of which the
    result depends where the collective chooses among sums; all together unless given.

    `models` holds P replicas with the same parameters; k (L) is the first step's. Attributes of
    interest: `residuals` (P vectors of n), `k` (P vectors of L), `momentum` (n), `step_count`.
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
        collective: str = "allgather",
        buckets: Sequence[range] = (),
    ) -> None:
        self.models, self.method = models, method
        self.mu, self.weight_decay, self.nesterov, self.clip_norm = (
            mu,
            weight_decay,
            nesterov,
            clip_norm,
        )
        self.value_dtype, self.collective = value_dtype, collectives.COLLECTIVES[collective]
        self.offsets = models[0].offsets
        self.sizes = [int(n) for n in np.diff(self.offsets)]
        self.buckets = list(buckets) or [range(len(self.sizes))]
        self.residuals = [ops.zeros(sum(self.sizes)) for _ in models]
        self.momentum = ops.zeros(sum(self.sizes))
        self.k = [k.copy() for _ in models]
        self.step_count = 0

    def step(self, batches: Sequence[Batch], lr: float, budget: int | None = None) -> list[float]:
        """One training step on one batch a worker; returns the P losses.

        A budget given replaces K from this step on.
        """
        if budget is not None and budget != self.k[0].sum():
            self.k = [methods.rescale(k, self.sizes, budget) for k in self.k]
        self.step_count += 1
        work = [self._work(rank, *batch) for rank, batch in enumerate(batches)]
        update = self._exchange([sent for _, sent in work])  # 4, 5, 6
        first = self.models[0].parameters
        ops.sgd_update(
            first, self.momentum, update, lr, self.mu, self.weight_decay, self.nesterov
        )  # 7
        for model in self.models[1:]:
            model.parameters[...] = first
        return [loss for loss, _ in work]

    def _work(
        self, rank: int, images: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> tuple[float, Sent]:
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
        sent = [
            [(index, wire.round_values(values, self.value_dtype)) for index, values in each]
            for each in chosen
        ]
        gradients = layers(model.gradients, self.offsets)
        self.k[rank] = self.method.next_k(v, self.k[rank], self.step_count, sent, gradients)  # 8
        return loss, sent

    def _exchange(self, sent: Sequence[Sent]) -> Vector:
        """u = float32(1/P) · Σ_p scatter(S^p), summed from +0.0, what leaves first before what
        leaves later.

        One `sent` of each rank. What leaves first travels bucket by bucket, what leaves later all
        together.
        """
        update, done = ops.zeros(sum(self.sizes)), []
        for number, of_ranks in enumerate(zip(*sent, strict=True)):
            for layers_of in [range(len(self.sizes))] if number else self.buckets:
                place = slice(int(self.offsets[layers_of.start]), int(self.offsets[layers_of.stop]))
                exchanged = self._carry(of_ranks, layers_of, place)
                for entries in exchanged[0].update:
                    _add(update[place], entries, 1)
                done.append((place, exchanged))
        ops.scale(update, 1 / len(sent))
        for place, exchanged in done:
            for residual, own in zip(self.residuals, exchanged, strict=True):
                for entries in own.taken:
                    _add(residual[place], entries, -1)
                for entries in own.returned:
                    _add(residual[place], entries, 1)
        return update

    def _carry(
        self, of_ranks: Sequence[Sequence[Selection]], layers_of: range, place: slice
    ) -> list[Exchanged]:
        """What comes of a collective on neighbouring layers, on each rank."""
        offsets = self.offsets[layers_of.start :] - place.start
        chosen = [
            flat(selections[layers_of.start : layers_of.stop], offsets) for selections in of_ranks
        ]
        counts, n, ranks = (
            [index.size for index, _ in chosen],
            place.stop - place.start,
            len(chosen),
        )
        return collectives.mail(
            [
                self.collective(
                    Chosen(n, *own, counts, self.value_dtype),
                    residual[place],
                    Net(rank, ranks),
                    ops,
                    wire,
                )
                for rank, (own, residual) in enumerate(zip(chosen, self.residuals, strict=True))
            ]
        )


def _add(target: Vector, entries: Entries, sign: int) -> None:
    """target ± entries, in place."""
    if entries.index is None:
        target += np.float32(sign) * entries.values
    elif sign > 0:
        ops.scatter_add(target, entries.index, entries.values)
    else:
        ops.scatter_subtract(target, entries.index, entries.values)
