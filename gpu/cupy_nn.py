"""`reference.nn` on CuPy arrays: the reference's functions, in a second copy of its module whose `np` is the device's library.

CuPy has numpy's functions under the same names, so the layers mean the same by construction; cuBLAS multiplies the matrices.
"""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference import nn as reference
from reference.nn import Array, Shape

from gpu import device

__all__ = ["Array", "Shape"]


class _Library:
    """numpy's names, from the device's library where it has them."""

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


_copy = _second_copy()
globals().update({name: value for name, value in vars(_copy).items() if not name.startswith("_") and callable(value)})
he_normal = reference.he_normal  # drawn on the host: a scalar of the device's library is none of numpy's


def asarray(values: Array) -> Array:
    """See `reference.nn.asarray`: on the device."""
    moved: Array = device.current().xp.asarray(values)
    return moved


def softmax_cross_entropy(logits: Array, labels: NDArray[np.integer[Any]]) -> tuple[float, Array, int]:
    """See `reference.nn.softmax_cross_entropy`; labels may lie on the host."""
    result: tuple[float, Array, int] = _copy.softmax_cross_entropy(logits, device.current().xp.asarray(labels))
    return result
