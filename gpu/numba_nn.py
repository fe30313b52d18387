"""The functions of `reference.nn` on CPU threads: numba for what moves memory, BLAS for the large matrix products.

Names, signatures and meanings are those of `reference.nn`; caches differ and stay opaque. Results keep the dtype of the input
and agree with the reference within rounding, not bit by bit. The same input gives the same bits again for a given number of BLAS
and numba threads. Numba's thread count never changes a bit: threads share out whole sums, they do not split one. BLAS promises
no such thing.

Memory order: every image that comes back is an [N, C, H, W] view of contiguous channels-first memory [C, N, H, W]. Images that
come in may have any order; another one costs a copy.

Two roads lead through a convolution. A 3x3 kernel with stride 1 and padding 1 over few channels, where a matrix product would be
too thin for BLAS, is summed directly (`_direct` and below). Every other one goes through im2col and a matrix product, a few
images at a time, so that the columns stay in the processor's cache. Scratch memory is kept between calls and as large as the
largest layer needs.

No kernel assumes finite numbers: fast math may join a product and a sum and reorder sums, and no more, so NaN and infinity
come through.
"""

from __future__ import annotations

import threading
from typing import Any, NamedTuple

import numba
import numpy as np
from numba import prange

from reference.nn import (  # not sped up: small, or a matrix product already
    Array,
    Shape,
    asarray,
    flatten_backward,
    flatten_forward,
    global_avg_pool_backward,
    global_avg_pool_forward,
    he_normal,
    linear_backward,
    linear_forward,
    shortcut_backward,
    shortcut_forward,
    softmax_cross_entropy,
)
from reference.nn import add_backward as add_backward

__all__ = [
    "add_backward",
    "add_forward",
    "asarray",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "conv2d_backward",
    "conv2d_forward",
    "flatten_backward",
    "flatten_forward",
    "global_avg_pool_backward",
    "global_avg_pool_forward",
    "he_normal",
    "linear_backward",
    "linear_forward",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "relu_backward",
    "relu_forward",
    "shortcut_backward",
    "shortcut_forward",
    "softmax_cross_entropy",
]

_SETTINGS = {"cache": True, "error_model": "numpy", "fastmath": {"contract", "reassoc"}}
_serial = numba.njit(**_SETTINGS)
_parallel = numba.njit(parallel=True, **_SETTINGS)


# Memory ---------------------------------------------------------------------------------------


class _Scratch(threading.local):
    """Memory that outlives a call, so that a step does not fetch fresh pages: one growing buffer per use and dtype."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, np.dtype[Any]], Array] = {}

    def __call__(self, use: str, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Return an array whose values are left over from earlier calls; the next call with this `use` takes it back."""
        size = int(np.prod(shape))
        buffer = self._buffers.get((use, dtype))
        if buffer is None or buffer.size < size:
            buffer = self._buffers[use, dtype] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)


_scratch = _Scratch()


def _channels_first(x: Array) -> Array:
    """Return x [N, C, ...] as contiguous memory [C, N, ...]; a view where it is that already."""
    return np.ascontiguousarray(x.swapaxes(0, 1))


def _flat(x: Array) -> Array:
    """Return the values of x in one row, images channels-first; a view where memory allows it."""
    return (_channels_first(x) if x.ndim == 4 else np.ascontiguousarray(x)).reshape(-1)


def _unflat(values: Array, shape: Shape) -> Array:
    """Undo `_flat`: return a view of `shape`."""
    if len(shape) != 4:
        return values.reshape(shape)
    count, channels, height, width = shape
    return values.reshape(channels, count, height, width).swapaxes(0, 1)


# Convolution ----------------------------------------------------------------------------------

_COLUMN_BYTES = 4 << 20  # of im2col at a time
_DIRECT_CHANNELS = 64  # up to here the direct sums beat the matrix product


class ConvCache(NamedTuple):
    """What conv2d_backward needs: the input, channels-first [C, N, H, W], and the geometry."""

    x: Array
    stride: int
    padding: int


def conv2d_forward(x: Array, w: Array, b: Array | None, stride: int, padding: int) -> tuple[Array, ConvCache]:
    """Cross-correlate x [N, C, H, W] with w [D, C, k, k], add b [D], return (y, cache).

    y is [N, D, OH, OW] with OH = (H + 2 * padding - k) // stride + 1, OW likewise. The border of `padding` pixels is zero.

    Raises ValueError where the kernel is larger than the padded image.
    """
    size = _output_size(x.shape, w.shape[-1], stride, padding)
    images = _channels_first(x)
    y = np.empty((len(w), len(x), *size), x.dtype)
    if _is_direct(w.shape, stride, padding):
        _correlate(images, w.reshape(*w.shape[:2], 9), y)
    else:
        matrix = w.reshape(len(w), -1)
        for first, last in _batches(len(x), matrix.shape[1] * size[0] * size[1] * x.itemsize):
            columns = _columns(images[:, first:last], w.shape[-1], stride, padding, size)
            np.matmul(matrix, columns, out=y[:, first:last].reshape(len(w), -1))
    if b is not None:
        y += b[:, None, None, None]
    return y.swapaxes(0, 1), ConvCache(images, stride, padding)
