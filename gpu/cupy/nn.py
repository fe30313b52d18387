"""`reference.nn` on CuPy arrays: a second copy of that module whose `np` is the device's library.

CuPy has numpy's functions under the same names, so the layers are the same by construction; cuBLAS
multiplies the matrices.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpu import base
from gpu.cupy import device
from reference import nn as reference
from reference.nn import Array


class _Library:
    """The names of numpy, taken from the device's library where it has them."""

    def __getattr__(self, name: str) -> Any:
        return getattr(device.current().xp, name, None) or getattr(np, name)


def _second_copy() -> ModuleType:
    spec = importlib.util.find_spec("reference.nn")
    if spec is None or spec.loader is None:
        raise ImportError("reference.nn is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.np = _Library()  # type: ignore[attr-defined]
    return module


class _Copy(base.Nn):
    """Every function of `base.Nn`, from the second copy."""


_copy = _second_copy()
for _name in vars(base.Nn):
    if not _name.startswith("_"):
        setattr(_Copy, _name, staticmethod(getattr(_copy, _name)))


class Nn(_Copy):
    """The layers on the device."""

    he_normal = staticmethod(reference.he_normal)
    """Drawn on the host, since numpy's generator takes no scalar of the device's library."""

    def asarray(self, values: Array) -> Array:
        """See `reference.nn.asarray`: on the device."""
        moved: Array = device.current().xp.asarray(values)
        return moved

    def softmax_cross_entropy(
        self, logits: Array, labels: NDArray[np.integer[Any]]
    ) -> tuple[float, Array, int]:
        """See `reference.nn.softmax_cross_entropy`; labels may lie on the host."""
        return super().softmax_cross_entropy(logits, device.current().xp.asarray(labels))
