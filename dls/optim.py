"""SGD with momentum on the exchanged update, and its learning rate schedules."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from dls.backends import Ops
from reference.ops import Vector


class Settings(Protocol):
    """The settings of a run that the optimizer reads."""

    @property
    def lr(self) -> float:
        """Learning rate."""

    @property
    def lr_schedule(self) -> str:
        """Schedule of the learning rate: constant, step or cosine."""

    @property
    def lr_warmup(self) -> int:
        """Steps over which the learning rate rises."""

    @property
    def momentum(self) -> float:
        """Factor of the momentum."""

    @property
    def nesterov(self) -> bool:
        """Whether the momentum is Nesterov's."""

    @property
    def weight_decay(self) -> float:
        """Factor of the L2 penalty."""


def learning_rate(config: Settings, step: int, total: int) -> float:
    """The learning rate of the training step after `step` finished ones, in a run of `total`.

    Warm-up rises linearly and reaches the schedule's value at its last step (Goyal et al., 2017).
    The rate multiplies the momentum, outside error feedback: a value that waits in the residual is
    applied with the rate of the step that sends it.
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
    """Weights (n) and momentum (n), updated in span by `ops.sgd_update`."""

    weights: Vector
    momentum: Vector
    config: Settings
    ops: Ops

    def apply(self, span: slice, update: Vector, lr: float) -> None:
        """u += weight_decay·w; m = μ·m + u; w −= lr·m, for the weights in `span`."""
        c = self.config
        self.ops.sgd_update(
            self.weights[span],
            self.momentum[span],
            update,
            lr,
            c.momentum,
            c.weight_decay,
            c.nesterov,
        )
