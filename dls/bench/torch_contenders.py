"""The ways to train a PyTorch model on several ranks that `python -m dls.bench torch` compares.

none                      without any communication: each rank trains for itself
ddp                       DistributedDataParallel over gloo
ddp/fp16                  with PyTorch's hook that sends half precision
ddp/powersgd=R            with PyTorch's PowerSGD hook, of rank R
ddp/topk=X                with a top-k hook as one writes it oneself, of density X
METHOD, METHOD/NAME=VALUE a method of ours, with settings as `dls.tools.variants` reads them

Each variant of ddp takes /bucket_mb=N beside: the size of its buckets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

import dls.torch
from dls.bench import torch_models
from dls.bench.torch_models import Batch, Tensor
from dls.bench.torch_names import DDP, NONE, hook_of
from dls.comm.base import Comm
from dls.tools import variants

PORT = 29_511
"""Where gloo's ranks find each other."""
PATIENCE = timedelta(seconds=300)
"""How long gloo waits for another rank."""
DENSE_STEPS = 2
"""Steps before PowerSGD compresses: the least that its hook takes, so that they do not count."""
Hook = Callable[[Any, Any], Any]


def join_gloo(comm: Comm, address: str) -> None:
    """Start torch.distributed on these ranks. address: rank 0's."""
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{address}:{PORT}",
        rank=comm.rank,
        world_size=comm.size,
        timeout=PATIENCE,
    )


@dataclass
class Contender:
    """A replica of the model, and what ends the backward pass of its steps.

    model: the plain one; called: what is called in its place. lost: the last step's loss.
    """

    model: Tensor
    called: Tensor
    rate: float
    wait: Callable[[], object] = lambda: None
    lost: float = float("nan")
    _optimizer: Any = field(init=False)

    def __post_init__(self) -> None:
        self._optimizer = torch.optim.SGD(self.model.parameters(), self.rate, momentum=0.9)

    def step(self, batch: Batch) -> None:
        """A training step, as a user's loop takes it."""
        x, wanted = batch
        loss = torch_models.loss(self.called(x), wanted)
        loss.backward()
        self.wait()
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.lost = loss.item()


def build(name: str, model_name: str, density: float, threads: int) -> Contender:
    """A contender with the weights of seed 0; every rank calls it.

    density: of our sparse methods, unless the name says otherwise.
    """
    model, rate = torch_models.build(model_name), torch_models.KINDS[model_name].rate
    if name == NONE:
        return Contender(model, model, rate)
    if name.split("/")[0] == DDP:
        return Contender(model, _ddp(name, model), rate)
    settings = variants.settings_of(name)
    if settings["method"] != "dense":
        settings = {"density": density} | settings
    sync = dls.torch.attach(model, threads=threads, check_every=0, **settings)
    return Contender(model, model, rate, sync.wait)


def _ddp(name: str, model: Tensor) -> Tensor:
    kind, value, bucket_mb = hook_of(name)
    wrapped = DistributedDataParallel(
        model, gradient_as_bucket_view=True, bucket_cap_mb=bucket_mb or None
    )
    if kind == "fp16":
        wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)
    elif kind == "powersgd":
        state = powerSGD_hook.PowerSGDState(
            None, matrix_approximation_rank=int(value), start_powerSGD_iter=DENSE_STEPS
        )
        wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    elif kind == "topk":
        wrapped.register_comm_hook(None, topk_hook(float(value)))
    return wrapped


def topk_hook(density: float) -> Hook:
    """Top-k of each of DDP's buckets with error feedback, as one writes it oneself."""
    residuals: dict[tuple[int, int], Tensor] = {}

    def hook(_: Any, bucket: Any) -> Any:
        gradient = bucket.buffer()
        place = bucket.index(), gradient.numel()
        residual = residuals.setdefault(place, torch.zeros_like(gradient))
        residual += gradient
        k = max(1, int(density * gradient.numel()))
        index = residual.abs().topk(k, sorted=False).indices.int()
        values = residual[index]
        residual[index] = 0
        all_values = [torch.empty_like(values) for _ in range(dist.get_world_size())]
        all_indices = [torch.empty_like(index) for _ in all_values]
        sent = dist.all_gather(all_indices, index, async_op=True)
        values_sent = dist.all_gather(all_values, values, async_op=True)

        def landed(_: Any) -> Tensor:
            sent.wait()
            gradient.zero_()
            for places, theirs in zip(all_indices, all_values, strict=True):
                gradient.index_add_(0, places, theirs)
            return gradient.div_(len(all_values))

        return values_sent.get_future().then(landed)

    # DDP compares annotations with its own types, and would take these, which are text, for others.
    hook.__annotations__.clear()
    return hook
