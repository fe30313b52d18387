"""`mpirun … python -m dls.bench exchange`: the sparse allgather alone, on the ranks and the network
at hand.

Beside it stand the MPI library's own blocking Allgatherv of the very same bytes, and its Allreduce
of the dense gradient. All take turns from a common start. A turn lasts as long as that of the
slowest rank; times are medians.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Annotated, Any

import numpy as np

from dls.backends import Backend
from dls.comm.world import World
from dls.tools import turns
from dls.tools.rows import Row, Title
from reference import methods
from reference.collectives import Gather

WAITED_FOR = "the benchmark's messages"
"""What an error says that a rank was waiting for."""
Turn = Callable[[], object]


@dataclass(frozen=True)
class ExchangeRow(Row):
    """Times of one exchange: of the bytes alone, with coding, and of the library's collectives."""

    values: str
    density: float
    ranks: int
    message_kb: Annotated[float, Title("message, kB")]
    bytes_ms: Annotated[float, Title("bytes, ms")]
    received_rate: Annotated[float, Title("MB/s received")]
    by_allgatherv: Annotated[float, Title("bytes / Allgatherv")]
    coding_ms: Annotated[float, Title("with coding, ms")]
    allreduce_ms: Annotated[float, Title("Allreduce, ms")]
    by_allreduce: Annotated[float, Title("with coding / Allreduce")]


def measure(
    comm: World, backend: Backend, sizes: Sequence[int], densities: Sequence[float], steps: int
) -> Iterator[ExchangeRow]:
    """Yield, on rank 0, a row for each number of values and density. Every rank calls it."""
    for n in sizes:
        for density in densities:
            contenders = _contenders(comm, backend, n, methods.budget(n, density))
            timed = {name: partial(_timed, comm, turn) for name, turn in contenders.items()}
            taken = turns.take(timed, turns.numbers(steps))
            gathered = comm.gather(np.array([*taken.values()]))
            if gathered is not None:
                medians = np.median(gathered.max(axis=0), axis=1).tolist()
                yield _row(comm, backend, n, density, dict(zip(taken, medians, strict=True)))


def _timed(comm: World, turn: Turn, _number: int) -> float:
    """The seconds of a turn, which all ranks begin together."""
    comm.together(lambda: None)
    start = perf_counter()
    turn()
    return perf_counter() - start


def _contenders(comm: World, backend: Backend, n: int, k: int) -> Mapping[str, Turn]:
    """The exchange with coding, the exchange of the bytes alone, and the library's two."""
    rng = np.random.default_rng(comm.rank)
    index = np.sort(rng.choice(n, k, replace=False)).astype(np.int64)
    values = rng.standard_normal(k, dtype=np.float32)
    payload = backend.wire.encode(index, values, n)
    sizes, update = [payload.size] * comm.size, backend.ops.zeros(n)
    dense, total = np.ones(n, dtype=np.float32), np.empty(n, dtype=np.float32)

    def gather() -> list[Any]:
        received: list[Any] = comm.ask(Gather(payload, sizes), WAITED_FOR)
        return received

    def with_coding() -> None:
        message = backend.wire.encode(index, values, n)
        for received in comm.ask(Gather(message, sizes), WAITED_FOR):
            backend.ops.scatter_add(update, *backend.wire.decode(received, n, k))

    return {
        "with coding": with_coding,
        "bytes": gather,
        "Allgatherv": lambda: comm.blocking_allgatherv(payload, sizes),
        "Allreduce": lambda: comm.blocking_allreduce(dense, total),
    }


def _row(
    comm: World, backend: Backend, n: int, density: float, medians: Mapping[str, float]
) -> ExchangeRow:
    size = backend.wire.payload_size(n, methods.budget(n, density))
    return ExchangeRow(
        values=str(n),
        density=density,
        ranks=comm.size,
        message_kb=size / 1000,
        bytes_ms=1000 * medians["bytes"],
        received_rate=size * (comm.size - 1) / medians["bytes"] / 1e6,
        by_allgatherv=medians["bytes"] / medians["Allgatherv"],
        coding_ms=1000 * medians["with coding"],
        allreduce_ms=1000 * medians["Allreduce"],
        by_allreduce=medians["with coding"] / medians["Allreduce"],
    )
