"""DLS, Dynamic Layer-wise Sparsification: Layer-wise Top-k whose k moves between layers until all
thresholds are one.

Each layer chooses by itself all but a reserve of its k (`--dls-reserve`); with the last message,
when the whole gradient is known, the largest of the rest leave, as many values as all reserves
together hold.

After every training step the rank adjusts its own k from its own v, when its last layer has been
sent; the ranks tell each other their next k (L small integers), and that exchange has the whole
forward pass to finish.
"""

from __future__ import annotations

import typing
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np

from dls import traffic
from dls.exchange.columns import PER_LAYER, Column
from dls.exchange.layout import Bucket
from dls.exchange.methods._base import Landed, Section, SparseSettings, gather_counts
from dls.exchange.methods.layerwise_topk import LayerwiseTopk
from dls.exchange.settings import COUNT, NOT_NEGATIVE, POSITIVE, CountOrOptimal, setting
from reference import methods, variance
from reference.adjustment import Counts, Thresholds
from reference.collectives import Round
from reference.methods import Source
from reference.ops import Gradient, Index, Vector

RESERVE = Column(
    "steps/reserve",
    PER_LAYER,
    np.int64,
    "values",
    "how many of the layer's k values were chosen by the reserve, over all layers",
    since=2,
    optional=True,
)
"""What the reserve brings of each layer."""


@dataclass(frozen=True)
class DlsSettings(SparseSettings):
    """Those of all sparse methods, and how k moves."""

    dls_steps: CountOrOptimal = setting(
        1, "threshold adjustments after each training step, or optimal", allowed=COUNT
    )
    dls_every: int = setting(1, "adjust after every N-th step only", unit="steps", allowed=POSITIVE)
    dls_from: str = setting(
        "sent",
        "what the adjustment takes the next step's accumulated gradient to be: sent, this step's"
        " before anything left it; left, what was not sent; ahead, what was not sent plus this"
        " step's gradient",
        choices=lambda: typing.get_args(Source),
        idle_with={"dls_steps": lambda steps: steps == 0},
    )
    dls_reserve: float = setting(
        2.0,
        "of its k values each layer leaves C·√k (the first layer all) to one selection over all"
        " layers, sent with the last message; 0: none",
        metavar="C",
        allowed=NOT_NEGATIVE,
    )
    dls_init: str = setting(
        "uniform",
        "how the first step's budget is split over the layers: uniform, in proportion to their"
        " sizes; variance, by the gradient variances of the theory",
        choices=lambda: ("uniform", "variance"),
        fixed=True,
    )


class Dls(LayerwiseTopk):
    """DLS(s): s one-step adjustments a training step, or the optimum (`--dls-steps`), every m-th
    step (`--dls-every`).

    The adjustment works on what `--dls-from` takes the next step's v to be.
    """

    Settings = DlsSettings
    columns = (*LayerwiseTopk.columns, RESERVE)
    takes_pieces = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.brought: Counts = np.zeros_like(self.k)
        self.gradients: list[Vector] = [self.memory.v[:0]] * len(self.sizes)
        self.takes_pieces &= not self._looks_ahead

    @classmethod
    def meaning(cls, settings: Any) -> methods.Method:
        """See `reference.methods.Dls`."""
        return methods.Dls(
            settings.dls_steps, settings.dls_every, settings.dls_from, settings.dls_reserve
        )

    def initial_k(self, budget: int) -> Counts:
        """Layer-wise Top-k's split, or the one that the theory's gradient variances give
        (`--dls-init variance`).
        """
        uniform = super().initial_k(budget)
        return uniform if self.settings.dls_init == "uniform" else self._variance_k(uniform)

    def _variance_k(self, uniform: Counts) -> Counts:
        """Layers without channels, batch norm's, keep their uniform share; the others share the
        rest as their variances tell.
        """
        theory = [i for i, layer in enumerate(self.layout.layers) if layer.channels]
        if not theory:
            raise ValueError(
                "--dls-init variance needs a model whose layers form a chain; use --dls-init"
                " uniform"
            )
        channels = [self.layout.layers[i].channels or (1, 1) for i in theory]
        sigmas = variance.chain_sigmas([variance.corrected_ratio(*each) for each in channels[1:]])
        sizes, budget = [self.layout.sizes[i] for i in theory], int(uniform[theory].sum())
        k = uniform.copy()
        k[theory] = variance.sparsity_from_variances(sizes, list(sigmas), budget)
        return k

    def own_k(self, k: Counts) -> Counts:
        """All but the reserve; nothing of the part whose gradient comes last, which the reserve
        serves as well.
        """
        return methods.own_k(k, self.settings.dls_reserve)

    @property
    def _looks_ahead(self) -> bool:
        """Whether the adjustment needs this step's gradients."""
        return bool(self.settings.dls_from == "ahead")

    def _brings_reserve(self, bucket: Bucket) -> bool:
        """Whether this bucket leaves last, and with it what the reserve brings."""
        return bucket.is_last and self.settings.dls_reserve > 0

    def select(self, bucket: Bucket, gradient: Gradient) -> list[Section]:
        """Each part by itself; with the last ones also the largest of all that is left, as many as
        the reserve holds.
        """
        if self._looks_ahead:
            flat, bounds = cast(Vector, gradient), pairwise(bucket.cuts)
            for part, (start, stop) in zip(bucket.parts, bounds, strict=True):
                self.gradients[part] = flat[start:stop]
        own = super().select(bucket, gradient)
        if not self._brings_reserve(bucket):
            return own
        room = int(self.k.sum() - self.sent.sum())
        index, values = self.ops.top_k_of_rest(self.memory.v, self.offsets, self.heads, room)
        on_host = self.ops.to_host(index), self.ops.to_host(values)
        own_sent = self.sent
        self.sent, self.thresholds = with_rest(self.sent, self.thresholds, self.offsets, *on_host)
        self.brought = self.sent - own_sent
        reserve = self.k_of_ranks.sum(axis=1) - self.own_k(self.k_of_ranks).sum(axis=1)
        return [*own, self.section(self.layout.whole, index, values, reserve)]

    def describe_selection(self) -> dict[str, Any]:
        """And what the reserve brought."""
        return {**super().describe_selection(), "reserve": self.brought.copy()}

    def volumes(self, k: Counts) -> Iterator[tuple[int, int]]:
        """And, with the last bucket, what the reserve brings."""
        yield from super().volumes(k)
        if self.settings.dls_reserve:
            yield self.layout.n, int(k.sum() - self.own_k(k).sum())

    def complete(self, bucket: Bucket, landed: Landed, update: Vector) -> slice:
        """With a reserve nothing before the last bucket, and then everything."""
        if not self.settings.dls_reserve:
            return super().complete(bucket, landed, update)
        self.add(bucket, landed, update)
        if not bucket.is_last:
            return slice(0, 0)
        span = self.average(self.layout.whole, update)
        self.memory.settle(span, update[span])
        return span

    def adjust(self, finished: int) -> Generator[Round, Any, None]:
        """Move k between the layers and tell the other ranks."""
        if finished % self.settings.dls_every:
            return
        own = self.checked(self.next_k(), int(self.sent.sum()))
        self.forget_heads()
        self.k_of_ranks = yield from gather_counts(own, self.net, "<u4")

    def next_k(self) -> Counts:
        """k of the next step (L), from what its v is taken to be; all is chosen, what was sent is
        still in the memory.
        """
        algorithm2, steps = self.backend.adjustment, self.settings.dls_steps
        if steps == 0:
            return self.sent.copy()
        as_sent = self.settings.dls_from == "sent"
        v = [self.v(part) for part in range(len(self.sizes))] if as_sent else self._guessed()
        if steps == "optimal":
            k: Counts = algorithm2.optimal_adjustment(v, self.sent)
        elif as_sent:
            k = algorithm2.adjust(v, self.sent, self.part_thresholds(), steps, self.heads)
        else:
            k = algorithm2.adjust(v, self.sent, algorithm2.fresh_thresholds(v, self.sent), steps)
        return k

    def _guessed(self) -> list[Vector]:
        """What is left of v, or that and the gradient once more, layer by layer: as many of the
        largest as any k can concern.
        """
        enough = int(self.sent.sum()) + 1
        with self._without_sent():
            return [
                self.ops.top_k(self._guess(part), min(enough, n))[1]
                for part, n in enumerate(self.sizes)
            ]

    def _guess(self, part: int) -> Vector:
        left = self.v(part)
        if self._looks_ahead:
            left = left.copy()
            with np.errstate(over="ignore"):
                self.ops.accumulate(left, self.gradients[part])
            left.clip(-methods.LARGEST, methods.LARGEST, out=left)
        return left

    @contextmanager
    def _without_sent(self) -> Iterator[None]:
        """Zeros in place of what was sent, for a while."""
        kept = [(self.memory.v[place], chosen.index) for place, chosen in self.leaving()]
        values = [flat[index] for flat, index in kept]
        try:
            for flat, index in kept:
                flat[index] = 0
            yield
        finally:
            for (flat, index), before in zip(kept, values, strict=True):
                flat[index] = before

    def bytes_received(self) -> int:
        """And now and then the others' next k."""
        announced = traffic.allgather_bytes(self.k.astype(np.uint32).nbytes, self.net.size)
        return super().bytes_received() + announced // int(self.settings.dls_every)


def with_rest(
    sent: Counts, thresholds: Thresholds, offsets: Index, index: Index, values: Vector
) -> tuple[Counts, Thresholds]:
    """What each part sends (L), and the smallest magnitude of that (L), once the reserve's entries
    (m) have come to them.

    offsets (L + 1). Where a part sends nothing its number is no threshold, but a good hint.
    """
    if not index.size:
        return sent, thresholds
    magnitudes, cuts, thresholds = (
        np.abs(values),
        np.searchsorted(index, offsets),
        thresholds.copy(),
    )
    more = np.diff(cuts)
    with_more = np.flatnonzero(more)
    thresholds[with_more] = np.minimum.reduceat(magnitudes, cuts[with_more])
    thresholds[sent + more == 0] = magnitudes.min()
    return sent + more, thresholds
