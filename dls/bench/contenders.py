"""What `python -m dls.bench step` can measure: networks, and methods with their variants, by
name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dls.cli import UsageError
from dls.program import config

Row = dict[str, Any]

NETWORKS: Mapping[str, Mapping[str, Any]] = {
    "resnet20": {"model": "resnet20", "synthetic_shape": (3, 32, 32)},
    "vgg16": {"model": "vgg16", "synthetic_shape": (3, 32, 32)},
    "mlp": {"model": "mlp", "synthetic_shape": (1, 28, 28), "mlp_widths": (4096, 4096)},
}
"""The networks, and the images that they are measured with."""
AT_END = "/at-end"
"""What marks a method that sends everything after the backward pass (--no-overlap); /N one with
buckets of N values, /setting=value one with a setting of its own."""
CONTENDERS = ("dense", "global-topk", "layerwise-topk", "dls", "dls" + AT_END)


def settings_of(name: str) -> dict[str, Any]:
    """The settings of a contender: METHOD, METHOD/at-end, METHOD/N or METHOD/setting=value.
    UsageError for what there is not.
    """
    method, _, variant = name.partition("/")
    own = {"method": config.parse_value("method", method)}
    if "/" + variant == AT_END:
        return own | {"overlap": False}
    setting, equals, value = variant.rpartition("=")
    setting = setting.replace("-", "_") if equals else "bucket_size"
    if setting not in config.FIELDS or setting == "method":
        raise UsageError(f"there is no setting {setting!r}, in {name}")
    return own | ({setting: config.parse_value(setting, value)} if variant else {})
