"""What a rank does in `python -m dls.bench torch`, which starts it: all contenders in turn, over
one network, on the same batches.

    python -m dls.bench.torch_cell CELL.json

Rank 0 writes what it measures beside that file: rounds.json, and meanwhile to `at` the contender
whose turn it is, which names the one that ended the program.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from dls.bench import torch_contenders, torch_models
from dls.bench.torch_contenders import Contender
from dls.bench.torch_models import Batch
from dls.bench.torch_names import DDP, GLOO
from dls.comm import launcher, local
from dls.comm.base import Comm
from dls.comm.world import World

WARM_UP = 2
"""Rounds that do not count."""
TESTED, AT_ONCE = 2000, 100
"""Test images, and how many of them make a batch."""
PATIENCE = 600.0
"""Seconds that a rank waits for another."""


@dataclass(frozen=True)
class Cell:
    """What is measured: step times, or with `seconds` what each learns in so many seconds.

    rounds: that count; block: steps that a contender takes in a row in each. address: rank 0's.
    """

    model: str
    batch: int
    contenders: Sequence[str]
    density: float
    threads: int
    rounds: int
    block: int
    seconds: float
    address: str

    def save(self, path: Path) -> None:
        """Write it for the ranks."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")


class Ranks:
    """A rank with all contenders."""

    def __init__(self, cell: Cell, folder: Path, comm: Comm) -> None:
        self.cell, self.folder, self.comm = cell, folder, comm
        self.source = torch_models.KINDS[cell.model].source()
        torch.set_num_threads(cell.threads)
        if any(name.split("/")[0] == DDP for name in cell.contenders):
            self._at(GLOO)
            torch_contenders.join_gloo(comm, cell.address)
        self.contenders: dict[str, Contender] = {}
        for name in cell.contenders:
            self._at(name)
            built = torch_contenders.build(name, cell.model, cell.density, cell.threads)
            self.contenders[name] = built

    def _at(self, name: str) -> None:
        if self.comm.rank == 0:
            (self.folder / "at").write_text(name, encoding="utf-8")

    def turn(self, name: str, first_step: int) -> tuple[float, float]:
        """A block of steps from that number on: seconds a step of this rank, and bytes sent."""
        self._at(name)
        contender, steps = self.contenders[name], range(first_step, first_step + self.cell.block)
        batches = [self._batch(step) for step in steps]
        self.comm.together(lambda: None)  # all ranks begin at once
        sent_before, start = sent_bytes(), perf_counter()
        for batch in batches:
            contender.step(batch)
        seconds = perf_counter() - start
        self.comm.together(lambda: None)  # what others send is counted, too
        return seconds / self.cell.block, (sent_bytes() - sent_before) / self.cell.block

    def _batch(self, step: int) -> Batch:
        return self.source.batch(self.cell.batch, (self.comm.rank, step))

    # --- step times ----------------------------------------------------------------------------

    def measure(self) -> None:
        """Take the rounds; after each, rank 0 writes all so far."""
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in self.contenders}
        for number in range(WARM_UP + self.cell.rounds):
            for name in self.contenders:
                seconds, sent = self.turn(name, number * self.cell.block)
                row = self._slowest(seconds, sent, self.contenders[name].lost)
                if number >= WARM_UP:
                    found[name].append(row)
            self._write({"rounds": found})

    def _slowest(self, seconds: float, sent: float, lost: float) -> tuple[float, float, float]:
        """The seconds of the slowest rank, and means over the ranks of bytes and of the loss."""
        everyone = np.array(self.comm.allgather_objects((seconds, sent, lost)))
        return float(everyone[:, 0].max()), *everyone[:, 1:].mean(axis=0).tolist()

    def _write(self, found: dict[str, Any]) -> None:
        if self.comm.rank:
            return
        sizes = [p.numel() for p in next(iter(self.contenders.values())).model.parameters()]
        about = {"parameters": sum(sizes), "data": self.source.name}
        (self.folder / "rounds.json").write_text(json.dumps(about | found), encoding="utf-8")

    # --- what is learned in a given time -------------------------------------------------------

    def race(self) -> None:
        """Each contender trains until its own steps have taken so many seconds."""
        clocks, steps = dict.fromkeys(self.contenders, 0.0), dict.fromkeys(self.contenders, 0)
        for name in self.contenders:
            self.turn(name, 0)  # compiles and connects; its clock begins behind it
        ends: dict[str, Any] = {}
        while running := [name for name in clocks if clocks[name] < self.cell.seconds]:
            for name in running:
                seconds, _ = self.turn(name, steps[name] + self.cell.block)
                clocks[name] += self.cell.block * self._slowest(seconds, 0, 0)[0]
                steps[name] += self.cell.block
                if clocks[name] >= self.cell.seconds:
                    ends[name] = {"steps": steps[name], **self._tested(self.contenders[name])}
                    self._write({"ends": ends})

    def _tested(self, contender: Contender) -> dict[str, float]:
        """The loss and the accuracy on test data, with each batch's own statistics: in a training
        as short as this, batch norm's running ones are still those of the beginning.
        """
        x, wanted = self.source.test(TESTED)
        with torch.no_grad():
            scores = torch.cat([contender.model(each) for each in x.split(AT_ONCE)])
            loss = float(torch_models.loss(scores, wanted))
            right = float((scores.argmax(1) == wanted).float().mean())
        everyone = np.array(self.comm.allgather_objects((loss, right)))
        return dict(zip(("loss", "accuracy"), everyone.mean(axis=0).tolist(), strict=True))


def sent_bytes() -> int:
    """The bytes that this network namespace's interfaces have sent, as the kernel counts them."""
    lines = Path("/proc/self/net/dev").read_text(encoding="utf-8").splitlines()[2:]
    return sum(int(line.split(":")[1].split()[8]) for line in lines)


def main(argv: Sequence[str]) -> None:
    """Measure the cell of this file."""
    path = Path(argv[0])
    cell = Cell(**json.loads(path.read_text(encoding="utf-8")))
    comm = World(PATIENCE) if launcher.launched(os.environ) else local.alone()
    try:
        ranks = Ranks(cell, path.parent, comm)
        if cell.seconds:
            ranks.race()
        else:
            ranks.measure()
        comm.together(lambda: None)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)  # ranks in gloo's or MPI's hands would not end by themselves


if __name__ == "__main__":
    main(sys.argv[1:])
