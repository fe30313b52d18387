"""A PyTorch model's own training step on this machine: when each layer's gradient is complete."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from dls.exchange.layout import Layer
from dls.torch.parameters import Tracked, layers, tracked

WARMUP = 2
"""Steps before those that are measured."""
Loss = Callable[[], Any]
"""Computes the loss of a mini-batch, a tensor to call `backward` on."""


@dataclass(frozen=True)
class Measured:
    """A step: seconds of the forward pass, and of each layer's backward pass (L)."""

    forward: float
    backward: list[float]


def built(where: str) -> tuple[Any, Loss]:
    """What MODULE:FUNCTION returns: a model, and a function that gives the loss of a mini-batch.

    ValueError where there is no such thing.
    """
    module, _, name = where.partition(":")
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{where} cannot be found: {error}; give MODULE:FUNCTION") from None
    found = build()
    if not (isinstance(found, Sequence) and len(found) == 2 and callable(found[1])):
        raise ValueError(
            f"{where} must return a model and a function that gives the loss of a mini-batch"
        )
    return found[0], found[1]


def measure(model: Any, loss: Loss, steps: int) -> tuple[list[Layer], list[Measured]]:
    """The model's layers in forward order, and so many of its steps."""
    parameters = tracked(model)
    found = layers(parameters)
    watch = _Watch(parameters, [layer.name for layer in found])
    measured = [watch.step(loss) for _ in range(WARMUP + steps)][WARMUP:]
    watch.remove()
    return found, measured


class _Watch:
    """Notes when each layer's last gradient of a step was complete."""

    def __init__(self, parameters: Sequence[Tracked], names: Sequence[str]) -> None:
        self._parameters, self._names = parameters, names
        self._done: dict[str, float] = {}
        self._hooks = [self._hook(each) for each in parameters]

    def _hook(self, of: Tracked) -> Any:
        def note(_: Any) -> None:
            self._done[of.layer] = perf_counter()

        return of.tensor.register_post_accumulate_grad_hook(note)

    def step(self, loss: Loss) -> Measured:
        """One step without the optimizer's."""
        for each in self._parameters:
            each.tensor.grad = None
        self._done.clear()
        begin = perf_counter()
        value = loss()
        _wait()
        computed = perf_counter()
        value.backward()
        _wait()
        end = perf_counter()
        return Measured(computed - begin, list(self._seconds(computed, end)))

    def _seconds(self, begin: float, end: float) -> Iterator[float]:
        """Of each layer, in forward order: from the gradient before its own, in the backward
        direction.
        """
        ends = sorted((self._done.get(name, begin) for name in self._names), reverse=True)
        ends[0] = end
        for later, earlier in zip(ends, [*ends[1:], begin], strict=True):
            yield max(0.0, later - earlier)

    def remove(self) -> None:
        """Watch no more."""
        for hook in self._hooks:
            hook.remove()


def _wait() -> None:
    """Return when a GPU is done, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
