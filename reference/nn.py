"""Neural network functions, forward and backward, in numpy alone.

Every function keeps the dtype of its input (float32 in training, float64 in gradient checks) and
has no state: the forward pass returns what the backward pass needs as a cache. Callers treat a
cache as opaque, and do not change the forward pass's arguments until it is used.

Images are [N, C, H, W]: batch, channels, height, width. Convolution weights are [D, C, k, k]
(outputs, inputs, kernel), linear weights are [d, c] (outputs, inputs).

Any memory order is allowed. The convolution returns its result as an [N, D, OH, OW] view of
channels-first memory [D, N, OH, OW]. numpy's elementwise functions keep that order, so that matrix
products get contiguous rows without further copies.

`dy` stands for the gradient of the loss with respect to y, and so on.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
"""An array of any float dtype."""
Shape = tuple[int, ...]
"""The shape of an array."""


def asarray(values: Array) -> Array:
    """Return `values` in this backend's memory: for numpy the array itself, without a copy."""
    return values


def he_normal(rng: np.random.Generator, shape: Shape, fan_in: int) -> NDArray[np.float32]:
    """Draw float32 weights from N(0, 2 / fan_in), always in host memory.

    fan_in is the number of inputs to one output: c for a linear layer, C * k * k for a convolution.
    Source: He et al., "Delving deep into rectifiers", ICCV 2015, Eq. 10.
    """
    return rng.standard_normal(shape, dtype=np.float32) * np.float32(np.sqrt(2.0 / fan_in))


# Linear -------------------------------------------------------------------------------------------


def linear_forward(x: Array, w: Array, b: Array) -> Array:
    """Return y = x wᵀ + b, [N, d], for x [N, c], w [d, c], b [d]."""
    return x @ w.T + b


def linear_weight_gradients(dy: Array, x: Array, dw: Array, db: Array) -> None:
    """Write dw [d, c] and db [d] for dy [N, d], x [N, c]."""
    np.matmul(dy.T, x, out=dw)
    np.sum(dy, axis=0, out=db)


def linear_input_gradient(dy: Array, w: Array) -> Array:
    """Return dx [N, c] for dy [N, d], w [d, c]."""
    return dy @ w


# Convolution --------------------------------------------------------------------------------------


class ConvCache(NamedTuple):
    """What the gradients of conv2d need: the input and the geometry.

    The columns of im2col are k * k times as large as x. Computing them again takes no more time
    than keeping them, and less than half of the memory.
    """

    x: Array
    stride: int
    padding: int


def conv2d_forward(
    x: Array, w: Array, b: Array | None, stride: int, padding: int
) -> tuple[Array, ConvCache]:
    """Cross-correlate x [N, C, H, W] with w [D, C, k, k], add b [D], return (y, cache).

    y is [N, D, OH, OW] with OH = (H + 2 * padding - k) // stride + 1, OW likewise. The border of
    `padding` pixels is zero.

    Raises ValueError if the kernel is larger than the padded image.
    """
    outputs, _, kernel, _ = w.shape
    columns = _im2col(x, kernel, stride, padding)
    rows = w.reshape(outputs, -1) @ columns
    if b is not None:
        rows += b[:, None]
    y_shape = (len(x), outputs, *_output_size(x.shape, kernel, stride, padding))
    return _from_rows(rows, y_shape), ConvCache(x, stride, padding)


def conv2d_weight_gradients(dy: Array, cache: ConvCache, dw: Array, db: Array | None) -> None:
    """Write dw [D, C, k, k], and db [D] unless it is None, for dy [N, D, OH, OW]."""
    x, stride, padding = cache
    rows = _to_rows(dy)
    np.matmul(rows, _im2col(x, dw.shape[-1], stride, padding).T, out=dw.reshape(len(dw), -1))
    if db is not None:
        np.sum(rows, axis=1, out=db)


def conv2d_input_gradient(dy: Array, cache: ConvCache, w: Array) -> Array:
    """Return dx [N, C, H, W] for dy [N, D, OH, OW], w [D, C, k, k]."""
    x, stride, padding = cache
    dcolumns = w.reshape(len(w), -1).T @ _to_rows(dy)
    return _col2im(dcolumns, x.shape, w.shape[-1], stride, padding)


def _output_size(shape: Shape, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Return (OH, OW) of a convolution over [N, C, H, W]."""
    height, width = shape[2] + 2 * padding - kernel, shape[3] + 2 * padding - kernel
    if min(height, width) < 0:
        raise ValueError(
            f"a {kernel}x{kernel} kernel does not fit an image of {shape[2]}x{shape[3]} pixels "
            f"with a border of {padding}"
        )
    return height // stride + 1, width // stride + 1


def _taps(kernel: int, stride: int, size: tuple[int, int]) -> list[tuple[int, int, slice, slice]]:
    """Return (i, j, rows, columns) for every kernel position: the pixels that it covers."""
    height, width = size
    return [
        (i, j, slice(i, i + stride * height, stride), slice(j, j + stride * width, stride))
        for i in range(kernel)
        for j in range(kernel)
    ]


def _im2col(x: Array, kernel: int, stride: int, padding: int) -> Array:
    """Return columns [C * k * k, N * OH * OW]: for every output the inputs that it depends on."""
    count, channels, height, width = x.shape
    size = _output_size(x.shape, kernel, stride, padding)
    image = x.swapaxes(0, 1)
    if padding:
        image = np.zeros(_padded(x.shape, padding), x.dtype)
        image[_inside(padding, height, width)] = x.swapaxes(0, 1)
    columns = np.empty((channels, kernel, kernel, count, *size), x.dtype)
    for i, j, rows, cols in _taps(kernel, stride, size):
        columns[:, i, j] = image[:, :, rows, cols]
    return columns.reshape(channels * kernel * kernel, -1)


def _col2im(columns: Array, shape: Shape, kernel: int, stride: int, padding: int) -> Array:
    """Sum columns [C * k * k, N * OH * OW] back into an image [N, C, H, W]: _im2col transposed."""
    count, channels, height, width = shape
    size = _output_size(shape, kernel, stride, padding)
    columns = columns.reshape(channels, kernel, kernel, count, *size)
    image = np.zeros(_padded(shape, padding), columns.dtype)
    for i, j, rows, cols in _taps(kernel, stride, size):
        image[:, :, rows, cols] += columns[:, i, j]
    return image[_inside(padding, height, width)].swapaxes(0, 1)


def _padded(shape: Shape, padding: int) -> Shape:
    """Return the channels-first shape [C, N, H + 2p, W + 2p] of a padded image [N, C, H, W]."""
    count, channels, height, width = shape
    return channels, count, height + 2 * padding, width + 2 * padding


def _inside(padding: int, height: int, width: int) -> tuple[slice, slice, slice, slice]:
    """Return the index of the image inside its border."""
    rows, cols = slice(padding, padding + height), slice(padding, padding + width)
    return slice(None), slice(None), rows, cols


def _to_rows(x: Array) -> Array:
    """Return [N, C, ...] as one row per channel, [C, N * ...]; a view if memory allows it."""
    return x.swapaxes(0, 1).reshape(x.shape[1], -1)


def _from_rows(rows: Array, shape: Shape) -> Array:
    """Return rows [C, N * ...] as a view of shape [N, C, ...]."""
    return rows.reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1)


# Activation and pooling ---------------------------------------------------------------------------


def relu_forward(x: Array) -> Array:
    """Return max(x, 0), any shape. NaN stays NaN."""
    y: Array = np.maximum(x, 0)
    return y


def relu_backward(dy: Array, y: Array) -> Array:
    """Return dx for the output y of relu_forward; the slope at zero is 0."""
    return dy * (y > 0)


class PoolCache(NamedTuple):
    """What max_pool2d_backward needs: the input, the output and the window's side."""

    x: Array
    y: Array
    size: int


def max_pool2d_forward(x: Array, size: int) -> tuple[Array, PoolCache]:
    """Return (y, cache), y [N, C, H // size, W // size]: the maxima of size x size windows.

    The windows do not overlap; a last incomplete row or column of windows is dropped. NaN wins.
    """
    windows = [x[:, :, rows, cols] for rows, cols in _windows(x.shape, size)]
    y = windows[0].copy(order="K")
    for window in windows[1:]:
        np.maximum(y, window, out=y)
    return y, PoolCache(x, y, size)


def max_pool2d_backward(dy: Array, cache: PoolCache) -> Array:
    """Return dx [N, C, H, W]: each dy goes to the first maximum of its window, row by row."""
    x, y, size = cache
    dx = np.zeros_like(x)
    free = np.ones_like(y, dtype=np.bool_)
    for rows, cols in _windows(x.shape, size):
        wins = (x[:, :, rows, cols] == y) & free
        free &= ~wins
        dx[:, :, rows, cols] = dy * wins
    return dx


def _windows(shape: Shape, size: int) -> list[tuple[slice, slice]]:
    """Return, for each position in a window, the pixels of [N, C, H, W] at it."""
    output = shape[2] // size, shape[3] // size
    return [(rows, cols) for _, _, rows, cols in _taps(size, size, output)]


def global_avg_pool_forward(x: Array) -> Array:
    """Return the mean of every channel's map, [N, C], for x [N, C, H, W]."""
    mean: Array = x.mean(axis=(2, 3))
    return mean


def global_avg_pool_backward(dy: Array, shape: Shape) -> Array:
    """Return dx of `shape` [N, C, H, W] for dy [N, C]."""
    count, channels, height, width = shape
    share = (dy / (height * width)).T[:, :, None, None]
    return np.broadcast_to(share, (channels, count, height, width)).copy().swapaxes(0, 1)


# Batch normalisation ------------------------------------------------------------------------------


class NormCache(NamedTuple):
    """What batch_norm_backward needs: the normalised rows [C, M] and 1 / deviation [C]."""

    normalised: Array
    inverse: Array


def batch_norm_forward(
    x: Array, gamma: Array, beta: Array, eps: float
) -> tuple[Array, Array, Array, NormCache]:
    """Normalise x [N, C, H, W] or [N, C] per channel by the batch; return (y, mean, var, cache).

    mean and var are [C]; var is the biased variance over the M = N * H * W values of a channel.
    The caller keeps the running statistics and multiplies var by M / (M - 1) for them, as PyTorch
    does. Source: Ioffe and Szegedy, "Batch normalization", ICML 2015, Algorithm 1.

    Raises ValueError if M < 2: one value has no variance.
    """
    rows = _to_rows(x)
    if rows.shape[1] < 2:
        raise ValueError("batch norm in training needs at least two values per channel")
    mean = rows.mean(axis=1)
    normalised = rows - mean[:, None]
    var = np.square(normalised).mean(axis=1)
    inverse = 1 / np.sqrt(var + eps)
    normalised *= inverse[:, None]
    y = normalised * gamma[:, None]
    y += beta[:, None]
    return _from_rows(y, x.shape), mean, var, NormCache(normalised, inverse)


def batch_norm_inference(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float
) -> Array:
    """Normalise x [N, C, H, W] or [N, C] by the given mean [C] and var [C]."""
    per_channel = (-1, *(1,) * (x.ndim - 2))
    scale = gamma / np.sqrt(var + eps)
    shift = beta - mean * scale
    y: Array = x * scale.reshape(per_channel) + shift.reshape(per_channel)
    return y


def batch_norm_backward(dy: Array, cache: NormCache, gamma: Array) -> tuple[Array, Array, Array]:
    """Return (dx, dgamma [C], dbeta [C]) for dy of the input's shape.

    The gradient runs through the batch's mean and variance as well.
    """
    normalised, inverse = cache
    rows = _to_rows(dy)
    dbeta = rows.sum(axis=1)
    dgamma = (rows * normalised).sum(axis=1)
    count = rows.shape[1]
    dx = rows - (dbeta / count)[:, None]
    dx -= normalised * (dgamma / count)[:, None]
    dx *= (gamma * inverse)[:, None]
    return _from_rows(dx, dy.shape), dgamma, dbeta


# Shape and shortcut -------------------------------------------------------------------------------


def flatten_forward(x: Array) -> Array:
    """Return x [N, ...] as [N, features], channels slowest."""
    return x.reshape(len(x), -1)


def flatten_backward(dy: Array, shape: Shape) -> Array:
    """Return dy [N, features] in the input's `shape`."""
    return dy.reshape(shape)


def add_forward(x: Array, shortcut: Array) -> Array:
    """Return x + shortcut, the end of a residual block; equal shapes."""
    return x + shortcut


def add_backward(dy: Array) -> tuple[Array, Array]:
    """Return (dx, dshortcut): both are dy itself, not copies."""
    return dy, dy


def shortcut_forward(x: Array, channels: int, stride: int) -> Array:
    """Return the shortcut of x [N, C, H, W]: every stride-th pixel, zeros as channels C and up.

    It has no parameters. y is [N, channels, ceil(H / stride), ceil(W / stride)].
    Source: He et al., "Deep residual learning", CVPR 2016, option A of section 4.1.
    """
    picked = x[:, :, ::stride, ::stride]
    count, inputs, height, width = picked.shape
    y = np.zeros((channels, count, height, width), x.dtype)
    y[:inputs] = picked.swapaxes(0, 1)
    return y.swapaxes(0, 1)


def shortcut_backward(dy: Array, shape: Shape, stride: int) -> Array:
    """Return dx of `shape` [N, C, H, W] for dy [N, channels, ceil(H / stride), ...]."""
    count, inputs, height, width = shape
    dx = np.zeros((inputs, count, height, width), dy.dtype)
    dx[:, :, ::stride, ::stride] = dy[:, :inputs].swapaxes(0, 1)
    return dx.swapaxes(0, 1)


# Loss ---------------------------------------------------------------------------------------------


def softmax_cross_entropy(
    logits: Array, labels: NDArray[np.integer[Any]]
) -> tuple[float, Array, int]:
    """Return (loss, dlogits, correct) of logits [N, classes] against labels [N].

    loss is the mean over the batch in nats, dlogits [N, classes] its gradient, correct how many
    rows have their largest logit (the first among equals) at the label. If any logit is not finite,
    loss and dlogits are NaN and correct is 0, so that a broken batch is noticed.
    """
    if not np.isfinite(logits).all():
        return float("nan"), np.full_like(logits, np.nan), 0
    rows = np.arange(len(logits))
    with np.errstate(over="ignore"):  # a difference beyond the dtype's range is an infinite loss
        shifted = logits - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(axis=1, keepdims=True)
    losses = np.log(totals[:, 0]) - shifted[rows, labels]
    dlogits = exponentials / totals
    dlogits[rows, labels] -= 1
    dlogits /= len(logits)
    correct = int((logits.argmax(axis=1) == labels).sum())
    return float(losses.mean(dtype=np.float64)), dlogits, correct
