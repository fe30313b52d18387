"""Collectives as generators of rounds: what one rank asks of the network, and what comes of the
answers.

A collective knows no network. It yields a round, is sent that round's answer, and returns what came
of it. Whoever holds the generator carries the rounds: `mail` between P ranks in this process, which
is the meaning; `dls.comm` over MPI, without blocking; `dls.cost` under a clock.

Lock-step: every rank yields as many rounds, of the same kinds in the same order; a rank with
nothing to send or to receive yields `Swap(None, None, NOTHING)`. `sizes` of a Gather is None on all
ranks or on none. Answers are read-only.

Conservation: Σ_p scatter(taken_p) − Σ_p scatter(returned_p) = scatter(update), exactly but for the
order in which float32 sums are rounded. What is not taken stays where it is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from reference import ops as numpy_ops
from reference import wire as numpy_wire
from reference.ops import Index, Vector
from reference.wire import Bytes, MessageError

NOTHING: Bytes = np.empty(0, dtype=np.uint8)
NOTHING.flags.writeable = False
COUNT = 8
"""Bytes of a number that travels beside a message, int64, little-endian."""


class Gather(NamedTuple):
    """Every rank's bytes, in rank order: P uint8 arrays. sizes (P), where all ranks know them; else
    they are exchanged first.
    """

    payload: Bytes
    sizes: Sequence[int] | None = None


class Reduce(NamedTuple):
    """The sum of every rank's float32 values (n), from +0.0 in rank order: the same bits wherever
    it is carried.
    """

    values: Vector


class Sum(NamedTuple):
    """The sum of every rank's float32 values (n) as the library forms it: the same bits on all
    ranks, near those of Reduce.
    """

    values: Vector


class Swap(NamedTuple):
    """The bytes that rank `source` sent to this one, while these go to rank `to`; None: nobody.

    size: of what comes, 0 of nothing; None, on all ranks that send or receive, if it is not known.
    """

    to: int | None
    source: int | None
    payload: Bytes
    size: int | None = None


Round = Gather | Reduce | Sum | Swap
ROUNDS = ("gather", "reduce", "sum", "swap")
"""The kinds of rounds, by name; a record of a round has the kind's number in here."""


class Net(NamedTuple):
    """This rank among the ranks."""

    rank: int
    size: int


@dataclass(frozen=True)
class Entries:
    """Values and where they lie, index ascending without repeats; index None: a dense vector."""

    index: Index | None
    values: Vector


@dataclass(frozen=True)
class Chosen:
    """What a rank has chosen of n values: index (k), values (k) as they arrive in `value_dtype`.

    counts (P): how many entries each rank has chosen, where all ranks know it.
    """

    n: int
    index: Index
    values: Vector
    counts: Sequence[int] | None
    value_dtype: str = "float32"


class Exchanged(NamedTuple):
    """What came of a collective on n values, on one rank.

    update: entries whose sum, from +0.0 in this order, is the sum over the ranks; times
    float32(1/P) it is the mean. The same bits on all ranks. taken: what leaves this rank's v;
    returned: what comes back to it, of what it keeps for others.
    """

    update: Sequence[Entries]
    taken: Sequence[Entries]
    returned: Sequence[Entries] = ()


Exchange = Generator[Round, Any, Exchanged]
Collective = Callable[[Chosen, Vector, Net, Any, Any], Exchange]


class LockStepError(RuntimeError):
    """Ranks that ask for rounds which do not fit together."""


# --- the collectives ------------------------------------------------------------------------------


def allgather(
    chosen: Chosen,
    v: Vector,  # noqa: ARG001
    net: Net,  # noqa: ARG001
    ops: Any = numpy_ops,  # noqa: ARG001
    wire: Any = numpy_wire,
) -> Exchange:
    """Every rank gets every rank's entries; the sum is in rank order.

    A rank receives (P − 1) messages.
    """
    if chosen.counts is None:
        received = yield Gather(pack(chosen, wire))
        update = [unpack(payload, chosen, wire) for payload in received]
    else:
        sizes = [wire.payload_size(chosen.n, k, chosen.value_dtype) for k in chosen.counts]
        received = yield Gather(
            wire.encode(chosen.index, chosen.values, chosen.n, chosen.value_dtype), sizes
        )
        ranks = enumerate(zip(received, chosen.counts, strict=True))
        update = [_decoded(payload, chosen, k, rank, wire) for rank, (payload, k) in ranks]
    return Exchanged(update, [Entries(chosen.index, chosen.values)])


def gtopk(
    chosen: Chosen,
    v: Vector,  # noqa: ARG001
    net: Net,
    ops: Any = numpy_ops,
    wire: Any = numpy_wire,
) -> Exchange:
    """gTop-k: the k largest of the sums over all ranks, k the largest of the ranks' counts, by
    pairwise merging.

    Shi et al. (2019), "A Distributed Synchronous SGD Algorithm with Global Top-k Sparsification",
    with recursive doubling. An entry that a merge drops stays, as the partial sum that it is, with
    one of the ranks that it comes from, which [ours] keeps every sum whole: as published an entry
    that is dropped in one branch and survives in another is lost in part. The ranks of both sides
    take turns at keeping, so that no residual grows alone. Any P: ranks beyond the largest power of
    two fold into others first and hear the result last. A rank receives at most ⌈log2 P⌉ + 1
    messages of k entries.
    """
    counts = chosen.counts
    if counts is None:
        size = numpy_wire.CHECKSUM + COUNT
        received = yield Gather(_told(chosen), [size] * net.size)
        counts = [_heard(payload, chosen.n) for payload in received]
    merge = _Merge(chosen, max(counts), ops, wire)
    half = 1 << (net.size.bit_length() - 1)
    inside, folded = net.rank < half, net.rank + half < net.size
    partner = net.rank + half if inside else net.rank - half
    if half < net.size:
        payload = yield merge.swap(None if inside else partner, partner if folded else None)
        if folded:
            merge.with_theirs(payload, mine_first=True, share=slice(None))
    bit = 1
    while bit < half:
        if inside:
            payload = yield merge.swap(net.rank ^ bit, net.rank ^ bit)
            group = 2 * bit
            merge.with_theirs(
                payload, mine_first=not net.rank & bit, share=slice(net.rank % group, None, group)
            )
        else:
            yield Swap(None, None, NOTHING)
        bit *= 2
    if half < net.size:
        payload = yield merge.swap(partner if folded else None, None if inside else partner)
        if not inside:
            merge.take_over(payload)
    return Exchanged([merge.entries], [Entries(chosen.index, chosen.values)], merge.kept)


COLLECTIVES: dict[str, Collective] = {"allgather": allgather, "gtopk": gtopk}
"""By the names that `--collective` takes."""
BY_BUCKET = frozenset({"gtopk"})
"""Those that choose inside a bucket: what they give depends on how the gradient is cut into
buckets.
"""


class _Merge:
    """The entries that a rank of gTop-k holds, and those that it keeps for the ranks whose they
    are.
    """

    def __init__(self, chosen: Chosen, k: int, ops: Any, wire: Any) -> None:
        self.chosen, self.k, self.ops, self.wire = chosen, k, ops, wire
        self.entries = Entries(chosen.index, chosen.values)
        self.kept: list[Entries] = []

    def swap(self, to: int | None, source: int | None) -> Swap:
        """Give what this rank holds to one rank, and hear another; messages are as long as k
        entries take.
        """
        size = COUNT + self.wire.payload_size(self.chosen.n, self.k, self.chosen.value_dtype)
        coming = 0 if source is None else size
        if to is None:
            return Swap(to, source, NOTHING, coming)
        assert self.entries.index is not None
        message = pack(
            replace(self.chosen, index=self.entries.index, values=self.entries.values), self.wire
        )
        return Swap(to, source, np.pad(message, (0, size - message.size)), coming)

    def take_over(self, payload: Bytes) -> None:
        """Hold what another rank holds."""
        self.entries = unpack(payload, self.chosen, self.wire)

    def with_theirs(self, payload: Bytes, mine_first: bool, share: slice) -> None:
        """Add another rank's entries; hold the k largest, as they will arrive, and keep a share of
        what that drops.
        """
        theirs = unpack(payload, self.chosen, self.wire)
        index, values = self._sum(
            *((self.entries, theirs) if mine_first else (theirs, self.entries))
        )
        places, kept = self.ops.top_k(values, min(self.k, index.size))
        arriving = self.wire.round_values(kept, self.chosen.value_dtype)
        self.entries = Entries(self.ops.from_host(index[self.ops.to_host(places)]), arriving)
        rest = self.ops.to_host(values).copy()
        rest[self.ops.to_host(places)] -= self.ops.to_host(arriving)
        dropped = np.flatnonzero(rest)[share]
        if dropped.size:
            self.kept.append(
                Entries(self.ops.from_host(index[dropped]), self.ops.from_host(rest[dropped]))
            )

    def _sum(self, first: Entries, second: Entries) -> tuple[Index, Vector]:
        """The sum of both, the index on the host, the values where the backend computes."""
        indices = [self.ops.to_host(entries.index) for entries in (first, second)]
        index: Index = np.union1d(*indices)
        values = self.ops.zeros(index.size)
        for own, entries in zip(indices, (first, second), strict=True):
            self.ops.scatter_add(
                values, self.ops.from_host(np.searchsorted(index, own)), entries.values
            )
        return index, values


def pack(chosen: Chosen, wire: Any = numpy_wire) -> Bytes:
    """A message that says itself how many entries it holds: their count, then as `wire.encode` has
    them.
    """
    body = wire.encode(chosen.index, chosen.values, chosen.n, chosen.value_dtype)
    return np.concatenate([_number(chosen.index.size), body])


def unpack(payload: Bytes, chosen: Chosen, wire: Any = numpy_wire) -> Entries:
    """The entries in a message of `pack`, of as many values as were chosen from.

    MessageError where it is damaged.
    """
    count = _counted(payload, chosen.n)
    end = COUNT + wire.payload_size(chosen.n, count, chosen.value_dtype)
    return Entries(*wire.decode(payload[COUNT:end], chosen.n, count, chosen.value_dtype))


def _counted(payload: Bytes, n: int) -> int:
    """The count, of n values at most, at the head of a message. MessageError."""
    count = int(payload[:COUNT].view("<i8")[0]) if payload.size >= COUNT else -1
    if not 0 <= count <= n:
        raise MessageError(numpy_wire.DAMAGED)
    return count


def _told(chosen: Chosen) -> Bytes:
    """How many entries a rank has chosen, behind a checksum."""
    return numpy_wire.seal(_number(chosen.index.size), chosen.n, 0, "counts")


def _heard(payload: Bytes, n: int) -> int:
    """The count in a message of `_told`. MessageError where it is damaged."""
    head, body = np.split(payload, [numpy_wire.CHECKSUM])
    found = numpy_wire.checksum(np.ascontiguousarray(body), n, 0, "counts")
    if found != int.from_bytes(head.tobytes(), "little"):
        raise MessageError(numpy_wire.DAMAGED)
    return _counted(body, n)


def _decoded(payload: Bytes, chosen: Chosen, k: int, rank: int, wire: Any) -> Entries:
    try:
        return Entries(*wire.decode(payload, chosen.n, k, chosen.value_dtype))
    except MessageError as error:
        raise MessageError(f"from rank {rank}: {error}") from None


def blocks(n: int, ranks: int) -> Index:
    """Where the block of n values that each rank sums in a Reduce begins and ends (P + 1)."""
    return np.linspace(0, n, ranks + 1).astype(np.int64)


def _number(count: int) -> Bytes:
    return np.array([count], dtype="<i8").view(np.uint8)


# --- several as one -------------------------------------------------------------------------------


def together(exchanges: Sequence[Exchange]) -> Generator[Round, Any, list[Exchanged]]:
    """Several collectives of equal rounds as one: what they ask for at the same time travels in one
    message.
    """
    if len(exchanges) == 1:
        return [(yield from exchanges[0])]
    answers: Sequence[Any] = [None] * len(exchanges)
    while True:
        asked, ended = _advance(exchanges, answers)
        if not asked:
            return ended
        _check_equal(asked)
        if isinstance(asked[0], Gather) and asked[0].sizes is not None:
            sizes = np.array([each.sizes for each in asked])
            received = yield Gather(
                np.concatenate([each.payload for each in asked]), sizes.sum(axis=0).tolist()
            )
            parts = [
                np.split(payload, np.cumsum(of_rank)[:-1])
                for payload, of_rank in zip(received, sizes.T, strict=True)
            ]
            answers = list(zip(*parts, strict=True))
        elif isinstance(asked[0], Gather):
            received = yield Gather(_joined(asked))
            answers = list(
                zip(*(_parted(payload, len(asked)) for payload in received), strict=True)
            )
        elif isinstance(asked[0], Swap):
            answers = yield from _swapped_together(asked)
        else:
            values = yield type(asked[0])(np.concatenate([each.values for each in asked]))
            answers = np.split(values, np.cumsum([each.values.size for each in asked])[:-1])


def _swapped_together(asked: Sequence[Any]) -> Generator[Round, Any, Sequence[Bytes]]:
    """Several messages in one: cut by their sizes, which all ranks know, or which travel before
    them.
    """
    to, source, sizes = asked[0].to, asked[0].source, [each.size for each in asked]
    if None in sizes:
        payload = yield Swap(to, source, NOTHING if to is None else _joined(asked))
        return [NOTHING] * len(asked) if source is None else _parted(payload, len(asked))
    payload = yield Swap(to, source, np.concatenate([each.payload for each in asked]), sum(sizes))
    return [NOTHING] * len(asked) if source is None else np.split(payload, np.cumsum(sizes)[:-1])


def _check_equal(asked: Sequence[Round]) -> None:
    """LockStepError where these cannot travel in one message."""
    if len({_kind(each) for each in asked}) > 1:
        names = ", ".join(type(each).__name__ for each in asked)
        raise LockStepError(f"rounds that cannot travel together: {names}")


def _kind(asked: Round) -> tuple[Any, ...]:
    if isinstance(asked, Gather):
        return Gather, asked.sizes is None
    return (Swap, asked.to, asked.source) if isinstance(asked, Swap) else (type(asked),)


def _joined(asked: Sequence[Any]) -> Bytes:
    """Payloads behind their sizes."""
    return np.concatenate(
        [*(_number(each.payload.size) for each in asked), *(each.payload for each in asked)]
    )


def _parted(payload: Bytes, count: int) -> list[Bytes]:
    """The payloads in a message of `_joined`. MessageError where it is damaged."""
    head = count * COUNT
    sizes = payload[:head].view("<i8") if payload.size >= head else np.full(1, -1)
    if (sizes < 0).any() or (sizes > payload.size).any() or sizes.sum() != payload.size - head:
        raise MessageError(numpy_wire.DAMAGED)
    return np.split(payload[head:], np.cumsum(sizes)[:-1])


# --- in one process -------------------------------------------------------------------------------


def mail(
    ranks: Sequence[Generator[Round, Any, Any]],
    carry: Callable[[Sequence[Round]], list[Any]] | None = None,
) -> list[Any]:
    """Carry the rounds of P ranks' generators in this process; returns what each returns.

    carry: who answers a round of all ranks, in place of `deliver`. LockStepError.
    """
    answers: Sequence[Any] = [None] * len(ranks)
    while True:
        asked, ended = _advance(ranks, answers)
        if not asked:
            return ended
        answers = (carry or deliver)(asked)


def _advance(
    generators: Sequence[Generator[Round, Any, Any]], answers: Sequence[Any]
) -> tuple[list[Any], list[Any]]:
    """What all of them ask for next, or what they return: all at the same time. LockStepError."""
    asked, ended = [], []
    for generator, answer in zip(generators, answers, strict=True):
        try:
            asked.append(generator.send(answer))
        except StopIteration as end:
            ended.append(end.value)
    if asked and ended:
        raise LockStepError(
            f"{len(ended)} of {len(generators)} have ended, and {len(asked)} ask for"
            f" {asked[0]!r:.80}"
        )
    return asked, ended


def deliver(asked: Sequence[Round]) -> list[Any]:
    """The answers to one round of P ranks, read-only.

    LockStepError where the ranks do not fit together.
    """
    kinds = {type(each) for each in asked}
    if len(kinds) > 1:
        raise LockStepError(
            f"ranks ask for different rounds: {', '.join(type(each).__name__ for each in asked)}"
        )
    if isinstance(asked[0], Gather):
        return _gathered(asked)  # type: ignore[arg-type]  # all are of one kind
    if isinstance(asked[0], Swap):
        return _swapped(asked)  # type: ignore[arg-type]
    return _summed([each.values for each in asked])  # type: ignore[union-attr]


def _summed(values: Sequence[Vector]) -> list[Any]:
    if len({each.shape for each in values}) > 1:
        raise LockStepError(
            f"ranks sum vectors of different shapes: {[each.shape for each in values]}"
        )
    total = numpy_ops.zeros(values[0].size)
    for each in values:
        total += each
    total.flags.writeable = False
    return [total] * len(values)


def _gathered(asked: Sequence[Gather]) -> list[Any]:
    known = {None if each.sizes is None else tuple(each.sizes) for each in asked}
    sizes = tuple(each.payload.size for each in asked)
    if known not in ({None}, {sizes}):
        raise LockStepError(f"ranks gather messages of {sizes} bytes, and expect {known}")
    return [tuple(_kept(each.payload) for each in asked)] * len(asked)


def _swapped(asked: Sequence[Swap]) -> list[Any]:
    sent = {(rank, each.to): each for rank, each in enumerate(asked) if each.to is not None}
    wanted = {
        (each.source, rank): each for rank, each in enumerate(asked) if each.source is not None
    }
    if sent.keys() != wanted.keys():
        raise LockStepError(
            f"messages (from, to) {sorted(sent)} leave, and {sorted(wanted)} are waited for"
        )
    if len({each.size is None for each in asked if (each.to, each.source) != (None, None)}) > 1:
        raise LockStepError("sizes of messages are known on some ranks alone")
    for pair, each in wanted.items():
        if each.size not in (None, sent[pair].payload.size):
            raise LockStepError(
                f"message {pair} has {sent[pair].payload.size} bytes, not {each.size}"
            )
    if any(each.size for each in asked if each.source is None):
        raise LockStepError("a rank expects bytes of nobody")
    pairs = [(each.source, rank) for rank, each in enumerate(asked)]
    return [NOTHING if pair[0] is None else _kept(sent[pair].payload) for pair in pairs]  # type: ignore[index]


def _kept(payload: Bytes) -> Bytes:
    """A read-only copy, as whoever sent it may use the buffer again."""
    copy = payload.copy()
    copy.flags.writeable = False
    return copy
