"""DLS, Dynamic Layer-wise Sparsification: Layer-wise Top-k whose k moves between layers until all thresholds are one.

After every training step the rank adjusts its own k from its own v, when its last layer has been sent; the ranks tell each
other their next k (L small integers), and that exchange has the whole forward pass to finish.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from dls import traffic
from dls.comm import Pending
from dls.config import UsageError
from dls.sparsifiers._base import Part, Setup
from dls.sparsifiers.layerwise_topk import Method as LayerwiseTopk
from reference import variance
from reference.adjustment import Counts


class Method(LayerwiseTopk):
    """DLS(s): s one-step adjustments a training step, or the optimum (`--dls-steps`), every m-th step (`--dls-every`)."""

    reads = LayerwiseTopk.reads | {"dls_steps", "dls_every", "dls_init"}

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self._announced: tuple[Pending, NDArray[np.uint32]] | None = None

    def initial_k(self, budget: int) -> Counts:
        """Layer-wise Top-k's split, or the one that the theory's gradient variances give (`--dls-init variance`)."""
        uniform = super().initial_k(budget)
        return uniform if self.setup.config.dls_init == "uniform" else self._variance_k(uniform)

    def _variance_k(self, uniform: Counts) -> Counts:
        """Batch norm layers keep their uniform share; the others share the rest as their variance ratios tell."""
        if not self.setup.chain:
            raise UsageError("--dls-init variance needs a model whose layers form a chain; use --dls-init uniform")
        theory = [i for i, layer in enumerate(self.setup.layers) if layer.kind != "batch_norm"]
        layers = [self.setup.layers[i] for i in theory]
        sigmas = variance.chain_sigmas([variance.corrected_ratio(layer.channels_in, layer.outputs) for layer in layers[1:]])
        sizes, budget = [layer.size for layer in layers], int(uniform[theory].sum())
        k = uniform.copy()
        k[theory] = variance.sparsity_from_variances(sizes, list(sigmas), budget)
        return k

    def begin(self, step: int) -> None:
        """Hear the other ranks' k."""
        self._hear()
        super().begin(step)

    def adjust(self, step: int) -> None:
        """Move k between the layers and tell the other ranks."""
        if step % self.setup.config.dls_every:
            return
        self._announced = self._tell(self.checked(self.next_k(), int(self.k.sum())))

    def next_k(self) -> Counts:
        """k of the next step (L), from this step's v; `select` is over, what was sent is still in it."""
        v = [self.v(part) for part in self.parts]
        steps = self.setup.config.dls_steps
        algorithm2 = self.setup.backend.adjustment
        k: Counts = (
            algorithm2.optimal_adjustment(v, self.k)
            if steps == "optimal"
            else algorithm2.adjust(v, self.k, self.part_thresholds(), steps, self.heads)
        )
        return k

    def _tell(self, k: Counts) -> tuple[Pending, NDArray[np.uint32]]:
        return self.comm.allgather(k.astype(np.uint32), "the other ranks' next k")

    def _hear(self) -> None:
        if self._announced is not None:
            pending, k = self._announced
            pending.wait()
            self.k_of_ranks, self._announced = k.astype(np.int64), None

    def bytes_received(self, groups: Iterable[Sequence[Part]]) -> int:
        """And now and then the others' next k, as `_tell` sends it."""
        announced = traffic.allgather_bytes(self.k.astype(np.uint32).nbytes, self.comm.size)
        return super().bytes_received(groups) + announced // self.setup.config.dls_every

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Residual and the next step's k."""
        self._hear()
        return super().state()

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        """In place of what the ranks have announced, too."""
        self._hear()
        super().restore(state)
