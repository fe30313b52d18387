"""P workers in one process, without MPI: the definition of a distributed training step.

It is section 3 of `docs/algorithm.md` as code; comments give the section's step numbers. A run of
the program on P ranks with the numpy backend gives the same bits.
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
"""Images [N, ...] and labels [N]."""


class Model(Protocol):
    """What a worker needs of a model: flat float32 buffers (n), and the layers' offsets in them.

    offsets: int64 (L + 1); layer l is the values from offsets[l] to offsets[l + 1].
    """

    parameters: Vector
    gradients: Vector
    offsets: NDArray[np.int64]

    def forward(self, images: NDArray[np.float32], training: bool) -> NDArray[np.float32]:
        """Return the logits."""

    def backward(self, dlogits: NDArray[np.float32], on_gradient: Callable[[int], None]) -> Any:
        """Fill `gradients`."""


def layers(flat: Vector, offsets: NDArray[np.int64]) -> list[Vector]:
    """The layers' views into a flat buffer."""
    return [flat[start:stop] for start, stop in itertools.pairwise(offsets)]


def flat(selections: Sequence[Selection], offsets: NDArray[np.int64]) -> Selection:
    """Join selections from neighbouring layers, at offsets (L + 1), into one from their union."""
    indices, values = zip(*selections, strict=True)
    return np.concatenate(
        [index + start for index, start in zip(indices, offsets, strict=False)]
    ), np.concatenate(values)


class Cluster:
    """P replicas of a model that train with one sparse method.

    models: P replicas with the same parameters; k (L): that of the first step. collective: how the
    entries that the workers send are summed. buckets: the layers that are sent together, by default
    all; the result depends on them if the collective selects among sums.

    Public attributes: `residuals` (P vectors of n), `k` (P vectors of L), `momentum` (n) and
    `step_count`, the number of finished steps.
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
        """One training step with one batch for each worker; returns the P losses.

        A budget, if given, replaces K from this step on.
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
        """What one worker does alone: gradient, selection, and the k of its next step."""
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
        """Exchange what the ranks send, update their residuals, and return the mean u.

        u = float32(1/P) · Σ_p scatter(S^p), summed from +0.0: first the layers' own selections of
        all ranks, then the reserves. The layers' own selections are exchanged bucket by bucket, the
        reserves at once. sent: one for each rank.
        """
        update, done = ops.zeros(sum(self.sizes)), []
        for number, of_ranks in enumerate(zip(*sent, strict=True)):
            for layers_of in [range(len(self.sizes))] if number else self.buckets:
                span = slice(int(self.offsets[layers_of.start]), int(self.offsets[layers_of.stop]))
                exchanged = self._carry(of_ranks, layers_of, span)
                for entries in exchanged[0].update:
                    _add(update[span], entries, 1)
                done.append((span, exchanged))
        ops.scale(update, 1 / len(sent))
        for span, exchanged in done:
            for residual, own in zip(self.residuals, exchanged, strict=True):
                for entries in own.taken:
                    _add(residual[span], entries, -1)
                for entries in own.returned:
                    _add(residual[span], entries, 1)
        return update

    def _carry(
        self, of_ranks: Sequence[Sequence[Selection]], layers_of: range, span: slice
    ) -> list[Exchanged]:
        """Run the collective on neighbouring layers; return what it gives on each rank."""
        offsets = self.offsets[layers_of.start :] - span.start
        chosen = [
            flat(selections[layers_of.start : layers_of.stop], offsets) for selections in of_ranks
        ]
        counts, n, ranks = (
            [index.size for index, _ in chosen],
            span.stop - span.start,
            len(chosen),
        )
        return collectives.mail(
            [
                self.collective(
                    Chosen(n, *own, counts, self.value_dtype),
                    residual[span],
                    Net(rank, ranks),
                    ops,
                    wire,
                )
                for rank, (own, residual) in enumerate(zip(chosen, self.residuals, strict=True))
            ]
        )


def _add(target: Vector, entries: Entries, sign: int) -> None:
    """Add sign · entries to target, in span."""
    if entries.index is None:
        target += np.float32(sign) * entries.values
    elif sign > 0:
        ops.scatter_add(target, entries.index, entries.values)
    else:
        ops.scatter_subtract(target, entries.index, entries.values)
