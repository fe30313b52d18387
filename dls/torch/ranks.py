"""The ranks that train a model together: how they were started, and what must be alike on them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from dls.comm import launcher, local
from dls.comm.base import Comm
from dls.torch.parameters import Tensor
from reference.collectives import Gather

AT_ONCE = 2**28
"""Bytes of one message of the first weights, at most."""


def comm(given: Any, timeout: float) -> Comm:
    """This rank among the ranks, on a communicator that nothing else uses.

    given: a communicator of mpi4py; None: all ranks that mpirun has started, or this process alone.
    ValueError where another launcher has started processes that MPI does not know of.
    """
    if isinstance(given, Comm):
        return given
    launched = launcher.launched(os.environ)
    if given is None and not launched:
        _check_torchrun(1, os.environ)
        return local.alone()
    from dls.comm.world import World  # here, as it loads MPI

    if given is not None:
        found = World(timeout, given.Dup(), guarded=False)
        _check_distributed(found.size)
        return found
    found = World(timeout, guarded=False, private=True)
    if words := launcher.alone(found.size, found.library, os.environ):
        raise ValueError(words)
    _check_torchrun(found.size, os.environ)
    return found


def device(timeout: float = 600.0) -> torch.device:
    """Where this rank's model goes: the ranks of a machine take its GPUs in turn; the CPU where
    there is none. Every rank calls it.

        model.to(dls.torch.device())

    timeout: seconds that a rank waits for others at most.
    """
    ranks = comm(None, timeout)
    number = ranks.rank_on_node
    ranks.finish()
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", number % torch.cuda.device_count())


def _check_torchrun(size: int, environ: Mapping[str, str]) -> None:
    """ValueError where torchrun has started more processes than MPI has ranks."""
    started = environ.get("WORLD_SIZE", "")
    by_torchrun = "TORCHELASTIC_RUN_ID" in environ and started.isdecimal()
    if by_torchrun and int(started) > size:
        raise ValueError(
            f"torchrun has started {started} processes, which MPI cannot join into one run: start"
            f" the program with mpirun -n {started} python …, or with Slurm's srun"
        )
    _check_distributed(size)


def _check_distributed(size: int) -> None:
    """ValueError where PyTorch's own process group has another number of ranks."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    if (ranks := distributed.get_world_size()) != size:
        raise ValueError(
            f"torch.distributed has {ranks} ranks, and MPI has {size}: start the program with"
            f" mpirun -n {ranks} python …, or with Slurm's srun"
        )


def check_threads(comm: Comm, tensors: Sequence[Tensor], overlap: bool) -> None:
    """ValueError where gradients would be sent from a thread from which MPI takes no calls: those
    of a device come in autograd's own threads.
    """
    devices = [str(tensor.device) for tensor in tensors if tensor.device.type != "cpu"]
    if overlap and devices and not comm.any_thread:
        raise ValueError(
            "MPI was started for calls from its first thread alone, and gradients of"
            f" {devices[0]} come in another one: start it with"
            " MPI.Init_thread(MPI.THREAD_MULTIPLE), or attach with overlap=False"
        )


def check_same(comm: Comm, settings: Mapping[str, Any], parameters: Sequence[str]) -> None:
    """ValueError, on all ranks, that names the first thing in which a rank differs from rank 0."""
    if words := comm.difference({name: repr(value) for name, value in settings.items()}):
        raise ValueError(words)
    everyone = comm.allgather_objects(list(parameters), "the other ranks' parameters")
    for rank, theirs in enumerate(everyone):
        pairs = itertools.zip_longest(theirs, everyone[0], fillvalue="none")
        for number, (other, first) in enumerate(pairs):
            if other != first:
                raise ValueError(
                    f"rank {rank} differs from rank 0 in parameter number {number}: {other} instead"
                    f" of {first}"
                )


def copy_from_rank_0(comm: Comm, tensors: Sequence[Tensor]) -> None:
    """Give every rank rank 0's values, in place."""
    if comm.size == 1:
        return
    for tensor in tensors:
        own = _bytes(tensor)
        for start in range(0, own.size, AT_ONCE):
            piece = own[start : start + AT_ONCE]
            piece[...] = from_rank_0(comm, piece, "the first weights")
        with torch.no_grad():
            values = torch.from_numpy(own).view(tensor.dtype).view(tensor.shape)
            tensor.detach().copy_(values)


def from_rank_0(comm: Comm, own: np.ndarray[Any, Any], what: str) -> np.ndarray[Any, Any]:
    """Rank 0's bytes; `own` has as many on each rank."""
    sizes = [own.size] + [0] * (comm.size - 1)
    payload = own if comm.rank == 0 else own[:0]
    received: Sequence[np.ndarray[Any, Any]] = comm.ask(Gather(payload, sizes), what)
    return received[0]


def _bytes(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A copy of a tensor's values, on the host, as bytes."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    found: np.ndarray[Any, Any] = flat.clone().view(torch.uint8).numpy()
    return found
