"""The base class of all methods, and that of the sparse ones.

A method receives one bucket's gradient at a time, from the last layers to the first, and returns
what came of its exchange. The central function is `exchange`, a generator of rounds
(`reference.collectives`): its messages travel while the gradients of earlier layers are still being
computed.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dls import traffic
from dls.backends import Backend
from dls.exchange.clock import Clock
from dls.exchange.columns import RESIDUAL_NORM, THRESHOLD, Column, K
from dls.exchange.layout import Bucket, Layout
from dls.exchange.memory import ErrorFeedback, Memory, State, add
from dls.exchange.settings import COUNT, Range, setting
from reference import collectives, methods
from reference.adjustment import Counts, Thresholds
from reference.collectives import Chosen, Exchanged, Gather, Net, Round
from reference.ops import Gradient, Head, Index, NonFiniteError, Vector
from reference.wire import VALUE_BYTES

Landed = Sequence[tuple[slice, Exchanged]]
"""What came of a bucket's exchange: spans of the flat gradient, each with its result."""
Section = tuple[slice, Chosen]
"""A span of the flat gradient, and what a rank has selected there."""


@dataclass(frozen=True)
class NoSettings:
    """A method without settings."""


class Method(ABC):
    """One rank's method: what it sends of each gradient, and what it keeps.

    A step calls `begin`; `exchange` for each bucket, in the order of sending; `adjust`; `complete`
    for each bucket whose exchange has returned, in that order; `release`. `describe_selection` and
    `global_share` may be called between `complete` and `release`.

    Settings: a frozen dataclass whose fields, made by `settings.setting`, are the method's flags
    and TOML keys. whole: all layers are one bucket and one part. takes_pieces: `exchange` also
    takes a gradient as the vectors that make it up, so that these need not be copied together.
    library_sums: sums are formed in the MPI library's order, so that the bits depend on the
    library. columns: what it records of each step, one dataset of the trace each;
    `describe_selection` and `describe_memory` give their values.
    """

    Settings: ClassVar[type] = NoSettings
    columns: ClassVar[tuple[Column, ...]] = (K, THRESHOLD, RESIDUAL_NORM)
    whole: ClassVar[bool] = False
    takes_pieces: bool = False
    library_sums: ClassVar[bool] = False

    def __init__(
        self,
        layout: Layout,
        settings: Any,
        net: Net,
        backend: Backend,
        buckets: Sequence[Bucket],
        clock: Clock | None = None,
    ) -> None:
        self.layout, self.settings, self.net, self.buckets = layout, settings, net, buckets
        self.backend, self.ops, self.wire = backend, backend.ops, backend.wire
        self.clock = clock or Clock()

    @classmethod
    def meaning(cls, settings: Any) -> methods.Method | None:
        """The reference's version, whose bits it must reproduce; None: there is none."""
        return None

    @property
    def density(self) -> float:
        """The share of the gradient that is sent, after any density warm-up."""
        return 1.0

    def begin(self, finished: int) -> None:
        """Prepare the step that follows so many finished ones."""
        return

    @abstractmethod
    def exchange(self, bucket: Bucket, gradient: Vector) -> Generator[Round, Any, Landed]:
        """Select from the bucket's gradient (n of the bucket), exchange, and return the results.

        It runs up to its first round at once. NonFiniteError where the gradient holds NaN or
        infinity.
        """

    def adjust(self, finished: int) -> Generator[Round, Any, None]:
        """Set the next step's k, after the last bucket was sent.

        finished: the number of finished steps, this one included.
        """
        return
        yield

    def complete(self, bucket: Bucket, landed: Landed, update: Vector) -> slice:
        """Write a bucket's results into the update (n); return the span that holds the mean now."""
        self.add(bucket, landed, update)
        return self.average(bucket.span, update)

    def add(self, bucket: Bucket, landed: Landed, update: Vector) -> None:
        """Write the sum over the ranks into the bucket's span of the update."""
        entries = [each for _, exchanged in landed for each in exchanged.update]
        if len(entries) == 1 and entries[0].index is None:  # nothing to be added to
            update[bucket.span] = self.ops.from_host(entries[0].values)
            return
        update[bucket.span] = 0
        for place, exchanged in landed:
            for each in exchanged.update:
                add(update[place], each, self.ops)

    def average(self, span: slice, update: Vector) -> slice:
        """Divide the sum over the ranks in that span by their number."""
        self.ops.scale(update[span], 1 / self.net.size)
        return span

    def release(self, landed: Landed) -> None:
        """At the end of the step: what was sent leaves the memory."""
        return

    @abstractmethod
    def layer_k(self) -> Counts:
        """How many values of each layer this step sent (L)."""

    @abstractmethod
    def layer_thresholds(self) -> Thresholds:
        """The thresholds of this step's selection (L)."""

    def describe_selection(self) -> dict[str, NDArray[Any]]:
        """Values of its columns by name, as far as they are known before `release`."""
        return {"k": self.layer_k(), "threshold": self.layer_thresholds()}

    def describe_memory(self) -> dict[str, NDArray[Any]]:
        """Values of its columns by name that are known after `release`."""
        return {"residual_norm": self.residual_norms()}

    @abstractmethod
    def bytes_received(self) -> int:
        """About how many bytes a step brings from the other ranks, after any density warm-up."""

    def global_share(self) -> float:
        """The share of Global Top-k's choice, with the same K, that was sent."""
        return 1.0

    def residual_norms(self) -> NDArray[np.float64]:
        """The L2 norm of what each layer keeps (L), after `release`."""
        return np.zeros(len(self.layout))

    def state(self) -> State:
        """All that a resumed run needs of this rank, between two steps.

        When a run resumes on another number of ranks, float arrays become means over several ranks;
        integer arrays are counts whose sum is equal on all ranks, and is kept (`reference.ranks`).
        """
        return {}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Generator[Round, Any, None]:
        """Continue from what `state` returned: between two steps, or in place of `release`.

        ValueError, on all ranks, where it does not fit.
        """
        return
        yield

    def guard(self, layers: range, flat: Vector, start: int = 0) -> None:
        """NonFiniteError that names the first of these layers whose gradient is not finite.

        start: where the flat buffer begins in the whole gradient.
        """
        span = self.layout.span(layers)
        if self.ops.all_finite(flat[span.start - start : span.stop - start]):
            return
        for layer in layers:
            here = self.layout.span(range(layer, layer + 1))
            if not self.ops.all_finite(flat[here.start - start : here.stop - start]):
                raise NonFiniteError(
                    f"NaN or infinity in the gradient of layer {self.layout.layers[layer].name}"
                )


@dataclass(frozen=True)
class SparseSettings:
    """The settings of all sparse methods."""

    density: float = setting(
        0.01,
        "fraction of the gradient's values that each rank sends",
        metavar="FRACTION",
        allowed=Range(0, 1, low_open=True),
        fixed=True,
    )
    density_warmup: int = setting(
        0,
        "lower the density from 0.25 to --density over the first N steps",
        unit="steps",
        allowed=COUNT,
        fixed=True,
    )
    value_dtype: str = setting(
        "float32",
        "type of the values in messages; rounding errors stay in the residual",
        choices=lambda: tuple(VALUE_BYTES),
        fixed=True,
    )
    collective: str = setting(
        "allgather",
        "how sparse gradients are summed: allgather keeps every entry, gtopk (gTop-k) only the"
        " largest sums",
        choices=lambda: tuple(collectives.COLLECTIVES),
        fixed=True,
    )


class Sparse(Method):
    """Top-k with error feedback: what each part chooses travels by a sparse collective, the rest
    stays in the residual.

    A subclass says how the budget is split over the parts (`initial_k`) and, if it likes, how k
    moves (`adjust`). `memory.v` holds v, the accumulated gradient, from a part's selection to
    `release`. `sent`: how many values of each part this step sends; `thresholds`: the smallest
    magnitude of these, as far as there are any.

    A subclass with an `exchange` or `select` of its own is given no pieces, unless it says that it
    takes them.
    """

    Settings = SparseSettings
    settings: Any
    takes_pieces = True

    def __init_subclass__(cls) -> None:
        """See `takes_pieces`."""
        if {"exchange", "select"} & vars(cls).keys() and "takes_pieces" not in vars(cls):
            cls.takes_pieces = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.memory: Memory = self.make_memory()
        self.takes_pieces &= self.memory.takes_pieces
        self.collective = collectives.COLLECTIVES[self.settings.collective]
        self.sizes = self.layout.sizes_of(self.buckets)
        self.offsets: Index = np.cumsum([0, *self.sizes], dtype=np.int64)
        self.budget_of(
            self.settings.density
        )  # refuses what a density warm-up would only meet later
        first = self.budget(0)
        self.k_of_ranks = np.tile(self.checked(self.initial_k(first), first), (self.net.size, 1))
        self.thresholds = np.zeros(len(self.sizes))
        self.sent = np.zeros_like(self.k)
        self.chosen: dict[int, list[Section]] = {}
        self.forget_heads()

    def forget_heads(self) -> None:
        """Free what this step's selection has come across."""
        nothing = Head(np.empty(0, dtype=np.int64), self.memory.v[:0], 0, math.inf, math.inf)
        self.heads: list[Head] = [nothing] * len(self.sizes)

    def make_memory(self) -> Memory:
        """What is kept between steps, and how."""
        return ErrorFeedback(self.layout.n, self.ops)

    @property
    def density(self) -> float:
        """The setting's value."""
        return float(self.settings.density)

    def budget_of(self, density: float) -> int:
        """K at a density. ValueError where it rounds to no value at all."""
        return methods.budget(self.layout.n, density)

    def budget(self, finished: int) -> int:
        """K of the training step that follows so many finished ones."""
        return self.budget_of(
            methods.warmup_density(self.density, finished, self.settings.density_warmup)
        )

    @abstractmethod
    def initial_k(self, budget: int) -> Counts:
        """How the first step's budget is split over the parts."""

    def checked(self, k: Counts, budget: int) -> Counts:
        """k of the parts, as it is.

        ValueError where it is not a whole number from 0 to n_l for each, and the budget in sum.
        """
        found = np.asarray(k)
        if (
            found.shape != (len(self.sizes),)
            or found.dtype.kind not in "iu"
            or (found < 0).any()
            or (found > self.sizes).any()
        ):
            raise ValueError(
                f"k is {k}, not a whole number from 0 to the size of each part, {self.sizes}"
            )
        if found.sum() != budget:
            raise ValueError(f"k is {k}, {found.sum()} in sum, with a budget of {budget}")
        return found

    @property
    def k(self) -> Counts:
        """This rank's k of every part."""
        own: Counts = self.k_of_ranks[self.net.rank]
        return own

    def v(self, part: int) -> Vector:
        """The part's accumulated gradient, between its selection and `release`."""
        return self.memory.v[self.offsets[part] : self.offsets[part + 1]]

    def begin(self, finished: int) -> None:
        """Follow the density warm-up."""
        budget = self.budget(finished)
        if budget != self.k.sum():
            self.k_of_ranks = np.stack(
                [methods.rescale(k, self.sizes, budget) for k in self.k_of_ranks]
            )

    def own_k(self, k: Counts) -> Counts:
        """How many of its k values each part chooses by itself; k [..., parts]."""
        return k

    def exchange(self, bucket: Bucket, gradient: Gradient) -> Generator[Round, Any, Landed]:
        """Choose, then let the collective carry each section; they travel together."""
        with self.clock.phase("select", bucket.layers):
            sections = self.chosen[bucket.index] = self.select(bucket, gradient)
        exchanges = [
            self.collective(chosen, self.memory.v[place], self.net, self.ops, self.wire)
            for place, chosen in sections
        ]
        done = yield from collectives.together(exchanges)
        return [(place, exchanged) for (place, _), exchanged in zip(sections, done, strict=True)]

    def select(self, bucket: Bucket, gradient: Gradient) -> list[Section]:
        """v = r + g, then top-k in each part; the last step's thresholds are the hints."""
        here, residual = (
            slice(bucket.parts.start, bucket.parts.stop),
            self.memory.pair(bucket.span, gradient),
        )
        own_of_ranks, k = self.own_k(self.k_of_ranks)[:, here], self.k[here]
        own = own_of_ranks[self.net.rank]
        try:
            index, values, self.thresholds[here], self.heads[here] = self.ops.select_layers(
                *residual, bucket.cuts, own, self.thresholds[here], k
            )
        except NonFiniteError:
            self.guard(bucket.layers, self.memory.v)
            raise
        self.sent[here] = own
        return [self.section(bucket.span, index, values, own_of_ranks.sum(axis=1))]

    def section(self, place: slice, index: Index, values: Vector, counts: Counts) -> Section:
        """Entries of a place, as they will arrive; counts (P): how many each rank chooses there."""
        value_dtype = self.settings.value_dtype
        arriving = self.wire.round_values(values, value_dtype)
        return place, Chosen(
            place.stop - place.start, index, arriving, counts.tolist(), value_dtype
        )

    def complete(self, bucket: Bucket, landed: Landed, update: Vector) -> slice:
        """And what the memory makes of the mean."""
        span = super().complete(bucket, landed, update)
        self.memory.settle(span, update[span])
        return span

    def leaving(self) -> Iterator[Section]:
        """All that was chosen in this step, so far."""
        for sections in self.chosen.values():
            yield from sections

    def release(self, landed: Landed) -> None:
        """r = v − scatter(taken) + scatter(returned)."""
        for place, exchanged in landed:
            self.memory.release(place, exchanged)
        self.chosen.clear()

    def bytes_received(self) -> int:
        """One message a bucket from every other rank, which chooses as this one does."""
        k = methods.rescale(self.k, self.sizes, self.budget_of(self.density))
        value_dtype = self.settings.value_dtype
        sent = [self.wire.payload_size(n, entries, value_dtype) for n, entries in self.volumes(k)]
        return traffic.COLLECTIVES[self.settings.collective](sum(sent), self.net.size)

    def volumes(self, k: Counts) -> Iterator[tuple[int, int]]:
        """Of each section of a step with this k: how many values it ranges over, and how many
        entries it has.
        """
        own = self.own_k(k)
        for bucket in self.buckets:
            yield bucket.size, int(own[bucket.parts.start : bucket.parts.stop].sum())

    def residual_norms(self) -> NDArray[np.float64]:
        """The L2 norm of each layer's residual."""
        norms: NDArray[np.float64] = self.ops.l2_norms(self.memory.v, self.layout.offsets)
        return norms

    def global_share(self) -> float:
        """By the choice that Global Top-k makes of the same v, ties included."""
        sent = [self.ops.to_host(chosen.index) + place.start for place, chosen in self.leaving()]
        own = np.concatenate(sent)
        best = self.ops.to_host(self.ops.top_k(self.memory.v, own.size)[0])
        return np.intersect1d(own, best, assume_unique=True).size / own.size

    def part_thresholds(self) -> Thresholds:
        """The fresh thresholds of the parts."""
        inner = [
            float(t)
            for t, kl, n in zip(self.thresholds, self.sent, self.sizes, strict=True)
            if 0 < kl < n
        ]
        v = [self.v(part) for part in range(len(self.sizes))]
        thresholds: Thresholds = self.backend.adjustment.complete_thresholds(v, self.sent, inner)
        return thresholds

    def state(self) -> State:
        """The memory, k and the hints of this rank."""
        return self.memory.state() | {"k": self.k, "thresholds": self.thresholds}

    def restore(self, state: Mapping[str, NDArray[Any]]) -> Generator[Round, Any, None]:
        """Take over memory and k, and learn the other ranks' k."""
        self.chosen.clear()
        self.k_of_ranks = yield from gather_counts(np.asarray(state["k"]), self.net)
        budgets = self.k_of_ranks.sum(axis=1)
        if (
            (self.k_of_ranks < 0).any()
            or (self.k_of_ranks > self.sizes).any()
            or (budgets != budgets[0]).any()
        ):
            raise ValueError("its k does not fit the layers")
        self.memory.restore(state)
        self.thresholds[...] = state["thresholds"]


def gather_counts(own: Counts, net: Net, kind: str = "<i8") -> Generator[Round, Any, Counts]:
    """Every rank's counts (P, L) from one's own (L); kind: of the integers that travel."""
    payload = np.ascontiguousarray(own.astype(kind)).view(np.uint8)
    received = yield Gather(payload, [payload.size] * net.size)
    counts: Counts = np.stack([each.view(kind) for each in received]).astype(np.int64)
    return counts
