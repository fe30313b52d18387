"""Laws of every collective: conservation, the same update everywhere, lock-step, damage."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dls.backends import load as load_backend
from dls.comm import local
from dls.comm.base import Comm
from dls.exchange.exchanger import Exchanger
from dls.exchange.layout import Layer, Layout
from reference import collectives, wire
from reference.collectives import (
    COLLECTIVES,
    NOTHING,
    Chosen,
    Entries,
    Exchanged,
    Gather,
    LockStepError,
    Net,
    Reduce,
    Round,
    Sum,
    Swap,
    allgather,
    gtopk,
    mail,
    together,
)
from reference.wire import MessageError
from tests.parts import LayerwiseEF21, choose, content, exchanges, mailed, union
from tests.strategies import F32, INT, QUICK, vector

Vectors = list[np.ndarray]
Case = tuple[Vectors, list[int], bool, str]

TYPES = ("float32", "float16", "bfloat16")
ALL = COLLECTIVES | {"union": union}
every = pytest.mark.parametrize("name", ALL)
WHOLE = {"float32": 1000, "float16": 200, "bfloat16": 15}
"""Largest whole numbers, of which 8 sum to what the type holds exactly or nearly so."""


# ------------------------------------------------------------------------ what is checked


def dense(entries: Sequence[Entries], n: int) -> np.ndarray:
    """Their sum, in float64, where small whole numbers and float32 remainders add exactly."""
    total = np.zeros(n)
    for each in entries:
        np.add.at(total, np.arange(n) if each.index is None else each.index, each.values)
    return total


def check_entries(entries: Sequence[Entries], n: int) -> None:
    for each in entries:
        assert each.values.dtype == F32
        if each.index is None:
            assert each.values.size == n
        else:
            assert each.index.dtype == INT and each.index.size == each.values.size
            assert (np.diff(each.index) > 0).all()
            assert each.index.size == 0 or (each.index[0] >= 0 and each.index[-1] < n)


def imbalance(results: Sequence[Exchanged], n: int) -> np.ndarray:
    """What a collective has lost or made up, of each value."""
    balance = -dense(results[0].update, n)
    for each in results:
        balance += dense(each.taken, n) - dense(each.returned, n)
    return np.abs(balance)


def check(results: Sequence[Exchanged], n: int, exact: bool) -> None:
    """Conservation; one update on all ranks; entries as they should be."""
    for each in results:
        for part in each:
            check_entries(part, n)
        assert content(each)[0] == content(results[0])[0]
    mass = sum(np.abs(dense(each.taken, n)) for each in results)
    rounding = 0.0 if exact else 2.0**-24 * 2 * len(results) * mass
    assert (imbalance(results, n) <= rounding).all()


def taken_is_chosen(results: Sequence[Exchanged], chosen: Sequence[Chosen]) -> bool:
    """Whether each rank takes what it has chosen, as it arrives, and nothing else."""
    own = [[(each.index.tobytes(), each.values.tobytes())] for each in chosen]
    return [content(each)[1] for each in results] == own


# ------------------------------------------------------------------------------ the cases


def random_case(seed: Sequence[int], ranks: int, dtype: str, known: bool) -> Case:
    """Whole numbers, with many ties and entries that cancel, and a k of its own on each rank."""
    rng = np.random.default_rng(list(seed))
    n = int(rng.choice([1, 2, 7, 30]))
    most = int(rng.choice([1, 3, WHOLE[dtype]]))
    vectors = [rng.integers(-most, most + 1, n).astype(F32) for _ in range(ranks)]
    if rng.random() < 0.3:  # the ranks cancel each other
        vectors = [-vectors[rank - 1] if rank % 2 else v for rank, v in enumerate(vectors)]
    counts = rng.integers(0, n + 1, ranks).tolist()
    return vectors, counts, known, dtype


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any finite values of moderate size, normal and subnormal, in any type."""
    ranks, n = draw(st.integers(1, 8)), draw(st.integers(1, 9))
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0**-149, 3.5, -(2.0**-120), 65504.0, 70000.0])
    value = st.one_of(few, st.floats(-1e6, 1e6, width=32))
    vectors = [vector(draw(st.lists(value, min_size=n, max_size=n))) for _ in range(ranks)]
    counts = [draw(st.one_of(st.sampled_from([0, n]), st.integers(0, n))) for _ in range(ranks)]
    return vectors, counts, draw(st.booleans()), draw(st.sampled_from(TYPES))


NASTY: dict[str, tuple[list[list[float]], list[int]]] = {
    "one value": ([[3], [-4], [5]], [1, 0, 1]),
    "one value, nobody": ([[3], [-4]], [0, 0]),
    "nothing on any rank": ([[1, 2], [3, 4], [5, 6], [7, 8]], [0, 0, 0, 0]),
    "nothing on some": ([[1, 2], [3, 4], [5, 6], [7, 8], [9, 9]], [0, 2, 0, 1, 0]),
    "everything": ([[1, 2, 3]] * 6, [3] * 6),
    "zeros of both signs": ([[0.0, -0.0, -0.0], [-0.0, -0.0, 0.0]], [3, 2]),
    "minus zero alone": ([[-0.0], [-0.0], [-0.0]], [1, 1, 1]),
    "all cancel": ([[1, -2, 3], [-1, 2, -3]], [3, 3]),
    "some cancel": ([[9, 1, 0, 0], [-9, 0, 1, 0], [0, 0, 5, 1], [0, 2, -6, 0]], [2, 2, 2, 2]),
    "ties everywhere": ([[1, -1, 1, -1]] * 7, [1, 2, 3, 4, 0, 2, 2]),
    "alone": ([[4, 0, -0.0, 1]], [3]),
    "alone, nothing": ([[4, 0]], [0]),
    "a dropped sum whose index wins elsewhere": (
        [[5, 4, 0, 0], [5, 0, 0, 1], [0, 9, 0, 0], [0, 0, 1, 0]],
        [1, 1, 1, 1],
    ),
}


@every
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("ranks", range(1, 9))
def test_nothing_is_lost_of_whole_numbers(name: str, ranks: int, dtype: str) -> None:
    for known, seed in product([False, True], range(12)):
        vectors, counts, *_ = random_case([seed, ranks], ranks, dtype, known)
        chosen = choose(vectors, counts, known, dtype)
        before = [v.tobytes() for v in vectors]
        results = mailed(ALL[name], chosen, vectors)
        check(results, vectors[0].size, exact=True)
        assert [v.tobytes() for v in vectors] == before
        assert name == "union" or taken_is_chosen(results, chosen)


@every
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize(("rows", "counts"), NASTY.values(), ids=NASTY.keys())
def test_nothing_is_lost_in_nasty_cases(
    name: str, rows: list[list[float]], counts: list[int], known: bool
) -> None:
    vectors = [vector(row) for row in rows]
    for dtype in TYPES:
        results = mailed(ALL[name], choose(vectors, counts, known, dtype), vectors)
        check(results, vectors[0].size, exact=True)


@every
@QUICK
@given(case=cases())
def test_nothing_is_lost_but_rounding(name: str, case: Case) -> None:
    vectors, counts, known, dtype = case
    chosen = choose(vectors, counts, known, dtype)
    check(mailed(ALL[name], chosen, vectors), vectors[0].size, exact=False)


@every
@QUICK
@given(case=cases())
def test_known_counts_change_nothing_but_the_bytes(name: str, case: Case) -> None:
    vectors, counts, _, dtype = case
    one, two = (
        mailed(ALL[name], choose(vectors, counts, known, dtype), vectors) for known in (True, False)
    )
    assert [content(each) for each in one] == [content(each) for each in two]


# ------------------------------------------------------------------- what each one computes


@QUICK
@given(case=cases())
def test_allgather_gives_every_rank_all_entries_in_rank_order(case: Case) -> None:
    vectors, counts, known, dtype = case
    chosen = choose(vectors, counts, known, dtype)
    for each in mailed(allgather, chosen, vectors):
        found = [(part.index.tolist(), part.values.tobytes()) for part in each.update]
        assert found == [(own.index.tolist(), own.values.tobytes()) for own in chosen]
        assert not each.returned


@QUICK
@given(case=cases())
def test_union_sums_all_ranks_v_where_any_has_chosen(case: Case) -> None:
    vectors, counts, known, dtype = case
    chosen = choose(vectors, counts, known, dtype)
    places = sorted({i for each in chosen for i in each.index.tolist()})
    for v, each in zip(vectors, mailed(union, chosen, vectors), strict=True):
        total = [F32(0)] * len(places)
        for theirs in vectors:
            total = [x + theirs[i] for x, i in zip(total, places, strict=True)]
        (update,), (taken,) = each.update, each.taken
        assert update.index.tolist() == places == taken.index.tolist()
        assert update.values.tolist() == [float(x) for x in total]
        assert taken.values.tobytes() == v[places].tobytes()


BITS = {"float32": 24, "float16": 11, "bfloat16": 8}


def rounded(x: float, dtype: str) -> float:
    """To so many bits, to even among equals; for normal numbers within the range."""
    mantissa, exponent = math.frexp(x)
    return math.ldexp(round(math.ldexp(mantissa, BITS[dtype])), exponent - BITS[dtype])


def merged(one: dict[int, float], two: dict[int, float], k: int, dtype: str) -> dict[int, float]:
    """The k largest of the sums, the lower index first among equals."""
    total = {i: rounded(one.get(i, 0) + two.get(i, 0), "float32") for i in {*one, *two}}
    best = sorted(total, key=lambda i: (-abs(total[i]), i))[:k]
    return {i: rounded(total[i], dtype) for i in best}


def global_topk_of(held: list[dict[int, float]], k: int, dtype: str) -> dict[int, float]:
    """gTop-k as a tree over the ranks, those beyond the largest power of two folded in first."""
    half = 2 ** int(math.log2(len(held)))
    for rank in range(half, len(held)):
        held[rank - half] = merged(held[rank - half], held[rank], k, dtype)
    held = held[:half]
    while len(held) > 1:
        pairs = zip(held[::2], held[1::2], strict=True)
        held = [merged(one, two, k, dtype) for one, two in pairs]
    return held[0]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("ranks", range(1, 9))
def test_gtopk_is_its_model(ranks: int, dtype: str) -> None:
    for seed, known in product(range(15), [False, True]):
        rng = np.random.default_rng([seed, ranks])
        vectors, counts, *_ = random_case([seed, ranks], ranks, dtype, known)
        if seed % 3 == 0:  # numbers that round
            vectors = [rng.normal(size=v.size).astype(F32) for v in vectors]
        chosen = choose(vectors, counts, known, dtype)
        held = [
            dict(zip(each.index.tolist(), each.values.tolist(), strict=True)) for each in chosen
        ]
        expected = global_topk_of(held, max(counts), dtype)
        (update,) = mailed(gtopk, chosen, vectors)[-1].update
        assert update.index is not None
        assert dict(zip(update.index.tolist(), update.values.tolist(), strict=True)) == expected
        assert update.index.size <= max(counts)


@pytest.mark.parametrize("ranks", range(2, 9))
def test_gtopk_spreads_what_merges_drop(ranks: int) -> None:
    """All choose other entries, so each merge drops as many as it keeps: no rank keeps them all."""
    k = 16
    vectors = [np.zeros(ranks * k, dtype=F32) for _ in range(ranks)]
    for rank, v in enumerate(vectors):
        v[rank::ranks] = np.arange(1, k + 1) * ranks + rank
    results = mailed(gtopk, choose(vectors, [k] * ranks, True, "float32"), vectors)
    check(results, ranks * k, exact=True)
    kept = [sum(each.values.size for each in result.returned) for result in results]
    assert sum(kept) == (ranks - 1) * k
    half = 2 ** int(math.log2(ranks))
    folded = [k if rank + half < ranks else 0 for rank in range(half)]
    shares = [own - more for own, more in zip(kept, folded, strict=False)]
    assert kept[half:] == [0] * (ranks - half)
    assert max(shares) - min(shares) <= math.log2(half)


# ------------------------------------------------------------------------ several as one


def counted(generator: Generator[Round, Any, Any]) -> Generator[Round, Any, tuple[Any, int]]:
    """What it returns, and of how many rounds."""
    answer, rounds = None, 0
    while True:
        try:
            asked = generator.send(answer)
        except StopIteration as end:
            return end.value, rounds
        answer, rounds = (yield asked), rounds + 1


@every
@pytest.mark.parametrize("several", [0, 1, 2, 3])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6])
def test_together_gives_what_each_alone_gives(name: str, ranks: int, several: int) -> None:
    for known, dtype in product([False, True], TYPES):
        parts = []
        for part in range(several):
            vectors, counts, *_ = random_case([part, ranks, 5], ranks, dtype, known)
            parts.append((choose(vectors, counts, known, dtype), vectors))
        alone = [mail([counted(each) for each in exchanges(ALL[name], *part)]) for part in parts]
        generators = [exchanges(ALL[name], *part) for part in parts]
        joined = [together([each[rank] for each in generators]) for rank in range(ranks)]
        for rank, (results, rounds) in enumerate(mail([counted(each) for each in joined])):
            assert list(map(content, results)) == [content(each[rank][0]) for each in alone]
            assert rounds == (alone[0][rank][1] if alone else 0)


def once(asked: Round) -> Generator[Round, Any, Any]:
    """One round, whose answer it returns."""
    return (yield asked)


def number(x: int, size: int = 1) -> np.ndarray:
    return np.full(size, x, dtype=np.uint8)


UNEQUAL: dict[str, tuple[Round, Round]] = {
    "other kinds": (Gather(number(1)), Swap(0, 0, number(1))),
    "sizes of one alone": (Gather(number(1), [1]), Gather(number(1))),
    "sizes of the other alone": (Gather(number(1)), Gather(number(1), [1])),
    "sum and reduce": (Sum(vector([1])), Reduce(vector([1]))),
    "other ranks": (Swap(0, 0, number(1)), Swap(None, None, NOTHING)),
}


@pytest.mark.parametrize("pair", UNEQUAL.values(), ids=UNEQUAL.keys())
def test_what_cannot_travel_together_is_refused(pair: tuple[Round, Round]) -> None:
    with pytest.raises(LockStepError):
        mail([together([once(pair[0]), once(pair[1])])])


def test_together_of_other_numbers_of_rounds_is_refused() -> None:
    def twice() -> Generator[Round, Any, Any]:
        yield Reduce(vector([1]))
        yield Reduce(vector([1]))

    with pytest.raises(LockStepError):
        mail([together([once(Reduce(vector([1]))), twice()])])


def test_together_of_swaps_that_know_their_sizes() -> None:
    """Each of two ranks swaps two messages with the other one."""
    joined = [
        together([once(Swap(1 - rank, 1 - rank, number(rank + 5, size), size)) for size in (3, 0)])
        for rank in range(2)
    ]
    answers = [[part.tolist() for part in each] for each in mail(joined)]
    assert answers == [[[6] * 3, []], [[5] * 3, []]]


# ------------------------------------------------------------------------------ lock-step


BROKEN: dict[str, list[Round]] = {
    "other kinds": [Gather(number(1)), Swap(None, None, NOTHING)],
    "sum and reduce": [Sum(vector([1])), Reduce(vector([1]))],
    "lengths that differ": [Reduce(vector([1])), Reduce(vector([1, 2]))],
    "sums of lengths that differ": [Sum(vector([1])), Sum(vector([]))],
    "sizes that are wrong": [Gather(number(1), [1, 2]), Gather(number(1), [1, 2])],
    "sizes on one rank alone": [Gather(number(1), [1, 1]), Gather(number(1))],
    "sizes on which they differ": [Gather(number(1), [1, 1]), Gather(number(1), [1, 2])],
    "sizes of too few": [Gather(number(1), [1]), Gather(number(1), [1])],
    "a swap with nobody": [Swap(1, None, number(1)), Swap(None, None, NOTHING)],
    "a swap from nobody": [Swap(None, 1, NOTHING), Swap(None, None, NOTHING)],
    "a swap beyond the ranks": [Swap(2, None, number(1)), Swap(None, None, NOTHING)],
    "two to one": [Swap(1, None, number(1)), Swap(1, 0, number(1))],
    "a swap of another size": [Swap(1, 1, number(1), 1), Swap(0, 0, number(1), 2)],
    "a size on one side alone": [Swap(1, 1, number(1), 1), Swap(0, 0, number(1))],
    "a size that the sender does not say": [Swap(1, None, number(1)), Swap(None, 0, NOTHING, 1)],
    "bytes of nobody": [Swap(1, None, number(1), 3), Swap(None, 0, NOTHING, 1)],
}


@pytest.mark.parametrize("asked", BROKEN.values(), ids=BROKEN.keys())
def test_ranks_out_of_step_are_refused(asked: list[Round]) -> None:
    with pytest.raises(LockStepError):
        collectives.deliver(asked)
    with pytest.raises(LockStepError):
        mail([once(each) for each in asked])


@pytest.mark.parametrize("late", [0, 1])
def test_ranks_of_other_numbers_of_rounds_are_refused(late: int) -> None:
    def rounds(count: int) -> Generator[Round, Any, None]:
        for _ in range(count):
            yield Reduce(vector([1]))

    with pytest.raises(LockStepError):
        mail([rounds(2 if rank == late else 1) for rank in range(2)])


def test_ranks_with_no_round_and_no_ranks() -> None:
    def silent() -> Generator[Round, Any, int]:
        return 3
        yield

    assert mail([silent(), silent()]) == [3, 3]
    assert mail([]) == []


# -------------------------------------------------------------------------------- answers


def ring_of_two(size: int | None) -> list[Round]:
    return [Swap(1 - rank, 1 - rank, number(rank), size) for rank in range(2)]


ANSWERED: dict[str, list[Round]] = {
    "gather": [Gather(number(1)), Gather(number(2))],
    "sized gather": [Gather(number(1), [1, 1]), Gather(number(2), [1, 1])],
    "reduce": [Reduce(vector([1])), Reduce(vector([2]))],
    "sum": [Sum(vector([1])), Sum(vector([2]))],
    "swap": ring_of_two(None),
    "sized swap": ring_of_two(1),
    "swap with nobody": [Swap(None, None, NOTHING)] * 2,
}


def arrays_of(answer: Any) -> list[np.ndarray]:
    return [answer] if isinstance(answer, np.ndarray) else list(answer)


@pytest.mark.parametrize("asked", ANSWERED.values(), ids=ANSWERED.keys())
def test_answers_are_read_only(asked: list[Round]) -> None:
    for answer in collectives.deliver(asked):
        for array in arrays_of(answer):
            assert not array.flags.writeable
            with pytest.raises(ValueError):
                array[...] = 0


@pytest.mark.parametrize("asked", ANSWERED.values(), ids=ANSWERED.keys())
def test_answers_stay_when_a_sender_uses_its_buffer_again(asked: list[Round]) -> None:
    """As over a network, where they are copies."""
    answers = collectives.deliver(asked)
    before = [[array.tolist() for array in arrays_of(answer)] for answer in answers]
    own = [each.values if isinstance(each, Reduce | Sum) else each.payload for each in asked]
    kept = [each.copy() for each in own]
    for each in own:
        if each.flags.writeable:
            each += 100
    assert [[array.tolist() for array in arrays_of(answer)] for answer in answers] == before
    for each, old in zip(own, kept, strict=True):
        if each.flags.writeable:
            each[...] = old


def test_reduce_is_in_rank_order_from_plus_zero() -> None:
    rows = [vector([-0.0, 1e8, 1]), vector([-0.0, 1, 1e8]), vector([-0.0, -1e8, -1e8])]
    expected = np.zeros(3, dtype=F32)
    for row in rows:
        expected += row
    for total in collectives.deliver([Reduce(row) for row in rows]):
        assert total.tobytes() == expected.tobytes()


# --------------------------------------------------------------------------------- damage


def damaging(place: int, ranks: int, flip: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Deliver, and damage the first message that rank 0 gets of another one in round `place`."""
    seen = 0

    def carry(asked: Sequence[Round]) -> list[Any]:
        nonlocal seen
        answers, seen = list(collectives.deliver(asked)), seen + 1
        if seen - 1 == place:
            if isinstance(answers[0], np.ndarray):
                answers[0] = flip(answers[0])
            else:
                answers[0] = [*answers[0][: ranks - 1], flip(answers[0][-1])]
        return answers

    return carry


def flips(size: int) -> list[Callable[[np.ndarray], np.ndarray]]:
    """A bit of each byte in turn, and the message cut."""

    def bit(place: int) -> Callable[[np.ndarray], np.ndarray]:
        def flip(payload: np.ndarray) -> np.ndarray:
            damaged = payload.copy()
            damaged[place] ^= 1 << place % 8
            return damaged

        return flip

    return [*map(bit, range(size)), lambda payload: payload[:-1], lambda payload: payload[:3]]


def size_of(generators: list[Any], place: int) -> int:
    """Bytes of the message that `damaging` would damage."""
    sizes: list[int] = []
    mail(generators, damaging(place, 2, lambda payload: sizes.append(payload.size) or payload))
    return sizes[0]


@pytest.mark.parametrize("several", [1, 2])
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_damaged_message_is_noticed(name: str, known: bool, several: int) -> None:
    vectors = [vector([5, -3, 2, 1, 4]), vector([1, 7, -2, 6, 0.5])]
    chosen = choose(vectors, [2, 3], known, "float32")

    def generators() -> list[Any]:
        parts = [exchanges(COLLECTIVES[name], chosen, vectors) for _ in range(several)]
        return [together([part[rank] for part in parts]) for rank in range(2)]

    (_, rounds), *_ = mail([counted(each) for each in generators()])
    for place in range(rounds):
        for flip in flips(size_of(generators(), place)):
            with pytest.raises(MessageError):
                mail(generators(), damaging(place, 2, flip))


@pytest.mark.parametrize("count", [-1, 6, 2**62, -(2**63)])
def test_a_count_that_nobody_can_have_chosen_is_noticed(count: int) -> None:
    vectors = [vector([5, -3, 2, 1, 4])] * 2
    words = wire.seal(np.array([count], dtype="<i8").view(np.uint8), 5, 0, "counts")
    generators = exchanges(gtopk, choose(vectors, [2, 3], False, "float32"), vectors)
    with pytest.raises(MessageError):
        mail(generators, damaging(0, 2, lambda payload: words))


def test_a_message_from_a_rank_that_is_damaged_says_from_which() -> None:
    vectors = [vector([5, -3]), vector([1, 7])]
    generators = exchanges(allgather, choose(vectors, [1, 1], True, "float32"), vectors)
    with pytest.raises(MessageError, match="from rank 1: "):
        mail(generators, damaging(0, 2, lambda payload: number(0, payload.size)))


def test_sizes_whose_sum_wraps_around_are_noticed() -> None:
    """Three messages in one, of 2^63 - 1, 2^63 - 1 and 2 bytes: 0 in all, modulo 2^64."""
    sizes = np.array([2**63 - 1, 2**63 - 1, 2], dtype="<i8").view(np.uint8)
    with pytest.raises(MessageError):
        mail(
            [together([once(Gather(number(1, 0))) for _ in range(3)])],
            lambda asked: [[sizes]],
        )


@pytest.mark.parametrize("count", [-1, 3, 2**62])
def test_a_packed_message_of_an_impossible_count_is_refused(count: int) -> None:
    chosen = choose([vector([1, 2])], [1], False, "float32")[0]
    payload = collectives.pack(chosen)
    payload[:8] = np.array([count], dtype="<i8").view(np.uint8)
    with pytest.raises(MessageError):
        collectives.unpack(payload, chosen)


# ----------------------------------------------------------------------------------- EF21


LAYOUT = Layout([Layer("one", 5), Layer("two", 9), Layer("three", 2)])


def ef21_steps(collective: str, gradients: np.ndarray) -> Callable[[Comm], Any]:
    """A worker: updates and estimates of each step; gradients (steps, P, n)."""

    def work(comm: Comm) -> list[tuple[np.ndarray, np.ndarray]]:
        settings = LayerwiseEF21.Settings(density=0.4, collective=collective)
        exchanger = Exchanger(
            LAYOUT, LayerwiseEF21, settings, comm, load_backend("numpy"), bucket_size=4
        )
        seen = []
        for finished, step in enumerate(gradients):
            exchanger.begin(finished)
            for layer in reversed(range(len(LAYOUT))):
                span = LAYOUT.span(range(layer, layer + 1))
                exchanger.ready(layer, step[comm.rank][span])
            exchanger.end()
            memory = exchanger.method.memory
            seen.append((exchanger.update.copy(), memory.estimate.copy()))
        return seen

    return work


@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize("ranks", [1, 3])
def test_ef21_applies_the_mean_of_the_estimates(collective: str, ranks: int) -> None:
    gradients = np.random.default_rng(ranks).normal(size=(6, ranks, LAYOUT.n)).astype(F32)
    runs = local.run(ranks, ef21_steps(collective, gradients))
    for step in zip(*runs, strict=True):
        updates, estimates = zip(*step, strict=True)
        assert len({update.tobytes() for update in updates}) == 1
        np.testing.assert_allclose(updates[0], np.mean(estimates, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ranks", [1, 3])
def test_ef21_finds_a_gradient_that_stays(ranks: int) -> None:
    """g_est becomes g, in as many steps as top-k takes to send all of it, and stays there."""
    gradient = np.random.default_rng(7).integers(-50, 51, (ranks, LAYOUT.n)).astype(F32)
    runs = local.run(ranks, ef21_steps("allgather", np.stack([gradient] * 5)))
    for own, steps in zip(gradient, runs, strict=True):
        assert steps[0][1].tolist() != own.tolist()
        assert steps[-1][1].tolist() == own.tolist()
        np.testing.assert_allclose(steps[-1][0], gradient.mean(axis=0), rtol=1e-5)


def test_the_wire_types_are_all_tried() -> None:
    assert set(TYPES) == set(wire.VALUE_BYTES)
    assert Net(0, 1) == (0, 1)
