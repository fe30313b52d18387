"""`mpirun … python -m dls.bench exchange`: the sparse allgather alone, on the ranks and the network
at hand.

It is measured beside the MPI library's own blocking Allgatherv of the very same bytes, and beside
its Allreduce of the dense gradient. All take turns; times are medians over the repetitions of the
slowest rank's, from a common start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import numpy as np

from dls.backends import Backend
from dls.comm.world import World
from reference import methods
from reference.collectives import Gather

Row = dict[str, Any]
WARM_UP = 3
Turn = Callable[[], object]


def measure(
    comm: World, backend: Backend, sizes: Sequence[int], densities: Sequence[float], steps: int
) -> Iterator[Row]:
    """Yield, on rank 0, a row per size n and density: milliseconds, bytes, received bytes per
    second. Every rank calls it.
    """
    for n in sizes:
        for density in densities:
            turns = _turns(comm, backend, n, methods.budget(n, density))
            times = comm.gather(
                np.array(
                    [
                        [_timed(comm, turn) for turn in turns.values()]
                        for _ in range(WARM_UP + steps)
                    ]
                )
            )
            if times is not None:
                medians = dict(
                    zip(turns, np.median(times.max(axis=0)[WARM_UP:], axis=0).tolist(), strict=True)
                )
                yield {"values": str(n), "density": density, "ranks": comm.size} | _row(
                    comm, backend, n, density, medians
                )


def _timed(comm: World, turn: Turn) -> float:
    comm.together(lambda: None)
    start = perf_counter()
    turn()
    return perf_counter() - start


def _turns(comm: World, backend: Backend, n: int, k: int) -> Mapping[str, Turn]:
    """What takes turns: the whole exchange, the exchange of bytes alone, and the library's two."""
    rng = np.random.default_rng(comm.rank)
    index = np.sort(rng.choice(n, k, replace=False)).astype(np.int64)
    values = rng.standard_normal(k, dtype=np.float32)
    payload = backend.wire.encode(index, values, n)
    sizes, update = [payload.size] * comm.size, backend.ops.zeros(n)
    dense, total = np.ones(n, dtype=np.float32), np.empty(n, dtype=np.float32)

    def gather() -> list[Any]:
        received: list[Any] = comm.ask(Gather(payload, sizes), "the benchmark's messages")
        return received

    def whole() -> None:
        for message in comm.ask(
            Gather(backend.wire.encode(index, values, n), sizes), "the benchmark's messages"
        ):
            backend.ops.scatter_add(update, *backend.wire.decode(message, n, k))

    return {
        "sparse": whole,
        "bytes": gather,
        "Allgatherv": lambda: comm.blocking_allgatherv(payload, sizes),
        "Allreduce": lambda: comm.blocking_allreduce(dense, total),
    }


def _row(
    comm: World, backend: Backend, n: int, density: float, medians: Mapping[str, float]
) -> Row:
    size = backend.wire.payload_size(n, methods.budget(n, density))
    return {
        "message, kB": size / 1000,
        "bytes, ms": 1000 * medians["bytes"],
        "MB/s received": size * (comm.size - 1) / medians["bytes"] / 1e6,
        "bytes / Allgatherv": medians["bytes"] / medians["Allgatherv"],
        "with coding, ms": 1000 * medians["sparse"],
        "Allreduce, ms": 1000 * medians["Allreduce"],
        "with coding / Allreduce": medians["sparse"] / medians["Allreduce"],
    }
