"""Global Top-k SGD: one choice over this rank's whole gradient. It picks best and overlaps nothing.

Global means over layers, not over ranks. The choice needs the last gradient, so the whole gradient
is one part, and no message can leave before the backward pass is over.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dls.exchange.methods._base import Sparse
from reference import methods
from reference.adjustment import Counts, Thresholds


class GlobalTopk(Sparse):
    """One top-k over the flat gradient; the lower flat index first among equals."""

    whole = True

    @classmethod
    def meaning(cls, settings: Any) -> methods.Method:
        """See `reference.methods.GlobalTopk`."""
        return methods.GlobalTopk()

    def initial_k(self, budget: int) -> Counts:
        """All of the budget for the one part."""
        return np.array([budget], dtype=np.int64)

    def layer_k(self) -> Counts:
        """Where in the layers the chosen entries lie."""
        index = np.concatenate([self.ops.to_host(chosen.index) for _, chosen in self.leaving()])
        return np.diff(np.searchsorted(index, self.layout.offsets)).astype(np.int64)

    def layer_thresholds(self) -> Thresholds:
        """One threshold for all layers."""
        return np.repeat(self.part_thresholds(), len(self.layout))
