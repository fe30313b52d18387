"""Parts that only tests use: a collective and a memory which DLS does not have.

They show that the interfaces carry more than what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dls.exchange.memory import Memory, State, add
from dls.exchange.methods.layerwise_topk import LayerwiseTopk
from reference import ops as numpy_ops
from reference import wire as numpy_wire
from reference.collectives import (
    Chosen,
    Entries,
    Exchange,
    Exchanged,
    Gather,
    Net,
    Reduce,
    Sum,
    Swap,
    mail,
)
from reference.ops import Vector

INDEX = 8
"""Bytes of an index, int64."""


def union(
    chosen: Chosen, v: Vector, net: Net, ops: Any = numpy_ops, wire: Any = numpy_wire
) -> Exchange:
    """Indices first; then all ranks' v at their union is summed, and taken on every rank."""
    payload = np.ascontiguousarray(ops.to_host(chosen.index), dtype="<i8").view(np.uint8)
    known = None if chosen.counts is None else [INDEX * k for k in chosen.counts]
    received = yield Gather(payload, known)
    index = np.unique(np.concatenate([each.view("<i8") for each in received]))
    own = ops.to_host(v)[index]
    total = yield Reduce(own)
    place = ops.from_host(index)
    taken = Entries(place, ops.from_host(own))
    return Exchanged([Entries(place, ops.from_host(total))], [taken])


class EF21(Memory):
    """g_est += C(g - g_est) on each rank; all apply the mean of g_est, which all keep.

    Richtarik, Sokolov and Fatkhullin (2021), Algorithm 2. v is g - g_est, and -g_est between steps.
    """

    def __init__(self, n: int, ops: Any) -> None:
        self._ops = ops
        self.v: Vector = ops.zeros(n)
        self.estimate: Vector = ops.zeros(n)
        self.mean: Vector = ops.zeros(n)

    def pair(self, span: slice, gradient: Vector) -> tuple[Vector, Vector]:
        return self.v[span], gradient

    def settle(self, span: slice, mean: Vector) -> None:
        self.mean[span] += mean
        mean[...] = self.mean[span]

    def release(self, place: slice, exchanged: Exchanged) -> None:
        for entries in exchanged.taken:
            add(self.estimate[place], entries, self._ops)
        for entries in exchanged.returned:
            assert entries.index is not None
            self._ops.scatter_subtract(self.estimate[place], entries.index, entries.values)
        self.v[place] = -self.estimate[place]

    def state(self) -> State:
        to_host = self._ops.to_host
        return {"estimate": to_host(self.estimate), "mean": to_host(self.mean)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.estimate[...] = self._ops.from_host(np.asarray(state["estimate"]))
        self.mean[...] = self._ops.from_host(np.asarray(state["mean"]))
        self.v[...] = -self.estimate


class LayerwiseEF21(LayerwiseTopk):
    """EF21 with a top-k in each layer."""

    def make_memory(self) -> Memory:
        return EF21(self.layout.n, self.ops)


# ------------------------------------------------------------------ cases and what to hold them to


def choose(
    vectors: Sequence[Vector], counts: Sequence[int], known: bool, dtype: str
) -> list[Chosen]:
    """What each rank chooses of its own v: the largest, as they arrive."""
    chosen = []
    for v, k in zip(vectors, counts, strict=True):
        index, values = numpy_ops.top_k(v, k)
        arriving = numpy_wire.round_values(values, dtype)
        chosen.append(Chosen(v.size, index, arriving, list(counts) if known else None, dtype))
    return chosen


def exchanges(
    collective: Callable[..., Exchange], chosen: Sequence[Chosen], vectors: Sequence[Vector]
) -> list[Exchange]:
    """One collective's generators, one a rank."""
    ranks = len(chosen)
    pairs = enumerate(zip(chosen, vectors, strict=True))
    return [collective(each, v, Net(rank, ranks)) for rank, (each, v) in pairs]


def mailed(
    collective: Callable[..., Exchange], chosen: Sequence[Chosen], vectors: Sequence[Vector]
) -> list[Exchanged]:
    """What comes of it in this process."""
    return mail(exchanges(collective, chosen, vectors))


def content(exchanged: Exchanged) -> list[Any]:
    """All bits of it, to be compared."""
    return [[entry_bits(each) for each in part] for part in exchanged]


def entry_bits(entries: Entries) -> tuple[bytes | None, bytes]:
    index = None if entries.index is None else np.asarray(entries.index, dtype=np.int64).tobytes()
    return index, np.asarray(entries.values, dtype=np.float32).tobytes()


def every_round(net: Net, seed: int, rounds: int = 6) -> Any:
    """Rounds of all kinds, with sizes and without, in an order that the seed gives.

    Returns all answers as bytes. Values are small whole numbers, whose sums are exact in any order.
    """
    shared, answers = np.random.default_rng(seed), []
    for number in range(rounds):
        kind = ("gather", "sized gather", "reduce", "sum", "swap", "sized swap")[shared.integers(6)]
        sizes = shared.integers(0, 200, net.size).tolist()
        shift, n = int(shared.integers(net.size)), int(shared.integers(0, 50))
        own = np.random.default_rng((seed, number, net.rank))
        payload = own.integers(0, 256, sizes[net.rank]).astype(np.uint8)
        values = own.integers(-9, 10, n).astype(np.float32)
        to, source = (net.rank + shift) % net.size, (net.rank - shift) % net.size
        if "gather" in kind:
            received = yield Gather(payload, sizes if "sized" in kind else None)
            answers.append([each.tobytes() for each in received])
        elif "swap" in kind:
            size = sizes[source] if "sized" in kind else None
            received = yield Swap(to, source, payload, size)
            answers.append([received.tobytes()])
        else:
            received = yield (Reduce if kind == "reduce" else Sum)(values)
            answers.append([received.tobytes()])
    return answers
