"""Layer-wise Top-k SGD: every layer chooses the same share of its own values.

It overlaps with backpropagation and picks worse than Global Top-k, as every layer ends up with
another threshold.
"""

from __future__ import annotations

from typing import Any

from dls.exchange.methods._base import Sparse
from reference import methods
from reference.adjustment import Counts, Thresholds


class LayerwiseTopk(Sparse):
    """One top-k in each layer, with a k that never moves."""

    @classmethod
    def meaning(cls, settings: Any) -> methods.Method:
        """See `reference.methods.LayerwiseTopk`."""
        return methods.LayerwiseTopk()

    def initial_k(self, budget: int) -> Counts:
        """The budget in proportion to n_l, by largest remainder."""
        return methods.split_budget(budget, self.layout.sizes)

    def layer_k(self) -> Counts:
        """The layers are the parts."""
        return self.sent.copy()

    def layer_thresholds(self) -> Thresholds:
        """Every layer has its own."""
        return self.part_thresholds()
