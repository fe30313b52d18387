"""Laws of workers in one process: the bits of `mail`, the same turns each time, and clear ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from typing import Any

import numpy as np
import pytest

from dls.comm import local
from dls.comm.base import PROGRAM, Comm
from dls.comm.errors import ExchangeError
from dls.comm.lanes import Tally
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
    mail,
    together,
)
from reference.wire import MessageError
from tests.parts import choose, content, every_round, exchanges, union
from tests.strategies import F32, vector

ALL = COLLECTIVES | {"union": union}
RANKS = (1, 2, 3, 4, 7)


def one(asked: Round) -> Generator[Round, Any, Any]:
    return (yield asked)


def payload(size: int) -> np.ndarray:
    return np.zeros(size, dtype=np.uint8)


# ------------------------------------------------------------------------- the bits of mail


def case(ranks: int, seed: int, known: bool) -> tuple[list[Any], list[np.ndarray]]:
    rng = np.random.default_rng([seed, ranks])
    n = int(rng.integers(1, 60))
    vectors = [rng.normal(size=n).astype(F32) for _ in range(ranks)]
    return choose(vectors, rng.integers(0, n + 1, ranks).tolist(), known, "float16"), vectors


def buckets(ranks: int, name: str) -> list[list[Any]]:
    """Ten buckets' generators, each of all ranks; every third is two as one."""
    made = []
    for seed in range(10):
        parts = [exchanges(ALL[name], *case(ranks, seed, bool(seed % 2))) for _ in range(2)]
        pairs = list(zip(*parts, strict=True))
        made.append([together(pair[: 1 + (seed % 3 == 0)]) for pair in pairs])
    return made


def bits(results: Any) -> list[Any]:
    return [content(each) for each in results]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("name", ALL)
def test_workers_get_the_bits_of_mail(name: str, ranks: int) -> None:
    """Of ten buckets in flight at once on three lanes."""
    mine = buckets(ranks, name)

    def work(comm: Comm) -> list[Any]:
        comm.lanes.open(3)
        flights = []
        for number, bucket in enumerate(mine):
            flights.append(comm.lanes.launch(number % 3, bucket[comm.rank], f"bucket {number}"))
            comm.progress()
            if (number + comm.rank) % 3 == 0:
                comm.lanes.advance()
        return [bits(comm.lanes.wait(flight)) for flight in flights]

    expected = [[bits(each) for each in mail(bucket)] for bucket in buckets(ranks, name)]
    assert local.run(ranks, work) == [list(each) for each in zip(*expected, strict=True)]


@pytest.mark.parametrize("ranks", RANKS)
def test_workers_get_rounds_of_all_kinds(ranks: int) -> None:
    def work(comm: Comm) -> list[Any]:
        comm.lanes.open(2)
        flights = [
            comm.lanes.launch(seed % 2, every_round(comm.net, seed), "all kinds")
            for seed in range(8)
        ]
        return [comm.lanes.wait(flight) for flight in reversed(flights)]

    expected = [
        mail([every_round(Net(rank, ranks), seed) for rank in range(ranks)])
        for seed in reversed(range(8))
    ]
    assert local.run(ranks, work) == [list(each) for each in zip(*expected, strict=True)]


def test_answers_are_read_only_and_stay() -> None:
    """What a worker does with its buffer once it has its own answer changes nobody else's."""

    def work(comm: Comm) -> list[int]:
        own = np.full(3, comm.rank, dtype=np.uint8)
        received = comm.ask(Gather(own, [3] * comm.size), "words")
        assert not any(part.flags.writeable for part in received)
        own += 100
        comm.ask(Reduce(vector([1])), "a pause")
        return [int(part[0]) for part in received]

    assert local.run(3, work) == [[0, 1, 2]] * 3


def test_arrays_of_a_program_stay() -> None:
    def work(comm: Comm) -> list[list[int]]:
        own = np.array([comm.rank, comm.rank])
        waiting = comm.allgather(own, "words")
        result = waiting.wait()
        own += 100
        return result.tolist()

    assert local.run(3, work) == [[[0, 0], [1, 1], [2, 2]]] * 3


# ----------------------------------------------------------------------------------- turns


def test_one_worker_runs_at_a_time_in_the_order_of_ranks() -> None:
    def turns() -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        inside = threading.Lock()

        def work(comm: Comm) -> None:
            for step in range(4):
                assert inside.acquire(blocking=False)
                seen.append((step, comm.rank))
                inside.release()
                comm.ask(Reduce(vector([1])), "a pause")

        local.run(3, work)
        return seen

    once = turns()
    assert once == turns()
    assert sorted(once) == [(step, rank) for step in range(4) for rank in range(3)]
    assert once[:3] == [(0, 0), (0, 1), (0, 2)]


def test_the_first_worker_is_this_thread_and_results_are_in_rank_order() -> None:
    here = threading.get_ident()
    found = local.run(3, lambda comm: (comm.rank, threading.get_ident() == here))
    assert found == [(0, True), (1, False), (2, False)]
    assert (local.alone().rank, local.alone().size) == (0, 1)


# ------------------------------------------------------------------------------------ ends


class Broken(Exception):
    pass


@pytest.mark.timeout(60)
@pytest.mark.parametrize("raising", range(3))
@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_worker_that_raises_ends_all_with_its_error(raising: int, after: int) -> None:
    gone_on = []

    def work(comm: Comm) -> None:
        for step in range(5):
            if comm.rank == raising and step == after:
                raise Broken(f"rank {comm.rank}")
            comm.ask(Reduce(vector([1])), "a pause")
        gone_on.append(comm.rank)

    before = threading.active_count()
    with pytest.raises(Broken, match=f"rank {raising}"):
        local.run(3, work)
    assert not gone_on
    assert threading.active_count() == before


@pytest.mark.timeout(60)
@pytest.mark.parametrize("status", [0, 1, 75])
def test_a_worker_that_aborts_ends_all(status: int) -> None:
    def work(comm: Comm) -> None:
        if comm.rank == 1:
            comm.abort(status)
        comm.ask(Reduce(vector([1])), "a pause")

    with pytest.raises(local.Ended) as ended:
        local.run(3, work)
    assert ended.value.status == status


def half_a_round(comm: Comm) -> None:
    """One worker asks for less than the others."""
    for _ in range(2 + (comm.rank != 1)):
        comm.ask(Reduce(vector([1])), "a pause")


def other_lanes(comm: Comm) -> None:
    """Each waits on a lane that no other one uses."""
    comm.lanes.open(3)
    flight = comm.lanes.launch(comm.rank, one(Reduce(vector([1]))), f"lane {comm.rank}")
    comm.lanes.wait(flight)


def nothing_arrives(comm: Comm) -> None:
    """A wait for what nobody has asked for."""
    comm.wait_until(lambda: False, "what never comes")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("work", [half_a_round, other_lanes, nothing_arrives])
def test_a_wait_for_what_nobody_sends_ends(work: Callable[[Comm], None], ranks: int) -> None:
    if ranks == 1 and work is not nothing_arrives:
        assert local.run(1, work) == [None]
        return
    with pytest.raises(ExchangeError, match=r"a pause|lane \d|what never comes"):
        local.run(ranks, work)


@pytest.mark.timeout(60)
def test_workers_out_of_step_are_refused() -> None:
    def work(comm: Comm) -> None:
        comm.ask((Reduce if comm.rank else Sum)(vector([1])), "a sum")

    with pytest.raises(LockStepError):
        local.run(2, work)


def test_a_worker_may_be_done_long_before_the_others() -> None:
    def work(comm: Comm) -> int:
        comm.ask(Reduce(vector([1])), "a pause")
        if comm.rank:
            comm.progress()
        return comm.rank

    assert local.run(5, work) == list(range(5))


# ----------------------------------------------------------------------------------- lanes


def test_a_lane_carries_one_generator_at_a_time() -> None:
    """Posted on a lane: all rounds of a bucket, then all of the next."""
    posted: list[tuple[int, str]] = []

    def rounds(count: int) -> Generator[Round, Any, None]:
        for _ in range(count):
            yield Reduce(vector([1]))

    def work(comm: Comm) -> None:
        comm.lanes.open(2)
        post = comm.post
        if comm.rank == 0:
            comm.post = lambda lane, asked, what: (
                posted.append((lane, what)) or post(lane, asked, what)
            )
        counts = [3, 1, 2, 0, 4]
        flights = [
            comm.lanes.launch(number % 2, rounds(count), f"bucket {number}")
            for number, count in enumerate(counts)
        ]
        for flight in flights:
            comm.lanes.wait(flight)

    local.run(2, work)
    of_lane = [[what for lane, what in posted if lane == each] for each in range(2)]
    assert of_lane[0] == ["bucket 0"] * 3 + ["bucket 2"] * 2 + ["bucket 4"] * 4
    assert of_lane[1] == ["bucket 1"]


def broken(rounds: int, error: Exception) -> Generator[Round, Any, None]:
    for _ in range(rounds):
        yield Reduce(vector([1]))
    raise error


def test_a_generator_that_raises_at_once_is_heard_where_it_is_launched() -> None:
    comm = local.alone()
    comm.lanes.open(1)
    with pytest.raises(Broken):
        comm.lanes.launch(0, broken(0, Broken()), "bucket 0")
    flight = comm.lanes.launch(0, one(Reduce(vector([2]))), "bucket 1")
    assert comm.lanes.wait(flight).tolist() == [2]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_generator_that_raises_is_heard_by_whoever_waits_each_time(ranks: int) -> None:
    def work(comm: Comm) -> None:
        comm.lanes.open(2)
        lost = comm.lanes.launch(0, broken(2, Broken("of bucket 0")), "bucket 0")
        behind = comm.lanes.launch(0, one(Reduce(vector([1]))), "bucket 1")
        for flight in (lost, lost, behind):
            with pytest.raises(Broken, match="of bucket 0"):
                comm.lanes.wait(flight)
        with pytest.raises(Broken):
            comm.lanes.advance()
        comm.lanes.close()
        comm.lanes.open(2)
        flight = comm.lanes.launch(1, one(Reduce(vector([3]))), "bucket 2")
        assert comm.lanes.wait(flight).tolist() == [3 * comm.size]

    local.run(ranks, work)


def test_damage_is_told_with_what_it_is_in() -> None:
    comm = local.alone()
    comm.lanes.open(1)
    flight = comm.lanes.launch(0, broken(1, MessageError("a damaged message")), "layer one")
    with pytest.raises(MessageError, match=r"^layer one, a damaged message$"):
        comm.lanes.wait(flight)


def test_closing_closes_the_generators() -> None:
    closed = []

    def generator(number: int) -> Generator[Round, Any, None]:
        try:
            yield Reduce(vector([1]))
            yield Reduce(vector([1]))
        finally:
            closed.append(number)

    comm = local.alone()
    comm.lanes.open(2)
    for number in range(3):
        comm.lanes.launch(number % 2, generator(number), "bucket")
    comm.lanes.close()
    assert sorted(closed) == [0, 1, 2]
    comm.lanes.advance()


def test_a_generator_without_rounds_is_done_at_once() -> None:
    def silent() -> Generator[Round, Any, int]:
        return 5
        yield

    comm = local.alone()
    comm.lanes.open(1)
    flight = comm.lanes.launch(0, silent(), "bucket")
    assert flight.done and comm.lanes.wait(flight) == 5


# ----------------------------------------------------------------------------------- bytes


COUNTED: dict[str, tuple[Callable[[int], Round], list[int], list[int]]] = {
    "gather": (lambda rank: Gather(payload(rank)), [COUNT, COUNT + 1, COUNT + 2], [19, 18, 17]),
    "sized gather": (lambda rank: Gather(payload(rank), [0, 1, 2]), [0, 1, 2], [3, 2, 1]),
    "swap": (
        lambda rank: Swap((rank + 1) % 3, (rank - 1) % 3, payload(rank)),
        [8, 9, 10],
        [10, 8, 9],
    ),
    "sized swap": (
        lambda rank: Swap((rank + 1) % 3, (rank - 1) % 3, payload(rank), (rank - 1) % 3),
        [0, 1, 2],
        [2, 0, 1],
    ),
    "swap of one alone": (
        lambda rank: [Swap(1, None, payload(4)), Swap(None, 0, NOTHING), Swap(None, None, NOTHING)][
            rank
        ],
        [12, 0, 0],
        [0, 12, 0],
    ),
    "sum": (lambda rank: Sum(np.ones(9, dtype=F32)), [36] * 3, [48] * 3),
    "reduce": (lambda rank: Reduce(np.ones(9, dtype=F32)), [36] * 3, [48] * 3),
    # blocks of 3, 3 and 4 values: 2 of one's own from each other rank, and the others' sums
    "uneven reduce": (lambda rank: Reduce(np.ones(10, dtype=F32)), [40] * 3, [52, 52, 56]),
}


@pytest.mark.parametrize(("make", "sent", "received"), COUNTED.values(), ids=COUNTED.keys())
def test_bytes_are_counted(
    make: Callable[[int], Round], sent: list[int], received: list[int]
) -> None:
    """As World counts them: payloads, and the numbers that tell their sizes."""

    def work(comm: Comm) -> tuple[int, int]:
        comm.tally = Tally()
        pending = comm.post(PROGRAM, make(comm.rank), "bytes")
        comm.wait_until(pending.done, "bytes")
        return comm.tally.sent, comm.tally.received

    assert local.run(3, work) == list(zip(sent, received, strict=True))
