"""The forms of the theory: what it predicts of the gradient variances of neighbouring layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dls.theory.networks import Pair
from reference import variance

ALL_EQUAL = "all equal"
"""No theory at all: what the others are compared with."""
CORRECTED = "corrected"
"""The corrected form of docs/algorithm.md, section 5."""


def _eq8(pair: Pair) -> float:
    layer = pair.layer
    return variance.eq8_ratio(layer.inputs, layer.outputs, layer.kernel, pair.previous.kernel)


def _eq9(pair: Pair) -> float:
    return variance.eq9_ratio(pair.layer.inputs, pair.layer.outputs)


def _corrected(pair: Pair) -> float:
    return variance.corrected_ratio(pair.layer.channels_in, pair.layer.outputs)


FORMS: Mapping[str, Callable[[Pair], float]] = {
    "Eq. 8": _eq8,
    "Eq. 9": _eq9,
    CORRECTED: _corrected,
    ALL_EQUAL: lambda pair: 1.0,
}
"""The ratio of a pair's variances by each form. Both forms of the paper are computed for every
pair: a linear layer has a 1×1 kernel, and its inputs are those after a flatten.
"""


def predict(pair: Pair) -> dict[str, float]:
    """The pair's ratio by each of FORMS."""
    return {name: form(pair) for name, form in FORMS.items()}
