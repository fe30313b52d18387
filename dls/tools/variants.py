"""Methods with settings of their own, by the names that measurements give them.

METHOD           the method with its default settings
METHOD/at-end    sends everything after the backward pass (--no-overlap)
METHOD/N         sends buckets of N values (--bucket-size)
METHOD/NAME=V    has the setting NAME at V
"""

from __future__ import annotations

from typing import Any

from dls.cli import UsageError
from dls.program import config

AT_END = "/at-end"
"""What marks a method that sends everything after the backward pass."""
COMPARED = ("dense", "global-topk", "layerwise-topk", "dls", "dls" + AT_END)
"""The methods that are measured unless others are named."""


def settings_of(name: str) -> dict[str, Any]:
    """The settings that a name stands for. UsageError for a method or setting that is unknown."""
    method, _, variant = name.partition("/")
    settings = {"method": config.parse_value("method", method)}
    if "/" + variant == AT_END:
        return settings | {"overlap": False}
    setting, equals, value = variant.rpartition("=")
    setting = setting.replace("-", "_") if equals else "bucket_size"
    if setting not in config.FIELDS or setting == "method":
        raise UsageError(f"there is no setting {setting!r}, in {name}")
    return settings | ({setting: config.parse_value(setting, value)} if variant else {})


def check(name: str) -> str:
    """The name itself, as an option's type. UsageError as `settings_of` raises it."""
    settings_of(name)
    return name
