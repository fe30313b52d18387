"""`mpirun … python -m dls.bench step`: what a whole training step costs with each method, on the
ranks and the network at hand.

The methods take turns within each repetition, on the same mini-batches, so that whatever else the
machines do meets them alike. All ranks begin a turn together, and it lasts as long as that of the
slowest. Its exposed communication is what the network adds: its length less the longest that any
rank computed. A rank that waits for a slower one, not for the network, adds nothing to it. Times
are medians over the repetitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.bench.contenders import NETWORKS, Row, settings_of
from dls.comm.base import Comm
from dls.exchange.clock import PHASES
from dls.program import config, run
from dls.program.run import Run

WARM_UP = 4
"""Steps before the clock counts: compilation, first thresholds, first buffers."""
TIMES = (*PHASES, "total")
SHOWN = ("forward", "backward", "select", "decode", "update")
"""Phases of which a row tells the mean over the ranks."""


@dataclass
class Contender:
    """A method's own replica of the network, and its steps so far."""

    run: Run

    def turn(self, step: int) -> NDArray[np.float64]:
        """Take the training step of this number; the seconds of each phase in TIMES, then the bytes
        sent.
        """
        task, exchanger = self.run.task, self.run.exchanger
        exchanger.clock.restart()
        task.differentiate(self.run.batches, step - 1, exchanger)
        for span in exchanger.arrivals():
            with exchanger.clock.phase("update"):
                self.run.optimizer.apply(span, exchanger.update[span], self.run.config.lr)
        row = exchanger.end()
        return np.array([*(row.seconds[name] for name in TIMES), row.payload_bytes])


def measure(
    comm: Comm,
    networks: Sequence[str],
    names: Sequence[str],
    settings: Mapping[str, Any],
    steps: int,
) -> Iterator[Row]:
    """Yield, on rank 0, a row per network and contender: milliseconds, bytes, and ratios to dense
    and to global-topk.

    settings: those of a run, the same for all contenders. Every rank calls it. UsageError where
    settings do not fit together.
    """
    for network in networks:
        contenders = {name: _build(comm, network, name, settings) for name in names}
        taken: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
        for step in range(1, WARM_UP + steps + 1):
            for name, contender in contenders.items():
                comm.together(lambda: None)  # all begin at once
                taken[name].append(contender.turn(step))
        for contender in contenders.values():
            contender.run.exchanger.state()  # hear what the last step announced
        gathered = {name: comm.gather(np.array(turns[WARM_UP:])) for name, turns in taken.items()}
        measured = {name: _medians(turns) for name, turns in gathered.items() if turns is not None}
        for name, figures in measured.items():
            yield (
                {"model": network, "ranks": comm.size, "method": name}
                | figures
                | _ratios(figures, measured)
            )


def _build(comm: Comm, network: str, name: str, settings: Mapping[str, Any]) -> Contender:
    images = {
        "dataset": "synthetic",
        "synthetic_size": 4 * comm.size * settings["batch_size"],
        "steps": 1,
    }
    chosen = config.build(settings, NETWORKS[network], images, settings_of(name))
    return Contender(run.build(chosen, comm, run.thread_count(comm, chosen)))


def _medians(turns: NDArray[np.float64]) -> Row:
    """The figures of a contender from turns (ranks, steps, figures)."""
    phases = dict(zip((*TIMES, "bytes"), np.moveaxis(turns, 2, 0), strict=True))
    step = phases["total"].max(axis=0)
    exposed = step - (phases["total"] - phases["exposed"]).max(axis=0)
    total, waited = (1000 * float(np.median(times)) for times in (step, exposed))
    means = {name: 1000 * float(np.median(phases[name].mean(axis=0))) for name in SHOWN}
    return {
        "step, ms": total,
        "compute, ms": total - waited,
        **{f"{name}, ms": mean for name, mean in means.items()},
        "exposed, ms": waited,
        "kB": float(np.median(phases["bytes"].mean(axis=0))) / 1000,
    }


def _ratios(figures: Row, measured: Mapping[str, Row]) -> Row:
    """Step time, exposed communication and bytes as multiples of dense's and of global-topk's,
    where these take part.
    """
    return {
        f"{figure.split(',')[0]} / {other}": figures[figure] / measured[other][figure]
        for other in ("dense", "global-topk")
        if other in measured
        for figure in ("step, ms", "exposed, ms", "kB")
    }
