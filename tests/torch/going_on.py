"""Cases of runs that are saved and go on."""

from __future__ import annotations

import copy
import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dls.comm.base import Comm
from dls.record.checkpoint import CheckpointError
from tests.torch.cases import DEVICE, attach, case, inputs, raises, seeded


def dropping() -> nn.Sequential:
    with seeded(4), DEVICE:
        layers = nn.Linear(6, 8), nn.Dropout(0.3), nn.BatchNorm1d(8), nn.Linear(8, 4)
        return nn.Sequential(*layers)


def random_state() -> list[Any]:
    """Of the CPU's generator, and of a GPU's."""
    return [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]


def set_random(state: list[Any]) -> None:
    torch.set_rng_state(state[0])
    torch.cuda.set_rng_state_all(state[1:])


class Run:
    """A model with everything that a run has beside it; each rank has its own random numbers."""

    def __init__(self, comm: Comm, seed: int = 0, **options: Any) -> None:
        self.comm, self.model = comm, dropping()
        self.sync = attach(self.model, comm, check_every=1, **options)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01)
        self.schedule = torch.optim.lr_scheduler.MultiStepLR(self.optimizer, [2, 4])
        with seeded(seed + comm.rank):
            self.random = random_state()

    def steps(self, count: int) -> Run:
        for _ in range(count):
            set_random(self.random)  # workers of one process share a generator
            value = self.model(inputs(self.comm.rank, self.sync.steps)).square().sum()
            self.random = random_state()
            value.backward()
            self.sync.wait()
            self.optimizer.step()
            self.schedule.step()
            self.optimizer.zero_grad()
        return self

    @property
    def parts(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer, "schedule": self.schedule}

    @property
    def bits(self) -> list[bytes]:
        tensors = [*self.model.parameters(), *self.model.buffers()]
        bits = [each.detach().cpu().numpy().tobytes() for each in tensors]
        return [*bits, self.residual.tobytes()]

    @property
    def residual(self) -> np.ndarray:
        """In the order of the parameters."""
        kept = self.sync.state_dict()["values"]["residual"]
        return torch.cat([kept[each.name].reshape(-1) for each in self.sync.parameters]).numpy()

    def save(self, folder: Path, **options: Any) -> Path:
        set_random(self.random)
        return self.sync.save(folder, **self.parts, **options)

    def resume(self, folder: Path) -> int:
        found = self.sync.resume(folder, **self.parts)
        if found:
            self.random = random_state()
        return found


def folder_of(comm: Comm) -> Path:
    """An empty one below the current folder."""
    folder = Path.cwd() / "saved"
    comm.from_rank_0(lambda: shutil.rmtree(folder, ignore_errors=True))
    return folder


@case
def a_saved_run_goes_on_with_the_same_bits(comm: Comm) -> None:
    folder = folder_of(comm)
    for kind in ("mean", "local"):
        whole = Run(comm, buffers=kind).steps(6)
        expected = whole.bits
        whole.sync.close()
        first = Run(comm, buffers=kind)
        assert first.resume(folder) == 0
        first.steps(1).save(folder, keep=1)
        first.steps(2).save(folder, keep=1)
        first.sync.close()
        again = Run(comm, seed=50, buffers=kind)
        assert again.resume(folder) == 3
        assert sorted(each.name for each in (folder / "checkpoints").iterdir()) == ["step-00000003"]
        bits = again.steps(3).bits
        assert bits == expected, (kind, [a == b for a, b in zip(bits, expected, strict=True)])
        again.sync.close()
        comm.allgather_objects(None)
        folder_of(comm)


@case
def a_state_is_a_rank_s_own(comm: Comm) -> None:
    """Through torch.save and back.

    Rank 0's state for everybody, which is how the states of DistributedDataParallel's hooks are
    usually saved, loses what the others have not sent, and is refused.
    """
    whole = Run(comm).steps(6)
    first = Run(comm).steps(3)
    file = io.BytesIO()
    torch.save(first.sync.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    kept = sum(comm.allgather_objects(first.residual))
    of_rank_0 = comm.allgather_objects(state)[0]
    again = Run(comm)
    again.model.load_state_dict(first.model.state_dict())
    again.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    again.schedule.load_state_dict(first.schedule.state_dict())
    again.random = first.random
    if comm.rank:
        words = f"the rank of this state: rank 0 of {comm.size}, and here it is rank {comm.rank}"
    else:
        words = f"here it is rank 1 of {comm.size}"  # all ranks have the first error
    raises(
        ValueError,
        words[:30] if comm.rank else words,
        lambda: again.sync.load_state_dict(of_rank_0),
    )
    again.sync.load_state_dict(of_rank_0, strict=False)
    assert not np.allclose(sum(comm.allgather_objects(again.residual)), kept)
    again.sync.load_state_dict(state)
    assert np.array_equal(sum(comm.allgather_objects(again.residual)), kept)
    assert again.steps(3).bits == whole.bits
    raises(ValueError, "this is no state of a sync", lambda: again.sync.load_state_dict({}))
    for run in (whole, first, again):
        run.sync.close()


@case
def what_a_checkpoint_does_not_fit_is_named(comm: Comm) -> None:
    folder = folder_of(comm)
    run = Run(comm).steps(2)
    run.save(folder)
    raises(ValueError, "optimizer has no state_dict", lambda: run.sync.save(folder, optimizer=3))
    raises(
        CheckpointError, "holds no scaler", lambda: run.sync.resume(folder, scaler=run.optimizer)
    )
    run.sync.close()
    other = Run(comm, density=0.3)
    words = "has the settings {'density': 0.2"
    raises(CheckpointError, words, lambda: other.resume(folder))
    other.sync.close()
    wide = attach(nn.Linear(6, 9), comm)
    words = "has the parameter 0.weight (8, 6) float32, and this model weight (9, 6) float32"
    raises(CheckpointError, words, lambda: wide.resume(folder))
    wide.close()
    comm.allgather_objects(None)
    if comm.rank == 0:
        path = folder / "checkpoints" / "step-00000002" / "shared.h5"
        path.write_bytes(path.read_bytes()[:-1])
    last = Run(comm)
    raises(CheckpointError, "none of the 1 checkpoints", lambda: last.resume(folder))
    last.sync.close()
    folder_of(comm)
