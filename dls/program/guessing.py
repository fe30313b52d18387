"""Whether a network does better than guessing, and what to try if it does not."""

from __future__ import annotations

import math

import numpy as np

from dls.tasks.data import Dataset

NOISE = 2.0
"""Standard deviations by which the accuracy of guessing may exceed its mean by chance."""


def warning(loss: float, accuracy: float, dataset: Dataset, sparse: bool) -> str:
    """One line for a network that is no better than guessing on the test set; "" for a better one.

    Guessing means one class for all images, or every class with the same probability; the loss of
    the latter is ln(classes). sparse: whether the density is below 1, so that a higher one can be
    tried.
    """
    guess = _accuracy_of_guessing(dataset)
    if accuracy <= guess:
        problem = (
            f"a test accuracy of {accuracy:.2%} is no better than guessing (up to {guess:.1%})"
        )
    elif not loss < math.log(dataset.classes):
        problem = (
            f"a test loss of {loss:.4f} is no better than that of guessing"
            f" ({math.log(dataset.classes):.4f})"
        )
    else:
        return ""
    densities = ", a higher --density, --density-warmup" if sparse else ""
    return f"{problem}; try more steps, another --lr{densities} or --clip-norm"


def _accuracy_of_guessing(dataset: Dataset) -> float:
    """The highest accuracy that guessing is likely to reach."""
    images, even = len(dataset.test_labels), 1 / dataset.classes
    largest_class = np.bincount(dataset.test_labels).max() / images
    return max(float(largest_class), even + NOISE * math.sqrt(even * (1 - even) / images))
