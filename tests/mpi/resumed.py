"""Go on with several runs under one mpirun, one an argument; or as workers of one process.

What each rank starts from is kept as OUT/rank-N.npz.
"""

import shlex
import sys
from collections.abc import Iterable

import numpy as np

from dls.comm import local
from dls.comm.base import Comm
from dls.program import flags, startup
from tests.mpi.many import code_is_read_once, train_all


def keep(line: str, comm: Comm) -> None:
    """Begin as a run does, keep what is there, and leave."""
    run = startup.prepare(flags.parse_command_line(shlex.split(line)), comm)
    model = run.task.model
    place = {
        "first": run.finished,
        "total": run.total,
        "batch": run.config.batch_size,
        "place": run.batches.epoch_and_batch(run.finished),
    }
    arrays = run.exchanger.state()
    arrays |= {"statistics": model.statistics, "weights": model.parameters}
    momentum = run.optimizer.momentum
    np.savez(run.out / f"rank-{comm.rank}.npz", momentum=momentum, **arrays, **place)
    run.lock.release()


def go_on_as_workers(workers: int, lines: Iterable[str]) -> None:
    with code_is_read_once():
        for line in lines:
            local.run(workers, lambda comm, line=line: keep(line, comm))
            train_all([f"{line} --workers {workers}"])


def go_on(lines: Iterable[str]) -> None:
    from dls.comm.world import World

    comm = World()
    with code_is_read_once():
        for line in lines:
            keep(line, comm)
            train_all([line])


if __name__ == "__main__":
    go_on(sys.argv[1:])
