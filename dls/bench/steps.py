"""The forward and backward pass of one mini-batch, by our backends and by PyTorch, for the same
network with the same parameters and images.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls import backends
from dls.bench.timing import set_threads
from dls.tasks import models, modules
from dls.tools import networks

Step = Callable[[], float]
"""Computes a mini-batch's gradient; returns its loss."""


def build(name: str, model: str, batch: int, threads: int) -> Step:
    """The step of a backend, or of "torch"."""
    if name == "torch":
        return _torch_step(model, batch, threads)
    return _backend_step(name, model, batch, threads)


def _task(
    name: str, batch: int, backend: str
) -> tuple[models.Model, NDArray[Any], NDArray[np.int64]]:
    """The model, float32 images [batch, C, H, W] and labels [batch]: the same numbers each time."""
    model = networks.network(name).build(backends.load(backend).nn)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, *model.input_size), dtype=np.float32)
    return model, images, rng.integers(0, networks.CLASSES, batch)


def _backend_step(name: str, model: str, batch: int, threads: int) -> Step:
    backend = backends.load(name)
    network, images, labels = _task(model, batch, name)
    set_threads(backend, threads)

    def step() -> float:
        logits = network.forward(images, training=True)
        loss, dlogits, _ = backend.nn.softmax_cross_entropy(logits, labels)
        network.backward(dlogits, lambda layer: None)
        return float(loss)

    return step


def _torch_step(model: str, batch: int, threads: int) -> Step:
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    network, images, labels = _task(model, batch, "numpy")
    parameters = [
        [torch.from_numpy(array.copy()).requires_grad_() for array in layer]
        for layer in network.views.parameters
    ]
    statistics = [
        [torch.from_numpy(array.copy()) for array in layer] for layer in network.views.statistics
    ]
    x = torch.from_numpy(models.enlarge(images, network.smallest_side))
    y = torch.from_numpy(labels)
    leaves = [array for layer in parameters for array in layer]

    def step() -> float:
        for leaf in leaves:
            leaf.grad = None
        logits = _torch_forward(torch, network.modules, parameters, statistics, x)
        loss = torch.nn.functional.cross_entropy(logits, y)
        loss.backward()
        return float(loss)

    return step


def _torch_forward(
    torch: Any, chain: Sequence[Any], parameters: Any, statistics: Any, x: Any
) -> Any:
    """The logits of torch tensors x [N, C, H, W]."""
    functions = torch.nn.functional
    steps: dict[type, Callable[[Any, Any], Any]] = {
        modules.Linear: lambda m, x: functions.linear(x, *parameters[m.layer]),
        modules.Conv2d: lambda m, x: functions.conv2d(
            x, *_weights(m, parameters), stride=m.stride, padding=m.padding
        ),
        modules.BatchNorm: lambda m, x: functions.batch_norm(
            x,
            *statistics[m.layer],
            *parameters[m.layer],
            training=True,
            momentum=modules.MOMENTUM,
            eps=modules.EPSILON,
        ),
        modules.ReLU: lambda m, x: torch.relu_(x),
        modules.MaxPool2d: lambda m, x: functions.max_pool2d(x, m.size),
        modules.GlobalAvgPool: lambda m, x: x.mean(dim=(2, 3)),
        modules.Flatten: lambda m, x: x.flatten(1),
        modules.Residual: lambda m, x: (
            _torch_forward(torch, m.body, parameters, statistics, x) + _torch_shortcut(torch, m, x)
        ),
    }
    for module in chain:
        x = steps[type(module)](module, x)
    return x


def _weights(module: modules.Conv2d, parameters: Any) -> tuple[Any, Any]:
    """The convolution's weight, and its bias or None."""
    return (*parameters[module.layer], None)[:2]


def _torch_shortcut(torch: Any, module: modules.Residual, x: Any) -> Any:
    """The shortcut without parameters: every stride-th pixel, and channels of zeros."""
    if module.identity:
        return x
    picked = x[:, :, :: module.stride, :: module.stride]
    return torch.nn.functional.pad(picked, (0, 0, 0, 0, 0, module.channels - x.shape[1]))
