"""The device and the software of this machine, as far as a measurement depends on them."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import dls
from dls import backends
from dls.program import sources

PACKAGES = (
    "numpy",
    "numba",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "nvidia-cuda-nvrtc-cu12",
    "nvidia-cuda-nvrtc",
    "torch",
)
"""The packages on which a time may depend."""


def describe(backend: str) -> dict[str, Any]:
    """The device on which a backend computes here, and the versions of the software.

    BackendMissing where the backend cannot be used.
    """
    return {**backends.load(backend).describe(), **_software()}


def _software() -> dict[str, Any]:
    return {
        "dls": dls.__version__,
        "commit": sources.commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
