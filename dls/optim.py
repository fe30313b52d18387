"""SGD with momentum on the exchanged update, and the schedules of its learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from dls.backends import Ops
from reference.ops import Vector


class Settings(Protocol):
    """What the optimizer reads of a run's settings."""

    @property
    def lr(self) -> float:
        """Learning rate."""

    @property
    def lr_schedule(self) -> str:
        """How it falls: constant, step or cosine."""

    @property
    def lr_warmup(self) -> int:
        """Steps over which it rises."""

    @property
    def momentum(self) -> float:
        """Momentum's factor."""

    @property
    def nesterov(self) -> bool:
        """Whether it is Nesterov's."""

    @property
    def weight_decay(self) -> float:
        """L2 penalty's factor."""


def learning_rate(config: Settings, step: int, total: int) -> float:
    """The learning rate of the training step that follows `step` finished ones, in a run of
    `total`.

    Warm-up rises linearly and reaches the schedule's value at its last step (Goyal et al., 2017).
    The rate multiplies the momentum, outside error feedback: what waits in the residual is applied
    with the rate of the step that sends it.
    """
    warmup = min(1.0, (step + 1) / config.lr_warmup) if config.lr_warmup else 1.0
    return config.lr * warmup * _schedule(config.lr_schedule, step / total)


def _schedule(name: str, done: float) -> float:
    if name == "step":
        return 0.1 ** ((done >= 0.5) + (done >= 0.75))
    if name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 1.0


@dataclass
class Sgd:
    """Weights (n) and momentum (n), updated in place by `ops.sgd_update`."""

    weights: Vector
    momentum: Vector
    config: Settings
    ops: Ops

    def apply(self, place: slice, update: Vector, lr: float) -> None:
        """u += weight_decay·w; m = μ·m + u; w −= lr·m, for the weights at `place` and their
        update.
        """
        c = self.config
        self.ops.sgd_update(
            self.weights[place],
            self.momentum[place],
            update,
            lr,
            c.momentum,
            c.weight_decay,
            c.nesterov,
        )
