"""Convolution on CPU threads, one of the layers of `gpu.numba.nn`.

There are two ways. A convolution with stride 1 over few channels, whose matrix product would have
too few rows for BLAS, is summed directly (`_forward_direct` and the functions around it). Any other
one uses im2col and matrix products, in parts that stay in the processor's cache. Scratch memory is
kept between calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gpu.numba import tiles
from gpu.numba.work import channels_first, compiled, scratch, share_out, team
from reference.nn import Array, Shape

_COLUMN_BYTES = 8 << 20
"""Bytes of im2col's columns that are in memory at a time."""
_PRODUCT_ROWS = 64
"""Fewest rows of columns for a part with a thread of its own."""
_DIRECT_CHANNELS = 2
"""Up to this many channels per pixel of width, direct sums are faster than a matrix product."""


class ConvCache(NamedTuple):
    """What the gradients of conv2d need: the input, channels-first [C, N, H, W], and the
    geometry.
    """

    x: Array
    stride: int
    padding: int


def forward(
    x: Array, w: Array, b: Array | None, stride: int, padding: int
) -> tuple[Array, ConvCache]:
    """Cross-correlate x [N, C, H, W] with w [D, C, k, k], add b [D], return (y, cache).

    y is [N, D, OH, OW] with OH = (H + 2 * padding - k) // stride + 1, OW likewise. The border of
    `padding` pixels is zero.

    Raises ValueError if the kernel is larger than the padded image.
    """
    size = _output_size(x.shape, w.shape[-1], stride, padding)
    x = channels_first(x)
    y = np.empty((len(w), x.shape[1], *size), x.dtype)
    bias = np.zeros(len(w), x.dtype) if b is None else b
    cache = ConvCache(x, stride, padding)
    forward = _forward_direct if _is_direct(cache, w.shape) else _forward_by_matrix
    forward(cache, w, bias, y)
    return y.swapaxes(0, 1), cache


def weight_gradients(dy: Array, cache: ConvCache, dw: Array, db: Array | None) -> None:
    """Write dw [D, C, k, k], and db [D] unless it is None, for dy [N, D, OH, OW]."""
    dy = channels_first(dy)
    if db is not None:
        rows = dy.reshape(len(dy), -1)
        share_out(lambda some: _row_sums(rows[some], db[some]), len(rows), rows.size)
    if _is_direct(cache, dw.shape):
        _weights_direct(dy, cache, dw)
    else:
        _weights_by_matrix(dy, cache, dw)


def input_gradient(dy: Array, cache: ConvCache, w: Array) -> Array:
    """Return dx [N, C, H, W] for dy [N, D, OH, OW], w [D, C, k, k]."""
    dx = np.empty_like(cache.x)
    input_gradient = _input_direct if _is_direct(cache, w.shape) else _input_by_matrix
    input_gradient(channels_first(dy), cache, w, dx)
    return dx.swapaxes(0, 1)


def _output_size(shape: Shape, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Return (OH, OW) of a convolution over [N, C, H, W]."""
    height, width = shape[2] + 2 * padding - kernel, shape[3] + 2 * padding - kernel
    if min(height, width) < 0:
        raise ValueError(
            f"a {kernel}x{kernel} kernel does not fit an image of {shape[2]}x{shape[3]} pixels with"
            f" a border of {padding}"
        )
    return height // stride + 1, width // stride + 1


@compiled
def _row_sums(rows, sums):
    """Write the sums [D] of rows [D, M], added in float64."""
    for d in range(len(rows)):
        row, total = rows[d], 0.0
        for m in range(row.size):
            total += row[m]
        sums[d] = total


# Convolution by im2col and matrix products --------------------------------------------------------


def _forward_by_matrix(cache: ConvCache, w: Array, b: Array, y: Array) -> None:
    """Fill y [D, N, OH, OW], some images at a time."""
    x, stride, padding = cache
    matrix, rows, outputs = w.reshape(len(w), -1), y.reshape(len(w), -1), y[0, 0].size
    parts = _parts(x.shape[1], matrix.shape[1] * outputs * x.itemsize, outputs)

    def work(part: int) -> None:
        first, last = x.shape[1] * part // parts, x.shape[1] * (part + 1) // parts
        columns = scratch("columns", (len(x), *w.shape[2:], last - first, *y.shape[2:]), x.dtype)
        _fill_columns(x, first, stride, padding, columns)
        target = rows[:, first * outputs : last * outputs]
        np.matmul(matrix, columns.reshape(matrix.shape[1], -1), out=target)
        if b.any():
            target += b[:, None]

    team.run(work, parts)


def _weights_by_matrix(dy: Array, cache: ConvCache, dw: Array) -> None:
    """Fill dw [D, C, k, k] for dy [D, N, OH, OW]: some input channels at a time."""
    x, stride, padding = cache
    rows = dy.reshape(len(dy), -1)

    def work(some: slice, taps: slice, columns: Array) -> None:
        _fill_columns(x[some], 0, stride, padding, columns)
        np.matmul(rows, columns.reshape(-1, rows.shape[1]).T, out=dw.reshape(len(dw), -1)[:, taps])

    _by_channels(work, dy, cache, dw.shape[-1])


def _input_by_matrix(dy: Array, cache: ConvCache, w: Array, dx: Array) -> None:
    """Fill dx [C, N, H, W] for dy [D, N, OH, OW]: some input channels at a time."""
    _, stride, padding = cache
    matrix, rows = w.reshape(len(w), -1), dy.reshape(len(dy), -1)

    def work(some: slice, taps: slice, columns: Array) -> None:
        np.matmul(matrix[:, taps].T, rows, out=columns.reshape(-1, rows.shape[1]))
        _add_columns(columns, stride, padding, dx[some])

    _by_channels(work, dy, cache, w.shape[-1])


def _by_channels(
    work: Callable[[slice, slice, Array], None], dy: Array, cache: ConvCache, kernel: int
) -> None:
    """Call work with slices of the input channels, slices of their taps, and memory for columns."""
    x, taps = cache.x, kernel * kernel
    parts = _parts(len(x), taps * dy[0].size * x.itemsize, taps)

    def one(part: int) -> None:
        some = slice(len(x) * part // parts, len(x) * (part + 1) // parts)
        columns = scratch(
            "columns", (some.stop - some.start, kernel, kernel, *dy.shape[1:]), x.dtype
        )
        work(some, slice(some.start * taps, some.stop * taps), columns)

    team.run(one, parts)


def _parts(count: int, size: int, rows: int) -> int:
    """Return the number of parts into which to split `count` images or channels.

    size, rows: bytes, and rows of columns, of each. The columns of a part stay in the cache. There
    are several parts, for several threads, if they do not get too few rows for BLAS. The number of
    threads does not matter, since the bits would depend on it.
    """
    small_enough = -(-count * size // _COLUMN_BYTES)
    thick_enough = max(1, count * rows // _PRODUCT_ROWS)
    return min(count, max(small_enough, min(thick_enough, 4)))


@compiled
def _span(tap, stride, padding, pixels, outputs):
    """Return [first, last): those of a row's outputs whose tap lies on a pixel, not the border."""
    first = min(outputs, max(0, (padding - tap + stride - 1) // stride))
    last = min(outputs, (pixels - 1 + padding - tap) // stride + 1)
    return first, max(first, last)


@compiled
def _fill_columns(x, first, stride, padding, columns):
    """Write columns [C, k, k, B, OH, OW] of x [C, N, H, W] from image `first` on.

    columns[c, i, j, n, r, q] is x[c, first + n, r * stride + i - padding, q * stride + j -
    padding], zero outside the image.
    """
    channels, kernel, _, count, height, width = columns.shape
    same = stride == 1 and height == x.shape[2] and width == x.shape[3]
    for c in range(channels):
        for i in range(kernel):
            for j in range(kernel):
                if same:
                    shift = (i - padding) * width + j - padding
                    _copy_shifted(
                        x[c, first : first + count].reshape(-1), shift, columns[c, i, j].reshape(-1)
                    )
                    _clear_border(columns[c, i, j], i - padding, j - padding)
                else:
                    _copy_strided(
                        x[c, first : first + count], i, j, stride, padding, columns[c, i, j]
                    )


@compiled
def _add_columns(columns, stride, padding, dx):
    """Sum columns [C, k, k, N, OH, OW] into dx [C, N, H, W]: _fill_columns transposed.

    The columns are overwritten.
    """
    channels, kernel, _, _, height, width = columns.shape
    same = stride == 1 and height == dx.shape[2] and width == dx.shape[3]
    for c in range(channels):
        dx[c] = 0
        for i in range(kernel):
            for j in range(kernel):
                if same:
                    _clear_border(columns[c, i, j], i - padding, j - padding)
                    shift = (i - padding) * width + j - padding
                    _add_shifted(columns[c, i, j].reshape(-1), shift, dx[c].reshape(-1))
                else:
                    _add_strided(columns[c, i, j], i, j, stride, padding, dx[c])


@compiled
def _copy_shifted(x, shift, target):
    """Write x[p + shift] to target[p] wherever both exist.

    For outputs that match pixels one to one, whose rows are contiguous in memory.
    """
    target, source = target[max(0, -shift) :], x[max(0, shift) :]
    for p in range(min(target.size, source.size)):
        target[p] = source[p]


@compiled
def _add_shifted(values, shift, target):
    """Add values[p] to target[p + shift] wherever both exist."""
    values, target = values[max(0, -shift) :], target[max(0, shift) :]
    for p in range(min(values.size, target.size)):
        target[p] += values[p]


@compiled
def _clear_border(images, down, right):
    """Set to zero the pixels of images [N, H, W] that leave the image if moved down and right."""
    count, height, width = images.shape
    top, bottom = min(height, max(0, -down)), max(0, height - max(0, down))
    left, end = min(width, max(0, -right)), max(0, width - max(0, right))
    for n in range(count):
        images[n, :top] = 0
        images[n, bottom:] = 0
        for r in range(top, bottom):
            for q in range(left):
                images[n, r, q] = 0
            for q in range(end, width):
                images[n, r, q] = 0


@compiled
def _copy_strided(x, i, j, stride, padding, target):
    """Write what tap (i, j) sees of x [N, H, W] to target [N, OH, OW]."""
    count, height, width = target.shape
    top, bottom = _span(i, stride, padding, x.shape[1], height)
    left, right = _span(j, stride, padding, x.shape[2], width)
    if (top, bottom, left, right) != (0, height, 0, width):
        target[:] = 0
    for n in range(count):
        for r in range(top, bottom):
            source, row = (
                x[n, r * stride + i - padding, left * stride + j - padding :],
                target[n, r, left:right],
            )
            for q in range(row.size):
                row[q] = source[q * stride]


@compiled
def _add_strided(values, i, j, stride, padding, target):
    """Add values [N, OH, OW] to what tap (i, j) sees of target [N, H, W]."""
    count, height, width = values.shape
    top, bottom = _span(i, stride, padding, target.shape[1], height)
    left, right = _span(j, stride, padding, target.shape[2], width)
    for n in range(count):
        for r in range(top, bottom):
            row, sums = (
                values[n, r, left:right],
                target[n, r * stride + i - padding, left * stride + j - padding :],
            )
            for q in range(row.size):
                sums[q * stride] += row[q]


# Direct convolution with stride 1 -----------------------------------------------------------------
#
# An image is stored in one row of memory, with a gap of zeros after every row of pixels and rows of
# zeros above and below. The zeros serve as the border on both sides. What tap (i, j) sees at output
# p is at p + i * pitch + j for every p, so all loops run over p: they are long and have no branch.
# Outputs at a gap are computed and discarded.

_TOGETHER = 8
"""Images that one tile of weights processes before the next tile, while they are in the cache."""


def _is_direct(cache: ConvCache, shape: Shape) -> bool:
    """Whether a convolution with weights [D, C, k, k] is summed directly.

    Narrow images waste more of the work on gaps.
    """
    fits = cache.stride == 1 and cache.padding < shape[-1]
    return fits and max(shape[:2]) <= _DIRECT_CHANNELS * cache.x.shape[3]


def _gapped_scratch(use: str, x: Array, border: int) -> Array:
    """Return memory [N, C, length] for images x [C, N, H, W] with gaps of `border` zeros."""
    channels, count, height, width = x.shape
    length = (height + 2 * border) * (width + border) + border + tiles.OUTPUT_MULTIPLE
    return scratch("gapped " + use, (count, channels, length), x.dtype)


def _output_count(images: Array, pitch: int) -> int:
    """Return how many outputs to compute of an image [OH, OW] with gaps.

    That is up to the last pixel, rounded up to whole vectors.
    """
    last = (images.shape[2] - 1) * pitch + images.shape[3]
    return -(-last // tiles.OUTPUT_MULTIPLE) * tiles.OUTPUT_MULTIPLE


def _offsets(gapped: Array, kernel: int, pitch: int) -> NDArray[np.int64]:
    """Return where the taps start in an image of gapped [N, C, length]: int64 [C * k * k]."""
    channels, sides = np.arange(gapped.shape[1]), np.arange(kernel)
    return (channels[:, None, None] * gapped.shape[2] + sides[:, None] * pitch + sides).reshape(-1)


def _forward_direct(cache: ConvCache, w: Array, b: Array, y: Array) -> None:
    """Fill y [D, N, OH, OW]."""
    _correlate(cache.x, cache.padding, w, b, _gapped_scratch("x", cache.x, cache.padding), y)


def _correlate(x: Array, border: int, w: Array, b: Array, gapped: Array, y: Array) -> None:
    """Fill y [D, N, OH, OW] from x [C, N, H, W], w [D, C, k, k] and b [D].

    gapped [N, C, length]: memory for x with gaps.
    """
    pitch = x.shape[3] + border
    offsets = _offsets(gapped, w.shape[-1], pitch)
    blocks = _pad(w.reshape(len(w), -1), tiles.ROWS).reshape(-1, tiles.ROWS, offsets.size)
    taps = np.ascontiguousarray(blocks.swapaxes(1, 2))

    def work(some: slice) -> None:
        sums = scratch("sums", (tiles.ROWS, _output_count(y, pitch)), x.dtype)
        _fill_gapped(x[:, some], border, gapped[some])
        _correlate_images(gapped[some], offsets, taps, b, pitch, sums, y[:, some])

    share_out(work, len(gapped), w.size * y[0].size)


def _weights_direct(dy: Array, cache: ConvCache, dw: Array) -> None:
    """Fill dw [D, C, k, k] for dy [D, N, OH, OW]."""
    (x, _, padding), border = cache, dw.shape[-1] - 1 - cache.padding
    gapped_x, gapped_dy = _gapped_scratch("x", x, padding), _gapped_scratch("dy", dy, border)
    share_out(lambda some: _fill_gapped(x[:, some], padding, gapped_x[some]), len(gapped_x), x.size)
    share_out(
        lambda some: _fill_gapped(dy[:, some], border, gapped_dy[some]), len(gapped_dy), dy.size
    )
    pitch = x.shape[3] + padding
    _correlate_weights(gapped_x, gapped_dy, pitch, _output_count(dy, pitch), border, dw)


def _input_direct(dy: Array, cache: ConvCache, w: Array, dx: Array) -> None:
    """Fill dx [C, N, H, W] for dy [D, N, OH, OW].

    It is dy correlated with the weights, their channels swapped and turned by 180 degrees.
    """
    border = w.shape[-1] - 1 - cache.padding
    turned = w[:, :, ::-1, ::-1].swapaxes(0, 1)
    _correlate(
        dy, border, turned, np.zeros(len(dx), dx.dtype), _gapped_scratch("dy", dy, border), dx
    )


def _correlate_weights(
    x: Array, dy: Array, pitch: int, outputs: int, border: int, dw: Array
) -> None:
    """Fill dw [D, C, k, k] with sums of products of gapped x [N, C, length] and dy [N, D, length].

    Both have the same pitch.
    """
    first = border * (pitch + 1)
    offsets = _pad(_offsets(x, dw.shape[-1], pitch), tiles.COLUMNS).reshape(-1, tiles.COLUMNS)
    starts = _pad(np.arange(len(dw)) * dy.shape[2] + first, tiles.ROWS).reshape(-1, tiles.ROWS)
    sums = np.zeros((len(starts), len(offsets), tiles.ROWS, tiles.COLUMNS), dw.dtype)
    flat = sums.reshape(-1, tiles.ROWS, tiles.COLUMNS)
    images, slopes = x.reshape(len(x), -1), dy.reshape(len(dy), -1)

    def work(some: slice) -> None:
        _add_weights(images, slopes, offsets, starts, outputs, some.start, flat[some])

    share_out(work, len(flat), x.size * len(dw))
    rows = sums.swapaxes(1, 2).reshape(starts.size, offsets.size)
    dw[:] = rows[: len(dw), : dw[0].size].reshape(dw.shape)


def _pad(values: NDArray[Any], multiple: int) -> NDArray[Any]:
    """Return values [A, ...] with the last one repeated until A is a multiple of `multiple`."""
    return np.concatenate([values, *[values[-1:]] * (-len(values) % multiple)])


@compiled
def _fill_gapped(x, border, rows):
    """Write images x [C, N, H, W] to gapped rows [N, C, length]."""
    channels, count, height, width = x.shape
    pitch = width + border
    for n in range(count):
        for c in range(channels):
            rows[n, c] = 0
            for r in range(height):
                target, source = rows[n, c, (r + border) * pitch + border :], x[c, n, r]
                for q in range(width):
                    target[q] = source[q]


@compiled
def _correlate_images(gapped, offsets, taps, b, pitch, sums, y):
    """Write y [D, N, OH, OW] from gapped rows [N, C, length], a few channels at a time.

    sums [ROWS, outputs] is scratch memory.
    """
    for n in range(len(gapped)):
        image = gapped[n].reshape(-1)
        for block in range(len(taps)):
            _correlate_row(image, offsets, taps[block], sums)
            for d in range(block * len(sums), min((block + 1) * len(sums), len(y))):
                _drop_gaps(sums[d - block * len(sums)], b[d], pitch, y[d, n])


@compiled
def _correlate_row(image, offsets, taps, sums):
    """Write the sums [ROWS, outputs] of an image's values times taps [T, ROWS]."""
    vector = tiles.BYTES // image.itemsize
    wide, first = tiles.COLUMNS * vector, 0
    while first + wide <= sums.shape[1]:
        tiles.correlate_wide(image, first, offsets, taps, sums)
        first += wide
    while first < sums.shape[1]:
        tiles.correlate_narrow(image, first, offsets, taps, sums)
        first += vector


@compiled
def _drop_gaps(sums, bias, pitch, y):
    """Write the outputs of one channel, without the gaps and plus the bias, to y [OH, OW]."""
    for r in range(len(y)):
        source, target = sums[r * pitch :], y[r]
        for q in range(target.size):
            target[q] = source[q] + bias


@compiled
def _add_weights(x, dy, offsets, starts, outputs, first, sums):
    """Add products of gapped x and dy, both [N, values], to sums [B, ROWS, COLUMNS].

    The tiles are numbers first to first + B - 1.
    """
    for n in range(0, len(x), _TOGETHER):
        some, slopes = x[n : n + _TOGETHER], dy[n : n + _TOGETHER]
        for tile in range(len(sums)):
            i, j = divmod(first + tile, len(offsets))
            tiles.add_weight_tile(some, slopes, offsets[j], starts[i], outputs, sums[tile])
