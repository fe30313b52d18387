"""Layers and gradients on which a selection is measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dls import backends
from dls.tools import networks
from reference import methods
from reference.adjustment import Counts
from reference.ops import Vector

FREEDOM = 3
"""Degrees of freedom of the gradients' Student distribution: few, as gradients have heavy tails."""
STRIDE = 7_654_321
"""How far the noise is shifted from one step to the next."""


@dataclass(frozen=True)
class Workload:
    """L layers with n values, k of each layer, and gradients that differ from step to step."""

    name: str
    sizes: Sequence[int]
    density: float
    noise: Vector
    scales: Vector

    @property
    def n(self) -> int:
        """The number of values."""
        return sum(self.sizes)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """Where each layer begins, and the end (L + 1)."""
        return np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)

    def k(self) -> Counts:
        """Layer-wise Top-k's split of the budget (L)."""
        return methods.split_budget(methods.budget(self.n, self.density), self.sizes)

    def gradient(self, step: int) -> Vector:
        """The gradient of a step, float32 (n): the same noise, shifted, at each layer's scale."""
        return np.roll(self.noise, step * STRIDE) * self.scales


def workloads(names: Sequence[str], densities: Sequence[float]) -> Iterator[Workload]:
    """A workload for each name and density. A name is a network's, or a number of values."""
    for name in names:
        sizes = layer_sizes(name)
        of_layers = np.random.default_rng(1).lognormal(0, 0.5, len(sizes)).astype(np.float32)
        noise = np.random.default_rng(0).standard_t(FREEDOM, sum(sizes)).astype(np.float32)
        for density in densities:
            yield Workload(name, sizes, density, noise, np.repeat(of_layers, sizes))


def layer_sizes(name: str) -> list[int]:
    """The sizes of a network's layers, or one layer with so many values."""
    if name not in networks.LAYERED:
        return [int(name)]
    return networks.layer_sizes(name, backends.load("numpy").nn)
