"""What collectives ask of the network: their own generators are run, and the rounds kept.

Most rounds are alike on all ranks, so one rank's generator is run as if every other rank were like
it. Where ranks have partners, all of them are run.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from functools import cache
from typing import Any

import numpy as np

from dls.cost.clock import WORD, Pattern
from reference import ops, wire
from reference.collectives import (
    COLLECTIVES,
    COUNT,
    Chosen,
    Gather,
    LockStepError,
    Net,
    Round,
    Swap,
    deliver,
    mail,
)
from reference.ops import Index, Selection, Vector

Make = Callable[[int], Generator[Round, Any, Any]]
"""Makes a rank's generator."""
MANY = 64
"""Ranks from which on a collective is run with fewer entries, as its ranks are many."""


class Tokens:
    """A wire whose messages have the right size, and carry a number in place of the entries, which
    stay here: it costs less than coding them.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[Index, Vector]] = []

    payload_size = staticmethod(wire.payload_size)
    round_values = staticmethod(wire.round_values)

    def encode(self, index: Index, values: Vector, n: int, value_dtype: str) -> wire.Bytes:
        """A message of the size of `wire.encode`'s."""
        payload = np.zeros(wire.payload_size(n, index.size, value_dtype), dtype=np.uint8)
        if index.size:
            payload[:COUNT].view("<i8")[0] = len(self._kept)
            self._kept.append((index, values))
        return payload

    def decode(self, payload: wire.Bytes, n: int, k: int, value_dtype: str) -> Selection:
        """The entries that `encode` was given."""
        if not k:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
        return self._kept[int(payload[:COUNT].copy().view("<i8")[0])]


def _entries(ranks: int) -> tuple[int, int]:
    """Entries a rank with which a collective is run, twice, to see how its messages grow."""
    return (16, 48) if ranks < MANY else (4, 12)


class HasPartners(Exception):
    """Ranks that send to certain others cannot stand for each other."""


def mirrored(asked: Round, ranks: int) -> Any:
    """The answer where every other rank asks for the same. HasPartners."""
    if isinstance(asked, Gather):
        return (asked.payload,) * ranks
    if isinstance(asked, Swap):
        raise HasPartners
    return np.broadcast_to(np.float32(0), asked.values.shape)


def pattern_of_all(asked: Round, ranks: int) -> Pattern:
    """A round that all ranks ask for alike."""
    one = Pattern.of([asked])
    return one._replace(sizes=np.repeat(one.sizes, ranks))


def observe(make: Make, ranks: int) -> list[Pattern]:
    """The rounds of P ranks. LockStepError."""
    try:
        return _observe_one(make(0), ranks)
    except HasPartners:
        return _observe_all(make, ranks)


def _observe_one(generator: Generator[Round, Any, Any], ranks: int) -> list[Pattern]:
    patterns: list[Pattern] = []
    answer: Any = None
    while True:
        try:
            asked = generator.send(answer)
        except StopIteration:
            return patterns
        patterns.append(pattern_of_all(asked, ranks))
        answer = mirrored(asked, ranks)


def _observe_all(make: Make, ranks: int) -> list[Pattern]:
    patterns: list[Pattern] = []

    def carry(asked: Sequence[Round]) -> list[Any]:
        patterns.append(Pattern.of(asked))
        return deliver(asked)

    mail([make(rank) for rank in range(ranks)], carry)
    return patterns


def of_collective(
    name: str, ranks: int, n: int, k: int, value_dtype: str, known: bool = True
) -> list[Pattern]:
    """The rounds of a collective in which each rank has chosen k of n values.

    A collective of many entries is run twice with less of them, at the same density: its rounds
    stay, and a message grows by the same number of bytes with every byte that the wire needs for
    more entries.
    """
    least, most = _entries(ranks)
    if k <= most:
        return list(_run(name, ranks, n, k, value_dtype, known))
    share = max(1, n // k)
    few, more = (
        _run(name, ranks, share * some, some, value_dtype, known) for some in (least, most)
    )
    if [each.kind for each in few] != [each.kind for each in more]:
        raise LockStepError(f"{name} takes other rounds where more entries are sent")
    sizes = [wire.payload_size(share * some, some, value_dtype) for some in (least, most)]
    wanted = wire.payload_size(n, k, value_dtype)
    position = (wanted - sizes[0]) / (sizes[1] - sizes[0])
    return [_between(one, other, position) for one, other in zip(few, more, strict=True)]


def _between(few: Pattern, more: Pattern, position: float) -> Pattern:
    """The sizes on the line through two patterns; position 0: those of the first, 1: of the
    second.
    """
    sizes = few.sizes + position * (more.sizes - few.sizes)
    return few._replace(sizes=np.maximum(0, np.rint(sizes)).astype(np.int64))


@cache
def _run(
    name: str, ranks: int, n: int, k: int, value_dtype: str, known: bool
) -> tuple[Pattern, ...]:
    """The collective itself, on random choices."""
    v: Vector = np.zeros(n, dtype=np.float32)
    tokens = Tokens()

    def make(rank: int) -> Generator[Round, Any, Any]:
        rng = np.random.default_rng(rank)
        index = np.sort(rng.choice(n, k, replace=False)).astype(np.int64)
        values = wire.round_values(rng.standard_normal(k, dtype=np.float32), value_dtype)
        counts = [k] * ranks if known else None
        chosen = Chosen(n, index, values, counts, value_dtype)
        return COLLECTIVES[name](chosen, v, Net(rank, ranks), ops, tokens)

    return tuple(observe(make, ranks))


def together(parts: Sequence[Sequence[Pattern]]) -> list[Pattern]:
    """Collectives of equal rounds as one, as `reference.collectives.together` joins them.

    LockStepError where their rounds differ.
    """
    if len(parts) == 1:
        return list(parts[0])
    joined = []
    for same in zip(*parts, strict=True):
        if len({(each.kind, each.known) for each in same}) > 1:
            raise LockStepError("rounds that cannot travel together")
        sizes = np.sum([each.sizes for each in same], axis=0)
        heads = 0 if same[0].known else COUNT * len(same)
        joined.append(same[0]._replace(sizes=sizes + heads * (sizes > 0)))
    return joined


def dense(values: int, ranks: int) -> list[Pattern]:
    """One sum of so many values by the MPI library."""
    return [Pattern("sum", np.full(ranks, WORD * values))]
