"""Collectives as generators of communication rounds.

A collective does no communication itself. It yields a round, which says what this rank sends and
needs; it is sent that round's answer; and in the end it returns the result. The caller of the
generator performs the rounds: `mail` between P ranks in this process, which is the definition;
`dls.comm` over MPI, without blocking; `dls.cost` with a clock.

Lock-step: all ranks yield the same number of rounds, of the same kinds in the same order. A rank
with nothing to send or to receive yields `Swap(None, None, NOTHING)`. `sizes` of a Gather is None
on all ranks or on none. Answers are read-only.

Conservation: Σ_p scatter(taken_p) − Σ_p scatter(returned_p) = scatter(update), exactly except for
the rounding of float32 sums. Values that are not taken stay in the rank's v.
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
"""A message of no bytes."""
COUNT = 8
"""Bytes of a number that is sent with a message, int64, little-endian."""


class Gather(NamedTuple):
    """Asks for every rank's bytes, in rank order: P uint8 arrays.

    sizes (P): their sizes, if all ranks know them; otherwise these are exchanged first.
    """

    payload: Bytes
    sizes: Sequence[int] | None = None


class Reduce(NamedTuple):
    """Asks for the sum of all ranks' float32 values (n), from +0.0 in rank order.

    Every implementation gives the same bits.
    """

    values: Vector


class Sum(NamedTuple):
    """Asks for the sum of all ranks' float32 values (n) in the order of the library.

    The bits are the same on all ranks, and within rounding of those of Reduce.
    """

    values: Vector


class Swap(NamedTuple):
    """Sends bytes to rank `to` and asks for those that rank `source` sends to this one.

    to, source: None if there is none. size: bytes that come from `source`, 0 if there is none; None
    on all ranks that send or receive if the size is not known.
    """

    to: int | None
    source: int | None
    payload: Bytes
    size: int | None = None


Round = Gather | Reduce | Sum | Swap
"""What a collective yields."""
ROUNDS = ("gather", "reduce", "sum", "swap")
"""The kinds of rounds, by name; a record of a round has the kind's number in here."""


class Net(NamedTuple):
    """This rank's number and the number of ranks."""

    rank: int
    size: int


@dataclass(frozen=True)
class Entries:
    """Values and their index, ascending without repeats; index None: a dense vector."""

    index: Index | None
    values: Vector


@dataclass(frozen=True)
class Chosen:
    """The entries that a rank has selected from n values.

    index (k); values (k), already rounded to `value_dtype`. counts (P): how many entries each rank
    has selected, if all ranks know it.
    """

    n: int
    index: Index
    values: Vector
    counts: Sequence[int] | None
    value_dtype: str = "float32"


class Exchanged(NamedTuple):
    """The result of a collective on n values, on one rank.

    update: entries whose sum, from +0.0 in this order, is the sum over the ranks; multiplied by
    float32(1/P) it is the mean. It has the same bits on all ranks. taken: what is subtracted from
    this rank's v. returned: what is added to it, because the collective dropped it from the sum.
    """

    update: Sequence[Entries]
    taken: Sequence[Entries]
    returned: Sequence[Entries] = ()


Exchange = Generator[Round, Any, Exchanged]
"""A collective of one rank, started."""
Collective = Callable[[Chosen, Vector, Net, Any, Any], Exchange]
"""A collective: of what a rank has selected, its v, the ranks, and the backend's ops and wire."""


class LockStepError(RuntimeError):
    """The ranks ask for rounds that do not fit together."""


# --- the collectives ------------------------------------------------------------------------------


def allgather(
    chosen: Chosen,
    v: Vector,  # noqa: ARG001
    net: Net,  # noqa: ARG001
    ops: Any = numpy_ops,  # noqa: ARG001
    wire: Any = numpy_wire,
) -> Exchange:
    """Every rank gets every rank's entries and sums them in rank order.

    A rank receives P − 1 messages.
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
    """gTop-k: the k largest sums over the ranks, found by merging pairwise.

    k is the largest of the ranks' counts. Source: Shi et al. (2019), "A Distributed Synchronous SGD
    Algorithm with Global Top-k Sparsification", with recursive doubling. An entry that a merge
    drops is returned, as a partial sum, to one of the ranks that it comes from. This keeps every
    sum whole [ours]: as published, an entry that is dropped in one branch and survives in another
    is partly lost. The ranks of both sides take turns at receiving dropped entries, so that no
    single residual grows. P need not be a power of two: ranks beyond the largest one first give
    their entries to another rank and receive the result at the end. A rank receives at most
    ⌈log2 P⌉ + 1 messages of k entries.
    """
    counts = chosen.counts
    if counts is None:
        size = numpy_wire.CHECKSUM + COUNT
        received = yield Gather(_seal_count(chosen), [size] * net.size)
        counts = [_open_count(payload, chosen.n) for payload in received]
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
"""The collectives, by their names in `--collective`."""
BY_BUCKET = frozenset({"gtopk"})
"""Collectives that select within a bucket, so that their result depends on the buckets."""


class _Merge:
    """The entries that a rank of gTop-k holds, and the dropped ones that go to its residual."""

    def __init__(self, chosen: Chosen, k: int, ops: Any, wire: Any) -> None:
        self.chosen, self.k, self.ops, self.wire = chosen, k, ops, wire
        self.entries = Entries(chosen.index, chosen.values)
        self.kept: list[Entries] = []

    def swap(self, to: int | None, source: int | None) -> Swap:
        """The round that sends this rank's entries to one rank and receives those of another.

        Messages are padded to the size of k entries.
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
        """Replace this rank's entries by those of another rank."""
        self.entries = unpack(payload, self.chosen, self.wire)

    def with_theirs(self, payload: Bytes, mine_first: bool, share: slice) -> None:
        """Add another rank's entries; hold the k largest sums, rounded as they will be sent.

        share: which of the dropped entries this rank keeps for its residual.
        """
        theirs = unpack(payload, self.chosen, self.wire)
        index, values = self._sum(
            *((self.entries, theirs) if mine_first else (theirs, self.entries))
        )
        positions, kept = self.ops.top_k(values, min(self.k, index.size))
        arriving = self.wire.round_values(kept, self.chosen.value_dtype)
        self.entries = Entries(self.ops.from_host(index[self.ops.to_host(positions)]), arriving)
        rest = self.ops.to_host(values).copy()
        rest[self.ops.to_host(positions)] -= self.ops.to_host(arriving)
        dropped = np.flatnonzero(rest)[share]
        if dropped.size:
            self.kept.append(
                Entries(self.ops.from_host(index[dropped]), self.ops.from_host(rest[dropped]))
            )

    def _sum(self, first: Entries, second: Entries) -> tuple[Index, Vector]:
        """The sum of both: its index on the host, its values on the backend's device."""
        indices = [self.ops.to_host(entries.index) for entries in (first, second)]
        index: Index = np.union1d(*indices)
        values = self.ops.zeros(index.size)
        for own, entries in zip(indices, (first, second), strict=True):
            self.ops.scatter_add(
                values, self.ops.from_host(np.searchsorted(index, own)), entries.values
            )
        return index, values


def pack(chosen: Chosen, wire: Any = numpy_wire) -> Bytes:
    """A message that states how many entries it holds: their count, then `wire.encode`'s bytes."""
    body = wire.encode(chosen.index, chosen.values, chosen.n, chosen.value_dtype)
    return np.concatenate([_number_to_bytes(chosen.index.size), body])


def unpack(payload: Bytes, chosen: Chosen, wire: Any = numpy_wire) -> Entries:
    """The entries in a message of `pack`, from a rank that has as many values as this one.

    MessageError if it is damaged.
    """
    count = _count_at_start(payload, chosen.n)
    end = COUNT + wire.payload_size(chosen.n, count, chosen.value_dtype)
    return Entries(*wire.decode(payload[COUNT:end], chosen.n, count, chosen.value_dtype))


def _count_at_start(payload: Bytes, n: int) -> int:
    """The count at the start of a message; MessageError unless it lies in 0..n."""
    count = int(payload[:COUNT].view("<i8")[0]) if payload.size >= COUNT else -1
    if not 0 <= count <= n:
        raise MessageError(numpy_wire.DAMAGED)
    return count


def _seal_count(chosen: Chosen) -> Bytes:
    """A message that holds a checksum and how many entries a rank has selected."""
    return numpy_wire.seal(_number_to_bytes(chosen.index.size), chosen.n, 0, "counts")


def _open_count(payload: Bytes, n: int) -> int:
    """The count in a message of `_seal_count`. MessageError if it is damaged."""
    head, body = np.split(payload, [numpy_wire.CHECKSUM])
    found = numpy_wire.checksum(np.ascontiguousarray(body), n, 0, "counts")
    if found != int.from_bytes(head.tobytes(), "little"):
        raise MessageError(numpy_wire.DAMAGED)
    return _count_at_start(body, n)


def _decoded(payload: Bytes, chosen: Chosen, k: int, rank: int, wire: Any) -> Entries:
    try:
        return Entries(*wire.decode(payload, chosen.n, k, chosen.value_dtype))
    except MessageError as error:
        raise MessageError(f"from rank {rank}: {error}") from None


def blocks(n: int, ranks: int) -> Index:
    """Where the block of n values that each rank sums in a Reduce starts and ends (P + 1)."""
    return np.linspace(0, n, ranks + 1).astype(np.int64)


def _number_to_bytes(count: int) -> Bytes:
    return np.array([count], dtype="<i8").view(np.uint8)


# --- several as one -------------------------------------------------------------------------------


def together(exchanges: Sequence[Exchange]) -> Generator[Round, Any, list[Exchanged]]:
    """Run several collectives with equal rounds as one: their messages of a round are joined."""
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
            received = yield Gather(_join(asked))
            answers = list(zip(*(_split(payload, len(asked)) for payload in received), strict=True))
        elif isinstance(asked[0], Swap):
            answers = yield from _swapped_together(asked)
        else:
            values = yield type(asked[0])(np.concatenate([each.values for each in asked]))
            answers = np.split(values, np.cumsum([each.values.size for each in asked])[:-1])


def _swapped_together(asked: Sequence[Any]) -> Generator[Round, Any, Sequence[Bytes]]:
    """The answers to several Swaps, made as one.

    The joined message is cut by the sizes, which all ranks know or which are sent before it.
    """
    to, source, sizes = asked[0].to, asked[0].source, [each.size for each in asked]
    if None in sizes:
        payload = yield Swap(to, source, NOTHING if to is None else _join(asked))
        return [NOTHING] * len(asked) if source is None else _split(payload, len(asked))
    payload = yield Swap(to, source, np.concatenate([each.payload for each in asked]), sum(sizes))
    return [NOTHING] * len(asked) if source is None else np.split(payload, np.cumsum(sizes)[:-1])


def _check_equal(asked: Sequence[Round]) -> None:
    """LockStepError unless these rounds can be joined into one."""
    if len({_kind(each) for each in asked}) > 1:
        names = ", ".join(type(each).__name__ for each in asked)
        raise LockStepError(f"rounds that cannot travel together: {names}")


def _kind(asked: Round) -> tuple[Any, ...]:
    if isinstance(asked, Gather):
        return Gather, asked.sizes is None
    return (Swap, asked.to, asked.source) if isinstance(asked, Swap) else (type(asked),)


def _join(asked: Sequence[Any]) -> Bytes:
    """One message of several payloads: their sizes, then the payloads."""
    return np.concatenate(
        [
            *(_number_to_bytes(each.payload.size) for each in asked),
            *(each.payload for each in asked),
        ]
    )


def _split(payload: Bytes, count: int) -> list[Bytes]:
    """The payloads in a message of `_join`. MessageError if it is damaged."""
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
    """Perform the rounds of P ranks' generators in this process; return what each returns.

    carry: answers a round of all ranks, by default `deliver`. LockStepError if rounds do not fit.
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
    """The next rounds of all generators, or their results if they have ended.

    LockStepError unless they all go on or all end.
    """
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

    LockStepError unless the rounds fit together.
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
    return [tuple(_read_only_copy(each.payload) for each in asked)] * len(asked)


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
    return [NOTHING if pair[0] is None else _read_only_copy(sent[pair].payload) for pair in pairs]  # type: ignore[index]


def _read_only_copy(payload: Bytes) -> Bytes:
    """A read-only copy, since the sender may use its buffer again."""
    copy = payload.copy()
    copy.flags.writeable = False
    return copy
