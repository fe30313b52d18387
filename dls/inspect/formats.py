"""How the figures of runs are written for people."""

from __future__ import annotations

import math
from typing import Any

from dls.tools.numbers import MISSING

FORMATS = {
    "step": ",.0f",
    "size": ",.0f",
    "rank 0": ",.0f",
    "sent": ",.0f",
    "received": ",.0f",
    "dense": ",.0f",
    "ring Allreduce": ",.0f",
    "bytes_per_step": ",.0f",
    "received_bytes_per_step": ",.0f",
    "ring_bytes_per_step": ",.0f",
    "first k": ",.1f",
    "last k": ",.1f",
    "set_size": ".4g",
    "threshold_ratio": ".4g",
    "compression": ".4g",
    "first threshold": ".4g",
    "last threshold": ".4g",
    "first residual": ".4g",
    "last residual": ".4g",
    "loss": ".4f",
    "train_loss": ".4f",
    "test_loss": ".4f",
    "accuracy": ".2%",
    "best_accuracy": ".2%",
    "share_of_dense": ".2%",
    "share_of_ring": ".2%",
    "global_share": ".2%",
    "hidden_share": ".2%",
    "k/n": ".3%",
    "ms": ".3f",
    "total_ms": ".3f",
    "exposed_ms": ".3f",
    "share": ".1%",
}
"""How a number is written, by its name or by the head of its column."""


def written(name: str, value: Any) -> str:
    """The figure of a name, or below a head, as people read it; MISSING where there is none."""
    if isinstance(value, list | tuple | dict):
        return ", ".join(map(str, value))
    if value is None or value == "" or value != value:
        return MISSING
    if isinstance(value, str):
        return value
    return "inf" if value == math.inf else format(value, FORMATS.get(name, ""))


def written_pair(name: str, value: Any) -> str:
    """A figure, or a mean and its standard deviation, as people read it."""
    if not isinstance(value, tuple):
        return written(name, value)
    mean, sd = (written(name, number) for number in value)
    return f"{mean} ± {sd}"
