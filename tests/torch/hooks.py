"""Cases on ranks alone: DistributedDataParallel, whose ranks are processes, and other launching."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.distributed as distributed
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import dls.torch
from dls.comm.base import Comm
from tests.torch.cases import (
    BACKENDS,
    attach,
    grads,
    inputs,
    loss,
    mean_of_ranks,
    net,
    on_device,
    own_gradients,
    raises,
)

HOOKED: dict[str, Any] = {}


def hooked(function: Any) -> Any:
    HOOKED[function.__name__] = on_device(function)
    return function


@contextmanager
def process_group(comm: Comm) -> Iterator[None]:
    """PyTorch's own, over a file: DistributedDataParallel wants one."""
    path = comm.from_rank_0(lambda: tempfile.mkstemp(dir=os.getcwd())[1])
    distributed.init_process_group(
        "gloo", init_method=f"file://{path}", rank=comm.rank, world_size=comm.size
    )
    try:
        yield
    finally:
        distributed.destroy_process_group()


def hook(
    ddp: Any, comm: Comm, method: str, packed: list[int] | None = None, **options: Any
) -> dls.torch.ddp.Hook:
    """packed: how many parameters each bucket holds, as the buckets come."""
    chosen = {"backend": BACKENDS[0], "threads": 1, "bucket_size": 24, "check_every": 1} | options
    state, function = dls.torch.comm_hook(ddp, method, comm=comm, **chosen)

    def spied(state, bucket):  # type: ignore[no-untyped-def]  # PyTorch reads annotations
        if packed is not None:
            packed.append(len(bucket.parameters()))
        return function(state, bucket)

    ddp.register_comm_hook(state, spied)
    return state


@hooked
def a_hook_has_the_bits_of_attach_across_rebuilt_buckets(comm: Comm) -> None:
    with process_group(comm):
        ddp = DistributedDataParallel(net(), bucket_cap_mb=1e-4)
        packed: list[int] = []
        state = hook(ddp, comm, "dls", packed, density=0.2)
        model = net()
        sync = attach(model, comm, "dls")
        optimizers = [torch.optim.SGD(each.parameters(), lr=0.05) for each in (ddp, model)]
        for step in range(5):
            for each in (ddp, model):
                loss(each, comm.rank, step).backward()
            if step == 0:
                sync.stepper.lay_out(state.stepper.order)
                sync.stepper.agreed = True
            sync.wait()
            for one, other in zip(ddp.module.parameters(), model.parameters(), strict=True):
                assert torch.equal(one.grad, other.grad), step
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
        first, rest = packed[:1], packed[1:]
        assert first == [6] and rest == rest[: len(rest) // 4] * 4 and len(rest) > 4, packed
        mine, theirs = state.state_dict(), sync.state_dict()
        for name, kept in mine["values"]["residual"].items():
            assert torch.equal(kept, theirs["values"]["residual"][name]), name
        again = DistributedDataParallel(net(), bucket_cap_mb=25)
        other = hook(again, comm, "dls", density=0.2)
        other.load_state_dict(mine)
        again.module.load_state_dict(ddp.module.state_dict())
        for each in (again, ddp):
            loss(each, comm.rank, 5).backward()
        pairs = zip(again.parameters(), ddp.parameters(), strict=True)
        assert all(torch.equal(one.grad, two.grad) for one, two in pairs)
        sync.close()


class Choosing(nn.Module):
    """One of two layers is left out."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = net(1), net(2)

    def forward(self, x: Any, which: str) -> Any:
        return getattr(self, which)(x).square().sum()


@hooked
def a_hook_knows_unused_parameters_and_no_sync(comm: Comm) -> None:
    with process_group(comm):
        ddp = DistributedDataParallel(Choosing(), find_unused_parameters=True)
        hook(ddp, comm, "dense")
        for step in range(4):
            which = "two" if comm.rank == 1 and step % 2 else "one"
            act = lambda twin: twin(inputs(comm.rank, step), which).backward()  # noqa: B023, E731
            expected = mean_of_ranks(comm, own_gradients(ddp.module, act))
            ddp(inputs(comm.rank, step), which).backward()
            found = grads(ddp.module)
            for name, mean in expected.items():
                torch.testing.assert_close(found[name], mean)
            ddp.zero_grad()
        ddp = DistributedDataParallel(net())
        hook(ddp, comm, "dense")
        with ddp.no_sync():
            loss(ddp, comm.rank, 0).backward()
        loss(ddp, comm.rank, 1).backward()
        both = lambda twin: [loss(twin, comm.rank, step).backward() for step in (0, 1)]  # noqa: E731
        for name, mean in mean_of_ranks(comm, own_gradients(net(), both)).items():
            torch.testing.assert_close(grads(ddp.module)[name], mean)


@hooked
def ranks_of_a_machine_take_its_gpus_in_turn(comm: Comm) -> None:
    for there, expected in ((True, f"cuda:{comm.rank % 2}"), (False, "cpu")):
        with (
            mock.patch("torch.cuda.is_available", return_value=there),
            mock.patch("torch.cuda.device_count", return_value=2),
        ):
            assert str(dls.torch.device()) == expected


@hooked
def ranks_that_mpi_does_not_know_are_refused(comm: Comm) -> None:
    """As where torchrun has started them: here each rank is alone in its communicator."""
    from mpi4py import MPI

    with process_group(comm):
        words = f"torch.distributed has {comm.size} ranks, and MPI has 1: start the program with"
        alone = MPI.COMM_SELF
        raises(ValueError, words, lambda: attach(net(), alone))  # type: ignore[arg-type]
