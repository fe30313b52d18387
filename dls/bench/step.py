"""`mpirun … python -m dls.bench step`: what a whole training step costs with each method, on the
ranks and the network at hand.

The methods take turns on the same mini-batches. All ranks begin a turn together, and it lasts as
long as that of the slowest. Its exposed communication is what the network adds: its length less the
longest time that any rank computed; waiting for a slower rank is not the network's doing. Times are
medians.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from dls.comm.base import Comm
from dls.exchange.clock import PHASES
from dls.program import config
from dls.program.run import Run, build, thread_count
from dls.tools import networks, turns, variants
from dls.tools.rows import Row, Title

TIMES = (*PHASES, "total")
"""The seconds of a turn."""
FIGURES = (*TIMES, "bytes")
"""The figures of a turn."""
Turn = NDArray[np.float64]
"""The FIGURES of one turn on one rank."""


@dataclass(frozen=True)
class StepRow(Row):
    """Times and bytes of a method's step; phases are means over the ranks.

    Step time, exposed communication and bytes also as multiples of those of dense and of
    global-topk, where these take part.
    """

    model: str
    ranks: int
    method: str
    step_ms: Annotated[float, Title("step, ms")]
    compute_ms: Annotated[float, Title("compute, ms")]
    forward_ms: Annotated[float, Title("forward, ms")]
    backward_ms: Annotated[float, Title("backward, ms")]
    select_ms: Annotated[float, Title("select, ms")]
    decode_ms: Annotated[float, Title("decode, ms")]
    update_ms: Annotated[float, Title("update, ms")]
    exposed_ms: Annotated[float, Title("exposed, ms")]
    kb: Annotated[float, Title("kB")]
    step_by_dense: Annotated[float | None, Title("step / dense")] = None
    exposed_by_dense: Annotated[float | None, Title("exposed / dense")] = None
    kb_by_dense: Annotated[float | None, Title("kB / dense")] = None
    step_by_global: Annotated[float | None, Title("step / global-topk")] = None
    exposed_by_global: Annotated[float | None, Title("exposed / global-topk")] = None
    kb_by_global: Annotated[float | None, Title("kB / global-topk")] = None


@dataclass
class Replica:
    """A method's own replica of the network, which it trains."""

    comm: Comm
    run: Run

    def turn(self, step: int) -> Turn:
        """Take the training step that follows so many others; its FIGURES."""
        self.comm.together(lambda: None)  # all ranks begin at once
        task, exchanger = self.run.task, self.run.exchanger
        exchanger.clock.restart()
        task.differentiate(self.run.batches, step, exchanger)
        for span in exchanger.arrivals():
            with exchanger.clock.phase("update"):
                self.run.optimizer.apply(span, exchanger.update[span], self.run.config.lr)
        row = exchanger.end()
        return np.array([*(row.seconds[name] for name in TIMES), row.payload_bytes])

    def settle(self) -> None:
        """Hear what the last step announced, so that the exchange is idle."""
        self.run.exchanger.state()


def measure(
    comm: Comm,
    models: Sequence[str],
    methods: Sequence[str],
    settings: Mapping[str, Any],
    steps: int,
) -> Iterator[StepRow]:
    """Yield, on rank 0, a row for each network and method. Every rank calls it.

    methods: as `dls.tools.variants` reads them. settings: those of a run, which all methods share.
    UsageError where settings do not fit together.
    """
    for model in models:
        replicas = {name: _build(comm, model, name, settings) for name in methods}
        turn_of = {name: replica.turn for name, replica in replicas.items()}
        taken = turns.take(turn_of, turns.numbers(steps))
        for replica in replicas.values():
            replica.settle()
        gathered = {name: comm.gather(np.array(each)) for name, each in taken.items()}
        about = partial(_row, model, comm.size)
        rows = {name: about(name, each) for name, each in gathered.items() if each is not None}
        for row in rows.values():
            yield _compared(row, rows)


def _build(comm: Comm, model: str, method: str, settings: Mapping[str, Any]) -> Replica:
    images = 4 * comm.size * settings["batch_size"]
    data = networks.network(model).settings() | {"synthetic_size": images, "steps": 1}
    chosen = config.build(settings, data, variants.settings_of(method))
    return Replica(comm, build(chosen, comm, thread_count(comm, chosen)))


def _row(model: str, ranks: int, method: str, taken: NDArray[np.float64]) -> StepRow:
    """The row of a method from its turns (ranks, turns, FIGURES)."""
    figures = dict(zip(FIGURES, np.moveaxis(taken, 2, 0), strict=True))
    step = figures["total"].max(axis=0)
    exposed = step - (figures["total"] - figures["exposed"]).max(axis=0)
    step_ms, exposed_ms = 1000 * float(np.median(step)), 1000 * float(np.median(exposed))

    def mean(name: str) -> float:
        return float(np.median(figures[name].mean(axis=0)))

    return StepRow(
        model=model,
        ranks=ranks,
        method=method,
        step_ms=step_ms,
        compute_ms=step_ms - exposed_ms,
        forward_ms=1000 * mean("forward"),
        backward_ms=1000 * mean("backward"),
        select_ms=1000 * mean("select"),
        decode_ms=1000 * mean("decode"),
        update_ms=1000 * mean("update"),
        exposed_ms=exposed_ms,
        kb=mean("bytes") / 1000,
    )


def _compared(row: StepRow, rows: Mapping[str, StepRow]) -> StepRow:
    """The row with its multiples of dense's and global-topk's, where these take part."""
    if dense := rows.get("dense"):
        row = replace(
            row,
            step_by_dense=row.step_ms / dense.step_ms,
            exposed_by_dense=row.exposed_ms / dense.exposed_ms,
            kb_by_dense=row.kb / dense.kb,
        )
    if global_topk := rows.get("global-topk"):
        row = replace(
            row,
            step_by_global=row.step_ms / global_topk.step_ms,
            exposed_by_global=row.exposed_ms / global_topk.exposed_ms,
            kb_by_global=row.kb / global_topk.kb,
        )
    return row
