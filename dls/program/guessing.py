"""Whether a network does better than guessing, and what to try where it does not."""

from __future__ import annotations

import math

import numpy as np

from dls.tasks.data import Dataset

NOISE = 2.0
"""Standard deviations by which chance alone may lift the accuracy of a guess."""


def warning(loss: float, accuracy: float, dataset: Dataset, sparse: bool) -> str:
    """One line for a network that does not beat guessing on the test set; empty where it does.

    Guessing is one class for all images, or any class with the same chance: its loss is
    ln(classes). `sparse`: whether the density is below 1, so that a higher one can be tried.
    """
    guess = _accuracy_of_guessing(dataset)
    if accuracy <= guess:
        found = f"a test accuracy of {accuracy:.2%} is no better than guessing (up to {guess:.1%})"
    elif not loss < math.log(dataset.classes):
        found = (
            f"a test loss of {loss:.4f} is no better than that of guessing"
            f" ({math.log(dataset.classes):.4f})"
        )
    else:
        return ""
    return (
        f"{found}; try more steps, another"
        f" --lr{', a higher --density, --density-warmup' if sparse else ''} or --clip-norm"
    )


def _accuracy_of_guessing(dataset: Dataset) -> float:
    """The highest that chance makes likely."""
    images, even = len(dataset.test_labels), 1 / dataset.classes
    largest_class = np.bincount(dataset.test_labels).max() / images
    return max(float(largest_class), even + NOISE * math.sqrt(even * (1 - even) / images))
