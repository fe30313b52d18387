"""The functions of `reference.nn` on CPU threads: numba to move memory, BLAS for large products.

Names, signatures and meanings are those of `reference.nn`; caches differ and are opaque. Results
have the dtype of the input and agree with the reference within rounding, not bit by bit. The same
input gives the same bits again, whatever the number of threads, except in the linear layers, whose
matrix products BLAS may split differently.

Memory order: returned images are [N, C, H, W] views of contiguous channels-first memory
[C, N, H, W]. Given images may have any order; any other order costs a copy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpu import base
from gpu.numba import conv
from gpu.numba.work import channels_first, compiled, flat, share_out, unflat
from reference.nn import Array, Shape


class PoolCache(NamedTuple):
    """What max_pool2d_backward needs: each maximum's position in its window, and the input's shape.

    The positions are channels-first, [C, N, OH, OW].
    """

    positions: np.ndarray[Any, Any]
    shape: Shape
    size: int


class NormCache(NamedTuple):
    """What batch_norm_backward needs: the input as rows [C, M], the mean [C] and 1 / deviation
    [C].
    """

    rows: Array
    mean: Array
    inverse: Array


class Nn(base.Nn):
    """The layers that numba speeds up; the others are small, or a matrix product already."""

    def conv2d_forward(
        self, x: Array, w: Array, b: Array | None, stride: int, padding: int
    ) -> tuple[Array, Any]:
        """See `reference.nn.conv2d_forward`."""
        return conv.forward(x, w, b, stride, padding)

    def conv2d_weight_gradients(self, dy: Array, cache: Any, dw: Array, db: Array | None) -> None:
        """See `reference.nn.conv2d_weight_gradients`."""
        conv.weight_gradients(dy, cache, dw, db)

    def conv2d_input_gradient(self, dy: Array, cache: Any, w: Array) -> Array:
        """See `reference.nn.conv2d_input_gradient`."""
        return conv.input_gradient(dy, cache, w)

    def relu_forward(self, x: Array) -> Array:
        """Return max(x, 0), any shape. NaN stays NaN."""
        values = flat(x)
        y = np.empty_like(values)
        share_out(lambda some: _rectify(values[some], y[some]), values.size, values.size)
        return unflat(y, x.shape)

    def relu_backward(self, dy: Array, y: Array) -> Array:
        """Return dx for the output y of relu_forward; the slope at zero is 0."""
        slopes, values = flat(dy), flat(y)
        dx = np.empty_like(slopes)
        share_out(
            lambda some: _mask(slopes[some], values[some], dx[some]), values.size, values.size
        )
        return unflat(dx, dy.shape)

    def add_forward(self, x: Array, shortcut: Array) -> Array:
        """Return x + shortcut, the end of a residual block; equal shapes."""
        values, others = flat(x), flat(shortcut)
        y = np.empty_like(values)
        share_out(lambda some: _add(values[some], others[some], y[some]), values.size, values.size)
        return unflat(y, x.shape)

    def max_pool2d_forward(self, x: Array, size: int) -> tuple[Array, Any]:
        """Return (y, cache), y [N, C, H // size, W // size]: the maxima of size x size windows.

        The windows do not overlap; a last incomplete row or column of windows is dropped. NaN wins.
        """
        images = channels_first(x)
        y = np.empty((*images.shape[:2], x.shape[2] // size, x.shape[3] // size), x.dtype)
        positions = np.empty(y.shape, np.min_scalar_type(size * size))
        share_out(
            lambda some: _pool(images[some], size, y[some], positions[some]), len(y), images.size
        )
        return y.swapaxes(0, 1), PoolCache(positions, x.shape, size)

    def max_pool2d_backward(self, dy: Array, cache: Any) -> Array:
        """Return dx [N, C, H, W]: each dy goes to the first maximum of its window, row by row."""
        count, channels, height, width = cache.shape
        dx = np.empty((channels, count, height, width), dy.dtype)
        dy = channels_first(dy)
        share_out(
            lambda some: _unpool(dy[some], cache.positions[some], cache.size, dx[some]),
            channels,
            dx.size,
        )
        return dx.swapaxes(0, 1)

    def batch_norm_forward(
        self, x: Array, gamma: Array, beta: Array, eps: float
    ) -> tuple[Array, Array, Array, Any]:
        """Normalise x [N, C, H, W] or [N, C] per channel by the batch; return (y, mean, var,
        cache).

        mean and var are [C]; var is the biased variance over the M = N * H * W values of a channel.

        Raises ValueError if M < 2: one value has no variance.
        """
        rows = _rows(x)
        if rows.shape[1] < 2:
            raise ValueError("batch norm in training needs at least two values per channel")
        y, mean, var, inverse = (
            np.empty_like(rows),
            *(np.empty(len(rows), x.dtype) for _ in range(3)),
        )

        def work(some: slice) -> None:
            _normalise(
                rows[some],
                gamma[some],
                beta[some],
                eps,
                y[some],
                mean[some],
                var[some],
                inverse[some],
            )

        share_out(work, len(rows), rows.size)
        return _from_rows(y, x.shape), mean, var, NormCache(rows, mean, inverse)

    def batch_norm_inference(
        self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float
    ) -> Array:
        """Normalise x [N, C, H, W] or [N, C] by the given mean [C] and var [C]."""
        rows = _rows(x)
        y = np.empty_like(rows)
        scale = gamma / np.sqrt(var + eps)
        shift = beta - mean * scale
        share_out(
            lambda some: _scale_rows(rows[some], scale[some], shift[some], y[some]),
            len(rows),
            rows.size,
        )
        return _from_rows(y, x.shape)

    def batch_norm_backward(
        self, dy: Array, cache: Any, gamma: Array
    ) -> tuple[Array, Array, Array]:
        """Return (dx, dgamma [C], dbeta [C]) for dy of the input's shape."""
        rows = _rows(dy)
        dx, dgamma, dbeta = (
            np.empty_like(rows),
            np.empty_like(cache.mean),
            np.empty_like(cache.mean),
        )
        x, mean, inverse = cache

        def work(some: slice) -> None:
            numbers = mean[some], inverse[some], gamma[some]
            _normalise_backward(rows[some], x[some], *numbers, dx[some], dgamma[some], dbeta[some])

        share_out(work, len(rows), rows.size)
        return _from_rows(dx, dy.shape), dgamma, dbeta


# Activation, pooling and the residual sum ---------------------------------------------------------


@compiled
def _rectify(x, y):
    """Write max(x, 0) to y; rows. A comparison with NaN is false, and NaN goes through."""
    for i in range(x.size):
        y[i] = 0 if x[i] <= 0 else x[i]


@compiled
def _mask(dy, y, dx):
    """Write dy where y > 0, dy * 0 elsewhere, to dx; rows.

    The product keeps NaN, as in the reference.
    """
    for i in range(y.size):
        dx[i] = dy[i] * (y[i] > 0)


@compiled
def _add(x, other, y):
    """Write x + other to y; rows."""
    for i in range(x.size):
        y[i] = x[i] + other[i]


@compiled
def _pool(x, size, y, positions):
    """Write the maxima y [C, N, OH, OW] of x [C, N, H, W] and their positions i * size + j."""
    for c in range(y.shape[0]):
        for n in range(y.shape[1]):
            for r in range(y.shape[2]):
                best, position = y[c, n, r], positions[c, n, r]
                if size == 2:
                    _greatest_of_four(x[c, n, 2 * r], x[c, n, 2 * r + 1], best, position)
                else:
                    _greatest(x[c, n, r * size : (r + 1) * size], best, position)


@compiled
def _beats(value, best):
    """Whether value replaces best, which came first: it is greater, or the first NaN."""
    return not value <= best and best == best


@compiled
def _greatest_of_four(top, bottom, best, position):
    """Write the maxima and positions of 2x2 windows of two rows.

    Without branches, so that it compiles to vector instructions.
    """
    for q in range(best.size):
        value, here = top[2 * q], 0
        for which, other in ((1, top[2 * q + 1]), (2, bottom[2 * q]), (3, bottom[2 * q + 1])):
            wins = _beats(other, value)
            value = other if wins else value
            here = which if wins else here
        best[q] = value
        position[q] = here


@compiled
def _greatest(x, best, position):
    """Write the maxima and positions of the square windows of rows x [size, W]."""
    size = len(x)
    for q in range(best.size):
        value, here = x[0, q * size], 0
        for i in range(size):
            for j in range(size):
                if _beats(x[i, q * size + j], value):
                    value, here = x[i, q * size + j], i * size + j
        best[q] = value
        position[q] = here


@compiled
def _unpool(dy, positions, size, dx):
    """Write dx [C, N, H, W]: each dy [C, N, OH, OW] at its position, zero elsewhere."""
    channels, count, height, width = dy.shape
    for c in range(channels):
        for n in range(count):
            dx[c, n] = 0
            for r in range(height):
                for q in range(width):
                    position = np.intp(positions[c, n, r, q])
                    dx[c, n, r * size + position // size, q * size + position % size] = dy[
                        c, n, r, q
                    ]


# Batch normalisation ------------------------------------------------------------------------------


def _rows(x: Array) -> Array:
    """Return [N, C, ...] as one row per channel, [C, N * ...]; a view if memory allows it."""
    return channels_first(x).reshape(x.shape[1], -1)


def _from_rows(rows: Array, shape: Shape) -> Array:
    """Return rows [C, N * ...] as a view of shape [N, C, ...]."""
    return rows.reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1)


@compiled
def _normalise(rows, gamma, beta, eps, y, mean, var, inverse):
    """Write y [C, M] and the statistics [C] of rows [C, M].

    Sums are float64; a row stays in the cache over its three passes.
    """
    for c in range(len(rows)):
        row, target, total, square = rows[c], y[c], 0.0, 0.0
        for m in range(row.size):
            total += row[m]
        mean[c] = total / row.size
        centre = mean[c]
        for m in range(row.size):
            square += np.float64(row[m] - centre) * np.float64(row[m] - centre)
        var[c] = square / row.size
        inverse[c] = 1 / np.sqrt(square / row.size + eps)
        scale, shift = gamma[c] * inverse[c], beta[c]
        for m in range(row.size):
            target[m] = (row[m] - centre) * scale + shift


@compiled
def _scale_rows(rows, scale, shift, y):
    """Write rows [C, M] times scale [C] plus shift [C] to y."""
    for c in range(len(rows)):
        row, target, factor, term = rows[c], y[c], scale[c], shift[c]
        for m in range(row.size):
            target[m] = row[m] * factor + term


@compiled
def _normalise_backward(dy, rows, mean, inverse, gamma, dx, dgamma, dbeta):
    """Write dx [C, M], dgamma [C], dbeta [C] for dy [C, M]. Sums are float64."""
    for c in range(len(rows)):
        slopes, row, target, centre = dy[c], rows[c], dx[c], mean[c]
        total = moment = 0.0
        for m in range(row.size):
            total += slopes[m]
            moment += np.float64(slopes[m] * (row[m] - centre))
        dbeta[c] = total
        dgamma[c] = moment * inverse[c]
        scale = gamma[c] * inverse[c]
        drift = dbeta[c] / target.dtype.type(row.size)
        slope = dgamma[c] * inverse[c] / target.dtype.type(row.size)
        for m in range(row.size):
            target[m] = (slopes[m] - drift - (row[m] - centre) * slope) * scale
