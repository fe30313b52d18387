"""The selection of a training step as one writes it in PyTorch."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from dls.bench.timing import TimedStep
from dls.bench.workload import Workload
from reference.ops import Vector


def top_k(work: Workload, threads: int) -> TimedStep | None:
    """torch.topk of every layer's magnitudes, on the CPU and without accumulating.

    None where PyTorch is not installed.
    """
    torch = _torch()
    if torch is None:
        return None
    torch.set_num_threads(threads)
    counts = work.k().tolist()

    def step(gradient: Vector) -> None:
        for layer, k in zip(np.split(gradient, work.offsets[1:-1]), counts, strict=True):
            torch.topk(torch.from_numpy(layer).abs(), k, sorted=False)

    return TimedStep(step)


def pipeline_on_gpu(work: Workload) -> TimedStep | None:
    """`pipeline` on the GPU; None where PyTorch is not installed with CUDA."""
    torch = _torch()
    if torch is None or not torch.cuda.is_available():
        return None
    return pipeline(torch, work, torch.zeros(work.n, device="cuda"))


def pipeline(torch: Any, work: Workload, residual: Any) -> TimedStep:
    """The whole selection, layer by layer: accumulate, top-k, pack for the host, clear.

    residual: a float32 tensor (n) on the device that does the work.
    """
    layers = list(zip(torch.split(residual, list(work.sizes)), work.k().tolist(), strict=True))

    def step(gradient: Any) -> None:
        residual.add_(gradient)
        for v, k in layers:
            index = torch.topk(v.abs(), k, sorted=False).indices
            torch.cat([index.int(), v[index].view(torch.int32)]).cpu()
            v[index] = 0

    def put(gradient: Vector) -> Any:
        return torch.from_numpy(gradient).to(residual.device)

    return TimedStep(step, put, lambda: residual[:1].cpu())


def _torch() -> Any:
    """PyTorch, or None where it is not installed."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        return None
