"""Collectives on lanes under mpirun: `lanes.py bits SEEDS` or `lanes.py ends`.

A rank prints `well` where all is well.

bits: ten buckets of every collective in flight at once on three lanes, ranks late at random; each
has the bits of `mail`, and the bytes that workers in one process count.
ends: the order of posting, generators that raise, and a rank that never comes.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from collections.abc import Generator
from typing import Any

import numpy as np

from dls.comm import local
from dls.comm.base import Comm
from dls.comm.errors import ExchangeError
from dls.comm.lanes import Message, Tally
from dls.comm.world import World
from reference.collectives import (
    COLLECTIVES,
    NOTHING,
    Exchanged,
    Gather,
    Net,
    Reduce,
    Round,
    Swap,
    mail,
    together,
)
from reference.wire import VALUE_BYTES
from tests.parts import choose, content, every_round, union

BUCKETS, LANES = 10, 3
ALL = [*COLLECTIVES.values(), union]


# ------------------------------------------------------------------------------------ bits


def bucket_of(seed: int, bucket: int, net: Net) -> Generator[Round, Any, Any]:
    """A bucket's generator on one rank: a collective, two as one, or rounds of all kinds."""
    rng = np.random.default_rng([seed, bucket])
    kind = int(rng.integers(len(ALL) + 1))
    if kind == len(ALL):
        return every_round(net, 100 * seed + bucket, rounds=4)
    parts, known = int(rng.integers(1, 3)), bool(rng.integers(2))
    return together([exchange_of(rng, kind, known, net) for _ in range(parts)])


def exchange_of(rng: np.random.Generator, kind: int, known: bool, net: Net) -> Any:
    """One rank's part; every rank draws the same numbers."""
    n = int(rng.choice([1, 40, 300]))
    vectors = [rng.standard_normal(n).astype(np.float32) for _ in range(net.size)]
    counts = rng.integers(0, 1 + max(1, n // 8), net.size).tolist()
    chosen = choose(vectors, counts, known, str(rng.choice(list(VALUE_BYTES))))
    return ALL[kind](chosen[net.rank], vectors[net.rank], net)


def bits(result: list[Any]) -> list[Any]:
    """Of what a bucket's generator returns."""
    return [content(each) if isinstance(each, Exchanged) else each for each in result]


def fly(
    comm: Comm,
    seed: int,
    late: random.Random | None = None,
    messages: list[Message] | None = None,
) -> list[Any]:
    """All buckets at once; late: what decides when this rank sleeps, and looks after them.

    messages: where the rounds of all buckets are added.
    """
    flights = []
    for bucket in range(BUCKETS):
        if late:
            dawdle(comm, late)
        generator = bucket_of(seed, bucket, comm.net)
        flights.append(comm.lanes.launch(bucket % LANES, generator, f"bucket {bucket}"))
    if late:
        late.shuffle(flights)
        for flight in flights:
            comm.lanes.wait(flight)
            dawdle(comm, late)
    in_order = sorted(flights, key=lambda each: each.what)
    results = [bits(comm.lanes.wait(flight)) for flight in in_order]
    if messages is not None:
        messages += [message for flight in in_order for message in flight.messages]
    return results


def dawdle(comm: Comm, late: random.Random) -> None:
    """Sleep, or help what is under way along, or do nothing."""
    if late.random() < 0.3:
        time.sleep(0.002 * late.random())
    if late.random() < 0.4:
        comm.progress()
    if late.random() < 0.4:
        comm.lanes.advance()


def expected(seed: int, ranks: int) -> list[list[Any]]:
    """What `mail` makes of each bucket, on each rank."""
    nets = [Net(rank, ranks) for rank in range(ranks)]
    made = [mail([bucket_of(seed, bucket, net) for net in nets]) for bucket in range(BUCKETS)]
    return [[bits(bucket[rank]) for bucket in made] for rank in range(ranks)]


def counted(comm: Comm, seeds: int) -> tuple[int, int]:
    """Bytes sent and received."""
    comm.lanes.open(LANES)
    messages: list[Message] = []
    for seed in range(seeds):
        fly(comm, seed, messages=messages)
    moved = Tally.of_all(messages)
    return moved.sent, moved.received


def check_bits(comm: World, seeds: int) -> None:
    comm.lanes.open(LANES)
    for seed in range(seeds):
        found = fly(comm, seed, random.Random(1000 * seed + comm.rank))
        of_ranks = comm.allgather_objects(found)
        if seed % comm.size == comm.rank:  # each seed is looked at by one rank, for all
            assert of_ranks == expected(seed, comm.size), seed
    few = min(seeds, 4)
    own = counted(comm, few)
    assert own == local.run(comm.size, lambda worker: counted(worker, few))[comm.rank]


# ------------------------------------------------------------------------------------ ends


class Broken(Exception):
    pass


def rounds(comm: Comm, count: int, error: Exception | None = None) -> Generator[Round, Any, int]:
    """Rounds of any kind; then a result, or an error."""
    to = (comm.rank + 1) % comm.size
    source = (comm.rank - 1) % comm.size
    own = np.full(comm.rank, comm.rank, dtype=np.uint8)
    for number in range(count):
        assert threading.current_thread() is threading.main_thread()
        if number % 3 == 0:
            yield Gather(own)
        elif number % 3 == 1:
            received = yield Swap(to, source, own)
            assert received.tolist() == [source] * source and not received.flags.writeable
        else:
            yield Reduce(np.ones(5, dtype=np.float32))
    if error is not None:
        raise error
    return count


def check_order(comm: World) -> None:
    """A lane carries one generator at a time, in the order of leaving."""
    posted: list[tuple[int, str]] = []
    post = comm.post
    comm.post = lambda lane, asked, what: posted.append((lane, what)) or post(lane, asked, what)
    counts, late = [3, 1, 4, 0, 2, 7, 1, 5], random.Random(comm.rank)
    flights = []
    for number, count in enumerate(counts):
        flights.append(comm.lanes.launch(number % LANES, rounds(comm, count), f"{number}"))
        dawdle(comm, late)
    assert [comm.lanes.wait(flight) for flight in flights] == counts
    for lane in range(LANES):
        found = [what for each, what in posted if each == lane]
        own = range(lane, len(counts), LANES)
        assert found == [f"{number}" for number in own for _ in range(counts[number])]
    comm.post = post


def check_silent(comm: World) -> None:
    """A rank to which nothing comes gets nothing, whatever size it names."""
    last = comm.size - 1

    def generator() -> Generator[Round, Any, list[int]]:
        if comm.rank == 0:
            received = yield Swap(last, None, np.full(3, 7, dtype=np.uint8), 0)
        elif comm.rank == last:
            received = yield Swap(None, 0, NOTHING, 3)
        else:
            received = yield Swap(None, None, NOTHING, 0)
        return received.tolist()

    found = comm.lanes.wait(comm.lanes.launch(0, generator(), "one message"))
    assert found == ([7, 7, 7] if comm.rank == last else [])


def check_raising(comm: World) -> None:
    """Whoever waits hears of it, every time; others' buckets on other lanes do not hang."""
    lost = comm.lanes.launch(0, rounds(comm, 4, Broken("of bucket 0")), "bucket 0")
    behind = comm.lanes.launch(0, rounds(comm, 1), "bucket 1")
    for flight in (lost, behind, lost):
        try:
            comm.lanes.wait(flight)
        except Broken as error:
            assert str(error) == "of bucket 0"
        else:
            raise AssertionError("nobody heard of it")
    comm.lanes.close()
    comm.lanes.open(3)
    assert comm.lanes.wait(comm.lanes.launch(1, rounds(comm, 3), "bucket 2")) == 3


def check_missing(comm: World, timeout: float = 0.5) -> None:
    """The last rank never comes: the others say so, in time."""
    here, missing = comm.timeout, comm.size - 1
    meet(comm)
    if comm.rank != missing:
        started, comm.timeout = time.monotonic(), timeout
        flight = comm.lanes.launch(2, rounds(comm, 2), "layer one")
        try:
            comm.lanes.wait(flight)
        except ExchangeError as error:
            words = f"layer one: no word from rank {missing} after {timeout:g} s of waiting"
            assert str(error).startswith(words), error
        else:
            raise AssertionError("it came")
        assert time.monotonic() - started < timeout + 4
        comm.lanes.close()
        comm.timeout = here
    else:
        time.sleep(timeout + 3.5)


def meet(comm: World) -> None:
    """Return when all ranks are here."""
    comm.allgather(np.array(comm.rank), "the others").wait()


def main(mode: str, seeds: str = "0") -> None:
    comm = World(timeout=60)
    if mode == "bits":
        check_bits(comm, int(seeds))
        print("well", flush=True)
        return
    comm.lanes.open(LANES)
    for check in (check_order, check_silent, check_raising, check_missing):
        check(comm)
    print("well", flush=True)
    meet(comm)
    if comm.rank == 0:  # at a plain end the library would wait for the round that nobody ends
        comm.abort(3)
    time.sleep(30)


if __name__ == "__main__":
    main(*sys.argv[1:])
