"""Go on with several runs under one mpirun, one an argument.

What each rank starts from is kept as OUT/rank-N.npz.
"""

import shlex
import sys

import numpy as np

from dls.comm.world import World
from dls.program import config, startup
from dls.train import main

comm = World()
for line in sys.argv[1:]:
    run = startup.prepare(config.parse_command_line(shlex.split(line)), comm)
    model = run.task.model
    place = {"first": run.first, "total": run.total, "batch": run.config.batch_size, "place": run.batches.place(run.first)}
    arrays = run.exchanger.state()
    arrays |= {"statistics": model.statistics, "weights": model.parameters}
    np.savez(run.out / f"rank-{comm.rank}.npz", momentum=run.optimizer.momentum, **arrays, **place)
    run.lock.release()
    status = main(shlex.split(line))
    assert status == 0, (status, line)
