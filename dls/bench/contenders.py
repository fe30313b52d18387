"""What `python -m dls.bench step` can measure: networks, and methods with their variants, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dls import config

Row = dict[str, Any]

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "resnet20": {"model": "resnet20", "synthetic_shape": (3, 32, 32)},
    "vgg16": {"model": "vgg16", "synthetic_shape": (3, 32, 32)},
    "mlp": {"model": "mlp", "synthetic_shape": (1, 28, 28), "mlp_widths": (4096, 4096)},
}
"""The networks, and the images that they are measured with."""
AT_END = "/at-end"
"""What marks a method that sends everything after the backward pass (--no-overlap); /N one with buckets of N values."""
CONTENDERS = ("dense", "global-topk", "layerwise-topk", "dls", "dls" + AT_END)


def settings_of(name: str) -> dict[str, Any]:
    """The settings of a contender: METHOD, METHOD/at-end or METHOD/N. UsageError for another method or bucket size."""
    method, _, variant = name.partition("/")
    own = {"method": config.parse_value("method", method)}
    if "/" + variant == AT_END:
        return own | {"overlap": False}
    return own | ({"bucket_size": config.parse_value("bucket_size", variant)} if variant else {})
