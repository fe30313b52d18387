"""What tests/mpi/test_front.py runs on two ranks: exchanges, and messages of the program."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
from mpi4py import MPI

import dls
from dls.comm.errors import ExchangeError
from reference.ops import NonFiniteError

WORLD = MPI.COMM_WORLD
N, STEPS = 60, 200
MANY = {f"layer {number}": 10 for number in range(70)}


def make(comm: Any = None, **options: Any) -> dls.Exchange:
    chosen = {"method": "layerwise-topk", "density": 0.1, "on_nan": "skip"} | options
    return dls.Exchange({"a": N}, comm=comm, backend="numpy", threads=1, timeout=20, **chosen)


def gradient(step: int, rank: int, bad: bool = False) -> np.ndarray:
    values = np.random.default_rng([step, rank]).standard_normal(N).astype(np.float32)
    if bad:
        values[0] = np.nan
    return values


def two_exchanges() -> None:
    """One meets NaN in every second step, on one rank, the other never, as one alone."""
    one, other, alone = make(), make(), make(WORLD)
    for step in range(STEPS):
        bad, own = step % 2 == 0, gradient(step, WORLD.rank)
        one.begin()
        other.begin()
        one.ready("a", gradient(step, WORLD.rank, bad and WORLD.rank == 1))
        other.ready("a", own)
        assert list(one.end().met_by) == [1] * bad, step
        ((name, mean),) = other.arrivals()
        assert name == "a"
        assert other.row is not None
        assert list(other.row.met_by) == []
        assert mean.tobytes() == alone(own).tobytes(), step
    for exchange in (one, other, alone):
        exchange.close()


def beside_messages_of_the_program() -> None:
    """Its own non-blocking Iallgather on COMM_WORLD, under way while the exchange is."""
    exchange = make()
    for step in range(STEPS):
        exchange.begin()
        exchange.ready("a", gradient(step, WORLD.rank))
        mine, got = np.full(1, 7 + WORLD.rank, np.uint8), np.zeros(2, np.uint8)
        request = WORLD.Iallgather(mine, got)
        row = exchange.end()
        request.Wait()
        assert got.tolist() == [7, 8], step
        assert list(row.met_by) == [], step
    exchange.close()


def on_a_part_of_the_ranks() -> None:
    """Each rank alone in a communicator of its own, then both in one that turns them round."""
    part = WORLD.Split(WORLD.rank)
    with make(part, density=1.0) as exchange:
        assert exchange.comm.size == 1
        for step in range(5):
            own = gradient(step, WORLD.rank)
            assert np.array_equal(exchange(own), own)
    turned = WORLD.Split(0, key=-WORLD.rank)
    with make(turned, density=1.0) as exchange:
        assert exchange.comm.rank == 1 - WORLD.rank
        mean = np.mean([gradient(0, rank) for rank in (1, 0)], axis=0, dtype=np.float32)
        np.testing.assert_allclose(exchange(gradient(0, WORLD.rank)), mean, rtol=0, atol=1e-6)
    turned.Barrier()  # it is the program's, and still there
    turned.Free()
    part.Free()


def one_after_the_other(comm: Any) -> None:
    """With as many lanes as there can be; what one held, the next one has."""
    before = threading.active_count()
    for number in range(40):
        with dls.Exchange(
            MANY,
            comm=comm,
            method="layerwise-topk",
            density=0.1,
            backend="numpy",
            threads=1,
            timeout=20,
            bucket_size=1,
        ) as exchange:
            mean = exchange(np.full(700, number, np.float32))
            assert set(mean.tolist()) <= {0.0, float(number)}
    assert threading.active_count() <= before + (comm is None)


def closed_means_closed() -> None:
    exchange = make()
    exchange.begin()
    refused(ValueError, "close comes between steps", exchange.close)
    exchange.ready("a", gradient(0, WORLD.rank))
    exchange.end()
    exchange.close()
    exchange.close()
    refused(RuntimeError, "closed", lambda: exchange(gradient(0, WORLD.rank)))
    refused(RuntimeError, "closed", exchange.state)


def where_one_fails_the_other_hears_of_it() -> None:
    """At once, not when the timeout is over; and the program goes on with others."""
    fails, hears = make(on_nan="stop"), make()
    hears.begin()
    refused(NonFiniteError, "NaN", lambda: fails(np.full(N, np.nan, np.float32)))
    began = time.monotonic()
    refused(
        ExchangeError, "dropped", lambda: (hears.ready("a", gradient(0, WORLD.rank)), hears.end())
    )
    assert time.monotonic() - began < 5
    assert make()(gradient(0, WORLD.rank)).any()


def each_waits_as_long_as_it_says() -> None:
    one, other = (
        dls.Exchange({"a": 4}, backend="numpy", density=0.5, timeout=timeout) for timeout in (5, 6)
    )
    assert (one.comm.timeout, other.comm.timeout) == (5, 6)


def refused(kind: type[Exception], words: str, act: Callable[[], Any]) -> None:
    try:
        act()
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__} says {words!r}")


def main() -> None:
    two_exchanges()
    beside_messages_of_the_program()
    on_a_part_of_the_ranks()
    one_after_the_other(WORLD)
    one_after_the_other(None)
    closed_means_closed()
    where_one_fails_the_other_hears_of_it()
    each_waits_as_long_as_it_says()
    print("done")


if __name__ == "__main__":
    try:
        main()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        WORLD.Abort(1)
