"""What every method is, and what all sparse methods share.

A method cuts the flat gradient into parts, in forward order. A part is chosen and travels as one: a layer for methods that
can send it while earlier layers are still being differentiated, the whole gradient for a method that must see all of it.
The worker asks for parts as their gradients become complete, from the last to the first, and groups them into messages.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from dls import traffic
from reference import methods
from reference.adjustment import Counts, Thresholds
from reference.ops import Head, Index, NonFiniteError, Vector
from reference.wire import MessageError

if TYPE_CHECKING:
    from dls.backends import Backend
    from dls.comm import Comm, Pending
    from dls.program.config import Config
    from dls.tasks.models import LayerInfo


@dataclass(frozen=True)
class Part:
    """The part number `index`: layers first..last of the gradient, whose values lie at start..stop of the flat buffer."""

    index: int
    first: int
    last: int
    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many values."""
        return self.stop - self.start


@dataclass(frozen=True)
class Setup:
    """What a method gets to know: settings, layers, where its own values lie, who computes and who carries."""

    config: Config
    layers: Sequence[LayerInfo]
    chain: bool
    gradients: Vector
    backend: Backend
    comm: Comm

    @property
    def sizes(self) -> list[int]:
        """n_l of every layer."""
        return [layer.size for layer in self.layers]

    def budget(self, step: int) -> int:
        """K of the training step that follows `step` finished ones."""
        density = methods.warmup_density(self.config.density, step, self.config.density_warmup)
        return methods.budget(sum(self.sizes), density)


@dataclass(frozen=True)
class Section:
    """Entries that a message holds apart: where in the flat buffer they may lie, and how many each rank sends (P)."""

    place: slice
    entries: Sequence[int]

    @property
    def size(self) -> int:
        """n of the wire format."""
        return int(self.place.stop - self.place.start)


@dataclass(frozen=True)
class Message:
    """Parts under way together, and how to read what arrives.

    complete: where in the update all is known once this message is read, after those that were sent before it.
    """

    parts: Sequence[Part]
    pending: Pending
    received: Any
    complete: slice
    sections: Sequence[Section] = ()


@dataclass(frozen=True)
class Chosen:
    """What leaves in a section: its place in the flat buffer, where in it the entries lie, and their values."""

    place: slice
    index: Index
    values: Vector


def span(parts: Sequence[Part]) -> slice:
    """Where in the flat buffer neighbouring parts lie."""
    return slice(parts[0].start, parts[-1].stop)


class Sparsifier(ABC):
    """One rank's method: what it sends of each accumulated gradient, and what stays behind.

    A training step calls, in this order: `begin`, `select` and `send` for each group of neighbouring parts (from the last
    to the first), `adjust`, `receive` for each message, `finish`. Layer quantities of the step, for the trace, and
    `global_share`, may be asked for between `adjust` and `finish`.

    reads: the settings of methods that have an effect on it; the others are named where they are given.
    """

    reads: ClassVar[frozenset[str]] = frozenset({"overlap", "bucket_size"})

    def __init__(self, setup: Setup) -> None:
        self.setup, self.comm = setup, setup.comm
        self.ops, self.wire = setup.backend.ops, setup.backend.wire
        self.offsets = np.concatenate([[0], np.cumsum(setup.sizes)]).astype(np.int64)
        self.parts = [self._part(index, layers) for index, layers in enumerate(self.cut())]

    @property
    def density(self) -> float:
        """The share of the gradient that is sent, after any warm-up."""
        return self.setup.config.density

    def cut(self) -> Sequence[range]:
        """The layers of each part, in forward order; one layer each unless a method needs more at once."""
        return [range(layer, layer + 1) for layer in range(len(self.setup.layers))]

    def _part(self, index: int, layers: range) -> Part:
        return Part(index, layers[0], layers[-1], int(self.offsets[layers[0]]), int(self.offsets[layers[-1] + 1]))

    def begin(self, step: int) -> None:
        """Get ready for the training step that follows `step` finished ones."""
        return

    @abstractmethod
    def select(self, parts: Sequence[Part]) -> None:
        """Choose what to send of neighbouring parts, in forward order, whose gradients are complete.

        NonFiniteError where they hold NaN or infinity.
        """

    @abstractmethod
    def send(self, parts: Sequence[Part]) -> Message:
        """Post the exchange of the parts that were just selected."""

    def adjust(self, step: int) -> None:
        """Set the next step's k, after training step number `step` (from 1), whose last part has been sent."""
        return

    @abstractmethod
    def receive(self, message: Message, update: Vector) -> None:
        """Add what a completed message brings to `update` (n); where that is complete now, it is the mean over the ranks."""

    def finish(self) -> None:
        """The step is over: what was sent leaves the residual."""
        return

    @abstractmethod
    def layer_k(self) -> Counts:
        """How many values of each layer this step sent (L)."""

    @abstractmethod
    def layer_thresholds(self) -> Thresholds:
        """The thresholds of this step's selection (L)."""

    @abstractmethod
    def bytes_received(self, groups: Iterable[Sequence[Part]]) -> int:
        """About how many bytes a step brings from the other ranks, where these parts leave together.

        At the density that is left after any warm-up. Asked between two steps.
        """

    def global_share(self) -> float:
        """Of the K largest magnitudes of the whole accumulated gradient, K as many as were sent, the share that was sent."""
        return 1.0

    def residual_norms(self) -> NDArray[np.float64]:
        """The L2 norm of what each layer keeps (L), after `finish`."""
        return np.zeros(len(self.setup.layers))

    def state(self) -> dict[str, NDArray[Any]]:
        """All that a resumed run needs of this rank, between two steps.

        Where the number of ranks changes, floats become means of those of several ranks; integers are counts whose sum is the
        same on all ranks, and stays (`reference.ranks`).
        """
        return {}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Go on from what `state` gave, between two steps or in place of a `finish`. Every rank calls it."""
        return

    def words(self, parts: Sequence[Part]) -> str:
        """The parts, for people."""
        first, last = (self.setup.layers[layer].name for layer in (parts[0].first, parts[-1].last))
        return f"layer {first}" if first == last else f"layers {first} to {last}"

    def guard(self, parts: Sequence[Part], flat: Vector) -> None:
        """NonFiniteError that names the first layer of the parts that is not finite in the flat buffer."""
        if self.ops.all_finite(flat[parts[0].start : parts[-1].stop]):
            return
        for layer in range(parts[0].first, parts[-1].last + 1):
            if not self.ops.all_finite(flat[self.offsets[layer] : self.offsets[layer + 1]]):
                raise NonFiniteError(f"NaN or infinity in the gradient of layer {self.setup.layers[layer].name}")


class SparseSparsifier(Sparsifier):
    """Top-k with error feedback: the selection of each part travels by sparse allgather, the rest stays in the residual.

    A subclass says how the budget is split over the parts (`initial_k`) and, if it likes, how k moves (`adjust`). The residual
    holds v, the accumulated gradient, from `select` until `finish` takes out what was sent. `sent`: how many values of each part
    this step sends; `thresholds`: the smallest magnitude of these, as far as there are any.
    """

    reads = Sparsifier.reads | {"density", "density_warmup", "value_dtype"}

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.residual: Vector = self.ops.zeros(int(self.offsets[-1]))
        self.sizes = [part.size for part in self.parts]
        methods.budget(sum(setup.sizes), setup.config.density)  # refuses what a density warm-up would only meet later
        self.k_of_ranks = np.tile(self.checked(self.initial_k(setup.budget(0)), setup.budget(0)), (self.comm.size, 1))
        self.thresholds = np.zeros(len(self.parts))
        self.sent = np.zeros_like(self.k)
        self.chosen: dict[Part, list[Chosen]] = {}
        self.heads: list[Head] = [Head(np.empty(0, dtype=np.int64), self.residual[:0], 0, math.inf, math.inf)] * len(self.parts)

    @abstractmethod
    def initial_k(self, budget: int) -> Counts:
        """How the first step's budget is split over the parts."""

    def checked(self, k: Counts, budget: int) -> Counts:
        """k of the parts, as it is. ValueError where it is not a whole number from 0 to n_l for each, and the budget in sum."""
        found = np.asarray(k)
        if found.shape != (len(self.sizes),) or found.dtype.kind not in "iu" or (found < 0).any() or (found > self.sizes).any():
            raise ValueError(f"k is {k}, not a whole number from 0 to the size of each part, {self.sizes}")
        if found.sum() != budget:
            raise ValueError(f"k is {k}, {found.sum()} in sum, with a budget of {budget}")
        return found

    @property
    def k(self) -> Counts:
        """This rank's k of every part."""
        own: Counts = self.k_of_ranks[self.comm.rank]
        return own

    def v(self, part: Part) -> Vector:
        """The part's accumulated gradient, between `select` and `finish`."""
        return self.residual[part.start : part.stop]

    def begin(self, step: int) -> None:
        """Follow the density warm-up."""
        budget = self.setup.budget(step)
        if budget != self.k.sum():
            self.k_of_ranks = np.stack([methods.rescale(k, self.sizes, budget) for k in self.k_of_ranks])

    def own_k(self, k: Counts) -> Counts:
        """How many of its k values each part chooses by itself; k [..., parts]."""
        return k

    def select(self, parts: Sequence[Part]) -> None:
        """v = r + g, then what leaves of it, section by section."""
        value_dtype = self.setup.config.value_dtype
        self.chosen[parts[0]] = [
            Chosen(place, index, self.wire.round_values(values, value_dtype)) for place, index, values in self.choose(parts)
        ]

    def choose(self, parts: Sequence[Part]) -> list[tuple[slice, Index, Vector]]:
        """v = r + g, then top-k in each part; the last step's thresholds are the hints. A place, index and values a section."""
        here, place = slice(parts[0].index, parts[-1].index + 1), span(parts)
        cuts, own, k = np.cumsum([0, *self.sizes[here]]), self.own_k(self.k)[here], self.k[here]
        try:
            index, values, self.thresholds[here], self.heads[here] = self.ops.select_layers(
                self.residual[place], self.setup.gradients[place], cuts, own, self.thresholds[here], k
            )
        except NonFiniteError:
            self.guard(parts, self.residual)
            raise
        self.sent[here] = own
        return [(place, index, values)]

    def send(self, parts: Sequence[Part]) -> Message:
        """One sparse allgather of what leaves with these parts; n and k of its sections fix every rank's size."""
        value_dtype, sections = self.setup.config.value_dtype, self.sections(parts, self.k_of_ranks)
        pieces = [
            self.wire.encode(chosen.index, chosen.values, section.size, value_dtype)
            for chosen, section in zip(self.chosen[parts[0]], sections, strict=True)
        ]
        payload = np.concatenate(pieces) if len(pieces) > 1 else pieces[0]
        pending, received = self.comm.allgatherv(payload, self._bytes(sections).sum(axis=0).tolist(), self.words(parts))
        return Message(parts, pending, received, self.completes(parts), sections)

    def sections(self, parts: Sequence[Part], k: Counts) -> list[Section]:
        """What leaves with these parts where the ranks' k are so many (P, parts)."""
        entries = self.own_k(k)[:, parts[0].index : parts[-1].index + 1].sum(axis=1)
        return [Section(span(parts), entries.tolist())]

    def completes(self, parts: Sequence[Part]) -> slice:
        """Where the update is complete once the message of these parts is read."""
        return span(parts)

    def _bytes(self, sections: Sequence[Section]) -> Counts:
        """The length of each section of each rank's message (sections, P)."""
        value_dtype = self.setup.config.value_dtype
        return np.array([[self.wire.payload_size(each.size, k, value_dtype) for k in each.entries] for each in sections])

    def receive(self, message: Message, update: Vector) -> None:
        """u = float32(1/P) · Σ_p scatter(S^p), section by section, in rank order."""
        update[span(message.parts)] = 0
        ends = self._bytes(message.sections).cumsum(axis=0)
        for section, stops, starts in zip(message.sections, ends, [np.zeros_like(ends[0]), *ends], strict=False):
            for rank, (k, start, stop) in enumerate(zip(section.entries, starts, stops, strict=True)):
                payload = message.received[rank][start:stop]
                try:
                    entries = self.wire.decode(payload, section.size, k, self.setup.config.value_dtype)
                except MessageError as error:
                    raise MessageError(f"{self.words(message.parts)}, from rank {rank}: {error}") from None
                self.ops.scatter_add(update[section.place], *entries)
        self.ops.scale(update[message.complete], 1 / self.comm.size)

    def leaving(self) -> Iterator[Chosen]:
        """All that was chosen in this step, so far."""
        return itertools.chain.from_iterable(self.chosen.values())

    def finish(self) -> None:
        """r = v − scatter(S)."""
        for chosen in self.leaving():
            self.ops.scatter_subtract(self.residual[chosen.place], chosen.index, chosen.values)
        self.chosen.clear()

    def bytes_received(self, groups: Iterable[Sequence[Part]]) -> int:
        """One message a group from every other rank, which chooses as this one does."""
        k = methods.rescale(self.k, self.sizes, methods.budget(sum(self.sizes), self.density))
        sent = sum(int(self._bytes(self.sections(group, k[None])).sum()) for group in groups)
        return traffic.allgather_bytes(sent, self.comm.size)

    def residual_norms(self) -> NDArray[np.float64]:
        """The L2 norm of each layer's residual."""
        norms: NDArray[np.float64] = self.ops.l2_norms(self.residual, self.offsets)
        return norms

    def global_share(self) -> float:
        """By the choice that Global Top-k makes of the same v, ties included."""
        sent = [self.ops.to_host(chosen.index) + chosen.place.start for chosen in self.leaving()]
        own = np.concatenate(sent)
        best = self.ops.to_host(self.ops.top_k(self.residual, own.size)[0])
        return np.intersect1d(own, best, assume_unique=True).size / own.size

    def part_thresholds(self) -> Thresholds:
        """The fresh thresholds of the parts."""
        inner = [float(t) for t, kl, n in zip(self.thresholds, self.sent, self.sizes, strict=True) if 0 < kl < n]
        v = [self.v(part) for part in self.parts]
        thresholds: Thresholds = self.setup.backend.adjustment.complete_thresholds(v, self.sent, inner)
        return thresholds

    def state(self) -> dict[str, NDArray[Any]]:
        """The residual (n), k and the hints of this rank."""
        return {"residual": self.ops.to_host(self.residual), "k": self.k, "thresholds": self.thresholds}

    def restore(self, state: dict[str, NDArray[Any]]) -> None:
        """Take over residual and k, and learn the other ranks' k. ValueError, on all ranks, where one's k does not fit."""
        self.chosen.clear()
        pending, self.k_of_ranks = self.comm.allgather(state["k"], "the other ranks' k")
        pending.wait()
        budgets = self.k_of_ranks.sum(axis=1)
        if (self.k_of_ranks < 0).any() or (self.k_of_ranks > self.sizes).any() or (budgets != budgets[0]).any():
            raise ValueError("its k does not fit the layers")
        self.residual[...] = self.ops.from_host(state["residual"])
        self.thresholds[...] = state["thresholds"]
