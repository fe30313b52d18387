"""Laws of collectives under a clock: the bits of `mail`, and times that a pencil gives."""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import numpy as np
import pytest

from dls.comm import local
from dls.comm.base import Comm
from dls.comm.lanes import Tally
from dls.cost.clock import Elapsed, clock
from reference import wire
from reference.collectives import (
    COLLECTIVES,
    COUNT,
    NOTHING,
    Gather,
    LockStepError,
    Net,
    Reduce,
    Round,
    Sum,
    Swap,
    together,
)
from tests.parts import choose, content, every_round, exchanges, mailed, union
from tests.strategies import F32, vector

ALL = COLLECTIVES | {"union": union}
ALPHA, BETA = 3e-5, 1e-8
N, K = 4096, 40
MESSAGE = wire.payload_size(N, K)


def near(seconds: float) -> Any:
    return pytest.approx(seconds, rel=1e-9)


def case(ranks: int, known: bool) -> tuple[list[Any], list[np.ndarray]]:
    """All ranks choose K of N values, the same places, so that all messages have one size."""
    rng = np.random.default_rng(ranks)
    places = rng.choice(N, K, replace=False)
    vectors = [np.zeros(N, dtype=F32) for _ in range(ranks)]
    for v in vectors:
        v[places] = 1 + rng.integers(0, 9, K)
    return choose(vectors, [K] * ranks, known, "float32"), vectors


def timed(name: str, ranks: int, known: bool = True) -> Elapsed:
    return clock(exchanges(ALL[name], *case(ranks, known)), ALPHA, BETA)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8, 13])
@pytest.mark.parametrize("name", ALL)
def test_results_are_those_of_mail(name: str, ranks: int, known: bool) -> None:
    expected = [content(each) for each in mailed(ALL[name], *case(ranks, known))]
    assert [content(each) for each in timed(name, ranks, known).results] == expected


# --------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 32])
def test_allgather_passes_all_messages_round(ranks: int) -> None:
    found = timed("allgather", ranks)
    assert found.rounds == 1
    assert found.seconds == near((ranks - 1) * (ALPHA + BETA * MESSAGE))
    assert found.received == (ranks - 1) * MESSAGE


@pytest.mark.parametrize("ranks", [2, 5])
def test_allgather_of_unknown_sizes_passes_them_round_first(ranks: int) -> None:
    found = timed("allgather", ranks, known=False)
    size = COUNT + MESSAGE
    assert found.seconds == near((ranks - 1) * (2 * ALPHA + BETA * (COUNT + size)))
    assert found.received == (ranks - 1) * (COUNT + size)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8, 16, 64])
def test_gtopk_takes_a_logarithm_of_rounds(ranks: int) -> None:
    """Each a message of a size that all ranks know."""
    found, rounds = timed("gtopk", ranks), int(math.log2(ranks))
    size = COUNT + MESSAGE
    assert found.rounds == rounds
    assert found.seconds == near(rounds * (ALPHA + BETA * size))
    assert found.received == rounds * size


@pytest.mark.parametrize("ranks", [3, 5, 6, 7, 12, 50])
def test_gtopk_folds_the_ranks_beyond_a_power_of_two(ranks: int) -> None:
    """A fold, the rounds of the others, and the result: on the clock one after the other."""
    found, inside = timed("gtopk", ranks), ranks.bit_length() - 1
    size = COUNT + MESSAGE
    assert found.rounds == inside + 2
    assert found.seconds == near((inside + 2) * (ALPHA + BETA * size))
    assert found.received == (inside + 1) * size


def one(asked: list[Round]) -> Elapsed:
    """A round of its own."""

    def generator(each: Round) -> Generator[Round, Any, Any]:
        return (yield each)

    return clock([generator(each) for each in asked], ALPHA, BETA)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_sum_is_a_ring(ranks: int) -> None:
    block = 6
    found = one([Sum(np.ones(block * ranks, dtype=F32))] * ranks)
    assert found.seconds == near(2 * (ranks - 1) * (ALPHA + BETA * 4 * block))
    assert found.received == 2 * (ranks - 1) * 4 * block


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_a_reduce_is_an_exchange_of_blocks_and_a_ring(ranks: int) -> None:
    block = 6
    found = one([Reduce(np.ones(block * ranks, dtype=F32))] * ranks)
    assert found.seconds == near(2 * (ranks - 1) * (ALPHA + BETA * 4 * block))
    assert found.received == 2 * (ranks - 1) * 4 * block


def test_one_large_message_holds_up_every_step_of_a_ring() -> None:
    """Each step waits for whoever passes it on."""
    sizes = [1000, 10, 10]
    found = one([Gather(np.zeros(size, dtype=np.uint8), sizes) for size in sizes])
    assert found.seconds == near(2 * (ALPHA + BETA * 1000))
    assert found.received == 1010


def test_the_empty_messages_of_a_ring_still_take_their_time() -> None:
    found = one([Gather(NOTHING, [0] * 5)] * 5)
    assert found.seconds == near(4 * ALPHA)
    assert found.received == 0


def test_nobody_waits_in_a_swap_with_nobody() -> None:
    assert one([Swap(None, None, NOTHING)] * 3)[:3] == (0.0, 1, 0)


def test_a_rank_waits_for_its_partner_alone() -> None:
    """Ranks 0 and 1 swap something large; 2 and 3 meanwhile something small, twice."""
    size = {0: 5000, 1: 5000, 2: 100, 3: 100}

    def generator(rank: int) -> Generator[Round, Any, None]:
        other, payload = rank ^ 1, np.zeros(size[rank], dtype=np.uint8)
        yield Swap(other, other, payload, payload.size)
        if rank < 2:
            yield Swap(None, None, NOTHING)
        else:
            yield Swap(other, other, payload, payload.size)

    found = clock([generator(rank) for rank in range(4)], ALPHA, BETA)
    assert found.seconds == near(max(ALPHA + BETA * 5000, 2 * (ALPHA + BETA * 100)))
    assert (found.rounds, found.received) == (2, 5000)


def test_a_late_partner_is_waited_for() -> None:
    """0 sends to 1, then 1 to 2: rank 2 hears of it after both messages."""

    def generator(rank: int) -> Generator[Round, Any, None]:
        for sender in (0, 1):
            payload = np.zeros(700 if rank == sender else 0, dtype=np.uint8)
            to = sender + 1 if rank == sender else None
            source = sender if rank == sender + 1 else None
            yield Swap(to, source, payload, 0 if source is None else 700)

    found = clock([generator(rank) for rank in range(3)], ALPHA, BETA)
    assert found.seconds == near(2 * (ALPHA + BETA * 700))


def test_together_pays_for_one_message() -> None:
    parts = [exchanges(COLLECTIVES["allgather"], *case(4, True)) for _ in range(3)]
    joined = [together([part[rank] for part in parts]) for rank in range(4)]
    found = clock(joined, ALPHA, BETA)
    assert found.rounds == 1
    assert found.seconds == near(3 * (ALPHA + BETA * 3 * MESSAGE))


def test_ranks_out_of_step_are_refused() -> None:
    with pytest.raises(LockStepError):
        one([Reduce(vector([1])), Sum(vector([1]))])


def test_many_ranks() -> None:
    """More than any machine here has."""
    ranks = 500
    found = one([Gather(np.zeros(MESSAGE, dtype=np.uint8), [MESSAGE] * ranks)] * ranks)
    assert found.seconds == near((ranks - 1) * (ALPHA + BETA * MESSAGE))
    assert timed("gtopk", 256).seconds < found.seconds


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("known", [False, True])
def test_bytes_are_those_that_a_carrier_counts(name: str, ranks: int, known: bool) -> None:
    chosen, vectors = case(ranks, known)

    def work(comm: Comm) -> int:
        comm.lanes.open(1)
        generator = ALL[name](chosen[comm.rank], vectors[comm.rank], comm.net)
        flight = comm.lanes.launch(0, generator, "all")
        comm.lanes.wait(flight)
        return Tally.of_all(flight.messages).received

    assert timed(name, ranks, known).received == max(local.run(ranks, work))


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_rounds_of_all_kinds(ranks: int) -> None:
    for seed in range(10):
        found = clock([every_round(Net(rank, ranks), seed) for rank in range(ranks)], ALPHA, BETA)
        assert found.rounds == 6 and math.isfinite(found.seconds)
