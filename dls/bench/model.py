"""`python -m dls.bench model`: what a training step's forward and backward pass costs, the backends
beside PyTorch.

Every contender computes in a process of its own: the thread pools of numpy, numba and PyTorch go on
spinning for a while after their work, and would slow down each other's measurements.
"""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from dls import backends
from dls.tasks import models, modules

Step = Callable[[], float]
Row = dict[str, Any]

IMAGES = {"lenet": (1, 28, 28)}
"""Shape of the images of models that were made for others than CIFAR's (3, 32, 32)."""
CLASSES = 10
CONTENDERS = ("numpy", "numba", "torch")
WARM_UP = 3
SECONDS = 0.1  # a turn lasts at least so long, so that it outlasts its neighbours' spinning threads


def measure(names: Sequence[str], batch: int, threads: Sequence[int], turns: int) -> Iterator[Row]:
    """Yield a row per model and number of threads: milliseconds of each contender, median of its
    turns, and ratios to torch.
    """
    present = [name for name in CONTENDERS if _is_present(name)]
    for model in names:
        for count in threads:
            medians = _race(present, (model, batch, count), turns)
            row: Row = {"model": model, "batch": batch, "threads": count}
            row |= {
                f"{name}, ms": 1000 * medians[name] if name in medians else "not installed"
                for name in CONTENDERS
            }
            if "torch" in medians:
                row |= {
                    f"{name} / torch": medians[name] / medians["torch"]
                    for name in present
                    if name != "torch"
                }
            yield row


def _is_present(name: str) -> bool:
    """Whether what the contender needs is installed; PyTorch is not required."""
    return name != "torch" or importlib.util.find_spec("torch") is not None


def _race(names: Sequence[str], task: tuple[str, int, int], turns: int) -> Mapping[str, float]:
    """Let the contenders take turns; return the median of each one's seconds per step."""
    spawn = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        lines: dict[str, Connection] = {}
        for name in names:
            lines[name], far = spawn.Pipe()
            process = spawn.Process(target=_serve, args=(far, name, *task), daemon=True)
            process.start()
            far.close()
            stack.callback(process.join)
            stack.callback(lines[name].close)
        losses = [line.recv() for line in lines.values()]
        np.testing.assert_allclose(
            losses, losses[0], rtol=1e-3, err_msg="the contenders compute different things"
        )
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(turns):
            for name, line in lines.items():
                line.send(SECONDS)
                times[name].append(line.recv())
    return {name: float(np.median(seconds)) for name, seconds in times.items()}


def _serve(line: Connection, name: str, model: str, batch: int, threads: int) -> None:
    """Send the first step's loss; then, for each number of seconds received, the seconds per step
    over that time.
    """
    step = (
        _torch_step(model, batch, threads)
        if name == "torch"
        else _backend_step(name, model, batch, threads)
    )
    line.send(step())
    for _ in range(WARM_UP):
        step()
    while True:
        try:
            least = line.recv()
        except EOFError:
            return
        step()
        start, steps = perf_counter(), 0
        while perf_counter() - start < least:
            step()
            steps += 1
        line.send((perf_counter() - start) / steps)


def _task(
    name: str, batch: int, backend: str
) -> tuple[models.Model, NDArray[Any], NDArray[np.int64]]:
    """The model, float32 images [batch, C, H, W] and labels [batch], the same for every
    contender.
    """
    model = models.build(name, IMAGES.get(name, (3, 32, 32)), CLASSES, 0, backends.load(backend).nn)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, *model.input_size), dtype=np.float32)
    return model, images, rng.integers(0, CLASSES, batch)


def _backend_step(name: str, model: str, batch: int, threads: int) -> Step:
    """A step of one of our backends."""
    backend = backends.load(name)
    network, images, labels = _task(model, batch, name)
    threadpool_limits(threads)
    backend.ops.set_threads(threads)

    def step() -> float:
        loss, dlogits, _ = backend.nn.softmax_cross_entropy(
            network.forward(images, training=True), labels
        )
        network.backward(dlogits, lambda layer: None)
        return float(loss)

    return step


def _torch_step(model: str, batch: int, threads: int) -> Step:
    """A step of the same network, with the same parameters, in PyTorch."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    network, images, labels = _task(model, batch, "numpy")
    parameters = [
        [torch.from_numpy(array.copy()).requires_grad_() for array in layer]
        for layer in network._views.parameters
    ]
    statistics = [
        [torch.from_numpy(array.copy()) for array in layer] for layer in network._views.statistics
    ]
    x, y = torch.from_numpy(models.enlarge(images, network._wanted)), torch.from_numpy(labels)
    leaves = [array for layer in parameters for array in layer]

    def step() -> float:
        for leaf in leaves:
            leaf.grad = None
        loss = torch.nn.functional.cross_entropy(
            _torch_forward(torch, network._modules, parameters, statistics, x), y
        )
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
