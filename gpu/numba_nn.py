"""The functions of `reference.nn` on CPU threads: numba for what moves memory, BLAS for the large matrix products.

Names, signatures and meanings are those of `reference.nn`; caches differ and stay opaque. Results keep the dtype of the input
and agree with the reference within rounding, not bit by bit. The same input gives the same bits again, whatever the number of
threads, in all but the linear layers, whose matrix products BLAS may split differently.

Memory order: every image that comes back is an [N, C, H, W] view of contiguous channels-first memory [C, N, H, W]. Images that
come in may have any order; another one costs a copy.

Two roads lead through a convolution. One with stride 1 over few channels, where a matrix product would be too thin for BLAS, is
summed directly (`_forward_direct` and around it). Every other one goes through im2col and matrix products, in parts that stay in
the processor's cache. Scratch memory is kept between calls.

Threads: as many as `numba.get_num_threads()` says. They are Python threads that share out calls of compiled functions, each with
a BLAS of one thread. Numba's own threads and those of BLAS wait for work by spinning, and would take turns at keeping each other
off the cores.

No kernel assumes finite numbers: fast math may join a product and a sum and reorder sums, and no more, so NaN and infinity
come through.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numba
import numpy as np
from reference.nn import (  # not sped up: small, or a matrix product already
    Array,
    Shape,
    add_backward,
    asarray,
    flatten_backward,
    flatten_forward,
    global_avg_pool_backward,
    global_avg_pool_forward,
    he_normal,
    linear_forward,
    linear_input_gradient,
    linear_weight_gradients,
    shortcut_backward,
    shortcut_forward,
    softmax_cross_entropy,
)
from threadpoolctl import ThreadpoolController

from gpu import numba_tiles as tiles

__all__ = [
    "add_backward",
    "add_forward",
    "asarray",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "conv2d_forward",
    "conv2d_input_gradient",
    "conv2d_weight_gradients",
    "flatten_backward",
    "flatten_forward",
    "global_avg_pool_backward",
    "global_avg_pool_forward",
    "he_normal",
    "linear_forward",
    "linear_input_gradient",
    "linear_weight_gradients",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "relu_backward",
    "relu_forward",
    "shortcut_backward",
    "shortcut_forward",
    "softmax_cross_entropy",
]

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc"})


# Threads --------------------------------------------------------------------------------------

_GRAIN = 1 << 16  # values that are worth the waking of a thread


def _thread_count() -> int:
    """Return how many threads the caller wants at work."""
    count: int = numba.get_num_threads()
    return count


class _Team:
    """Threads that work through numbered parts beside the caller. They sleep in between."""

    def __init__(self) -> None:
        self._threads = 1
        self._helpers: ThreadPoolExecutor | None = None

    def run(self, work: Callable[[int], None], parts: int) -> None:
        """Call work(0) ... work(parts - 1), each once, in any order, with BLAS on one thread; return when all are done."""
        threads = _thread_count()
        if min(threads, parts) == 1:
            for part in range(parts):
                work(part)
            return
        queue = itertools.count()  # one step of it cannot be interrupted

        def share() -> None:
            while (part := next(queue)) < parts:
                work(part)

        with _blas.limit(limits=1):
            helpers = self._executor(threads)
            pending = [helpers.submit(share) for _ in range(min(threads, parts) - 1)]
            share()
            for helper in pending:
                if not helper.cancel():  # one that came too late has nothing to do
                    helper.result()

    def _executor(self, threads: int) -> ThreadPoolExecutor:
        """Return the helpers of a team of so many threads."""
        if self._helpers is None or self._threads != threads:
            self._helpers, self._threads = ThreadPoolExecutor(threads - 1, "numba_nn"), threads
        return self._helpers


_team = _Team()
_blas = ThreadpoolController().select(user_api="blas")


def _share(work: Callable[[slice], None], count: int, values: int) -> None:
    """Call work with slices of `count` rows, or channels, or values, `values` numbers of work in all, on the team's threads."""
    parts = max(1, min(_thread_count(), count, values // _GRAIN))
    _team.run(lambda part: work(slice(count * part // parts, count * (part + 1) // parts)), parts)


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

_COLUMN_BYTES = 8 << 20  # of im2col at a time
_PRODUCT_ROWS = 64  # of the columns' side of a matrix product, at least
_DIRECT_CHANNELS = 2  # times the width of an image: up to here direct sums beat the matrix product


class ConvCache(NamedTuple):
    """What the gradients of conv2d need: the input, channels-first [C, N, H, W], and the geometry."""

    x: Array
    stride: int
    padding: int


def conv2d_forward(x: Array, w: Array, b: Array | None, stride: int, padding: int) -> tuple[Array, ConvCache]:
    """Cross-correlate x [N, C, H, W] with w [D, C, k, k], add b [D], return (y, cache).

    y is [N, D, OH, OW] with OH = (H + 2 * padding - k) // stride + 1, OW likewise. The border of `padding` pixels is zero.

    Raises ValueError where the kernel is larger than the padded image.
    """
    size = _output_size(x.shape, w.shape[-1], stride, padding)
    x = _channels_first(x)
    y = np.empty((len(w), x.shape[1], *size), x.dtype)
    bias = np.zeros(len(w), x.dtype) if b is None else b
    cache = ConvCache(x, stride, padding)
    forward = _forward_direct if _is_direct(cache, w.shape) else _forward_by_matrix
    forward(cache, w, bias, y)
    return y.swapaxes(0, 1), cache


def conv2d_weight_gradients(dy: Array, cache: ConvCache, dw: Array, db: Array | None) -> None:
    """Write dw [D, C, k, k], and db [D] unless it is None, for dy [N, D, OH, OW]."""
    dy = _channels_first(dy)
    if db is not None:
        rows = dy.reshape(len(dy), -1)
        _share(lambda some: _row_sums(rows[some], db[some]), len(rows), rows.size)
    if _is_direct(cache, dw.shape):
        _weights_direct(dy, cache, dw)
    else:
        _weights_by_matrix(dy, cache, dw)


def conv2d_input_gradient(dy: Array, cache: ConvCache, w: Array) -> Array:
    """Return dx [N, C, H, W] for dy [N, D, OH, OW], w [D, C, k, k]."""
    dx = np.empty_like(cache.x)
    input_gradient = _input_direct if _is_direct(cache, w.shape) else _input_by_matrix
    input_gradient(_channels_first(dy), cache, w, dx)
    return dx.swapaxes(0, 1)


def _output_size(shape: Shape, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Return (OH, OW) of a convolution over [N, C, H, W]."""
    height, width = shape[2] + 2 * padding - kernel, shape[3] + 2 * padding - kernel
    if min(height, width) < 0:
        raise ValueError(
            f"a {kernel}x{kernel} kernel does not fit an image of {shape[2]}x{shape[3]} pixels with a border of {padding}"
        )
    return height // stride + 1, width // stride + 1


@_compiled
def _row_sums(rows, sums):
    """Write the sums [D] of rows [D, M], added up in float64."""
    for d in range(len(rows)):
        row, total = rows[d], 0.0
        for m in range(row.size):
            total += row[m]
        sums[d] = total


# Convolution by im2col and matrix products ------------------------------------------------------


def _forward_by_matrix(cache: ConvCache, w: Array, b: Array, y: Array) -> None:
    """Fill y [D, N, OH, OW], some images at a time."""
    x, stride, padding = cache
    matrix, rows, places = w.reshape(len(w), -1), y.reshape(len(w), -1), y[0, 0].size
    parts = _parts(x.shape[1], matrix.shape[1] * places * x.itemsize, places)

    def work(part: int) -> None:
        first, last = x.shape[1] * part // parts, x.shape[1] * (part + 1) // parts
        columns = _scratch("columns", (len(x), *w.shape[2:], last - first, *y.shape[2:]), x.dtype)
        _fill_columns(x, first, stride, padding, columns)
        target = rows[:, first * places : last * places]
        np.matmul(matrix, columns.reshape(matrix.shape[1], -1), out=target)
        if b.any():
            target += b[:, None]

    _team.run(work, parts)


def _weights_by_matrix(dy: Array, cache: ConvCache, dw: Array) -> None:
    """Fill dw [D, C, k, k] for dy [D, N, OH, OW]: some input channels at a time."""
    x, stride, padding = cache
    rows = dy.reshape(len(dy), -1)

    def work(some: slice, places: slice, columns: Array) -> None:
        _fill_columns(x[some], 0, stride, padding, columns)
        np.matmul(rows, columns.reshape(-1, rows.shape[1]).T, out=dw.reshape(len(dw), -1)[:, places])

    _by_channels(work, dy, cache, dw.shape[-1])


def _input_by_matrix(dy: Array, cache: ConvCache, w: Array, dx: Array) -> None:
    """Fill dx [C, N, H, W] for dy [D, N, OH, OW]: some input channels at a time."""
    _, stride, padding = cache
    matrix, rows = w.reshape(len(w), -1), dy.reshape(len(dy), -1)

    def work(some: slice, places: slice, columns: Array) -> None:
        np.matmul(matrix[:, places].T, rows, out=columns.reshape(-1, rows.shape[1]))
        _add_columns(columns, stride, padding, dx[some])

    _by_channels(work, dy, cache, w.shape[-1])


def _by_channels(work: Callable[[slice, slice, Array], None], dy: Array, cache: ConvCache, kernel: int) -> None:
    """Call work with slices of the input channels, the slices of their taps, and memory for their columns, in parts."""
    x, taps = cache.x, kernel * kernel
    parts = _parts(len(x), taps * dy[0].size * x.itemsize, taps)

    def one(part: int) -> None:
        some = slice(len(x) * part // parts, len(x) * (part + 1) // parts)
        columns = _scratch("columns", (some.stop - some.start, kernel, kernel, *dy.shape[1:]), x.dtype)
        work(some, slice(some.start * taps, some.stop * taps), columns)

    _team.run(one, parts)


def _parts(count: int, size: int, rows: int) -> int:
    """Return into how many parts to split `count` images or channels, each worth `size` bytes and so many rows of columns.

    The columns of a part stay in the cache; there are parts for several threads where these do not get too thin for BLAS.
    The number of threads has no say: the bits would follow it.
    """
    small_enough = -(-count * size // _COLUMN_BYTES)
    thick_enough = max(1, count * rows // _PRODUCT_ROWS)
    return min(count, max(small_enough, min(thick_enough, 4)))


@_compiled
def _span(tap, stride, padding, pixels, places):
    """Return [first, last): the outputs of a row of `places` whose tap meets one of the pixels, not the border."""
    first = min(places, max(0, (padding - tap + stride - 1) // stride))
    last = min(places, (pixels - 1 + padding - tap) // stride + 1)
    return first, max(first, last)


@_compiled
def _fill_columns(x, first, stride, padding, columns):
    """Write columns [C, k, k, B, OH, OW] of x [C, N, H, W] from image `first` on.

    columns[c, i, j, n, r, q] is x[c, first + n, r * stride + i - padding, q * stride + j - padding], zero outside the image.
    """
    channels, kernel, _, count, height, width = columns.shape
    same = stride == 1 and height == x.shape[2] and width == x.shape[3]
    for c in range(channels):
        for i in range(kernel):
            for j in range(kernel):
                if same:
                    shift = (i - padding) * width + j - padding
                    _copy_shifted(x[c, first : first + count].reshape(-1), shift, columns[c, i, j].reshape(-1))
                    _clear_border(columns[c, i, j], i - padding, j - padding)
                else:
                    _copy_strided(x[c, first : first + count], i, j, stride, padding, columns[c, i, j])


@_compiled
def _add_columns(columns, stride, padding, dx):
    """Sum columns [C, k, k, N, OH, OW] into dx [C, N, H, W]: _fill_columns transposed. The columns are lost."""
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


@_compiled
def _copy_shifted(x, shift, target):
    """Write x[p + shift] to target[p] wherever both exist: where outputs and pixels match one to one, rows run on in memory."""
    target, source = target[max(0, -shift) :], x[max(0, shift) :]
    for p in range(min(target.size, source.size)):
        target[p] = source[p]


@_compiled
def _add_shifted(values, shift, target):
    """Add values[p] to target[p + shift] wherever both exist."""
    values, target = values[max(0, -shift) :], target[max(0, shift) :]
    for p in range(min(values.size, target.size)):
        target[p] += values[p]


@_compiled
def _clear_border(images, down, right):
    """Set to zero the places of images [N, H, W] from where a step down and to the right leads out of the image."""
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


@_compiled
def _copy_strided(x, i, j, stride, padding, target):
    """Write what tap (i, j) sees of x [N, H, W] to target [N, OH, OW]."""
    count, height, width = target.shape
    top, bottom = _span(i, stride, padding, x.shape[1], height)
    left, right = _span(j, stride, padding, x.shape[2], width)
    if (top, bottom, left, right) != (0, height, 0, width):
        target[:] = 0
    for n in range(count):
        for r in range(top, bottom):
            source, row = x[n, r * stride + i - padding, left * stride + j - padding :], target[n, r, left:right]
            for q in range(row.size):
                row[q] = source[q * stride]


@_compiled
def _add_strided(values, i, j, stride, padding, target):
    """Add values [N, OH, OW] to what tap (i, j) sees of target [N, H, W]."""
    count, height, width = values.shape
    top, bottom = _span(i, stride, padding, target.shape[1], height)
    left, right = _span(j, stride, padding, target.shape[2], width)
    for n in range(count):
        for r in range(top, bottom):
            row, sums = values[n, r, left:right], target[n, r * stride + i - padding, left * stride + j - padding :]
            for q in range(row.size):
                sums[q * stride] += row[q]


# Direct convolution with stride 1 -----------------------------------------------------------------
#
# An image lies in one row of memory, a gap of zeros after every row of pixels, rows of zeros above and below. The zeros serve as
# the border on both sides, and what tap (i, j) sees at output p lies at p + i * pitch + j, whatever p: all loops run over p, long
# and without a branch. Outputs that fall on a gap are computed and thrown away.

_TOGETHER = 8  # images that a tile of weights goes through before the next one's turn; they stay in the cache meanwhile


def _is_direct(cache: ConvCache, shape: Shape) -> bool:
    """Whether a convolution with weights [D, C, k, k] goes the direct way; narrow images waste more of it on gaps."""
    fits = cache.stride == 1 and cache.padding < shape[-1]
    return fits and max(shape[:2]) <= _DIRECT_CHANNELS * cache.x.shape[3]


def _gapped_scratch(use: str, x: Array, border: int) -> Array:
    """Return memory [N, C, length] for images x [C, N, H, W] with gaps and borders of so many zeros."""
    channels, count, height, width = x.shape
    length = (height + 2 * border) * (width + border) + border + tiles.PLACES
    return _scratch("gapped " + use, (count, channels, length), x.dtype)


def _places(images: Array, pitch: int) -> int:
    """Return how many places of a row get an output of [D, N, OH, OW]: up to the last pixel, then to whole vectors."""
    last = (images.shape[2] - 1) * pitch + images.shape[3]
    return -(-last // tiles.PLACES) * tiles.PLACES


def _offsets(gapped: Array, kernel: int, pitch: int) -> np.ndarray[Any, Any]:
    """Return where in an image of gapped [N, C, length] its taps begin: int64 [C * k * k]."""
    channels, sides = np.arange(gapped.shape[1]), np.arange(kernel)
    return (channels[:, None, None] * gapped.shape[2] + sides[:, None] * pitch + sides).reshape(-1)


def _forward_direct(cache: ConvCache, w: Array, b: Array, y: Array) -> None:
    """Fill y [D, N, OH, OW]."""
    _correlate(cache.x, cache.padding, w, b, _gapped_scratch("x", cache.x, cache.padding), y)


def _correlate(x: Array, border: int, w: Array, b: Array, gapped: Array, y: Array) -> None:
    """Fill y [D, N, OH, OW] of x [C, N, H, W], w [D, C, k, k], b [D]; x lies in gapped [N, C, length] afterwards."""
    pitch = x.shape[3] + border
    offsets = _offsets(gapped, w.shape[-1], pitch)
    blocks = _pad(w.reshape(len(w), -1), tiles.ROWS).reshape(-1, tiles.ROWS, offsets.size)
    taps = np.ascontiguousarray(blocks.swapaxes(1, 2))

    def work(some: slice) -> None:
        sums = _scratch("sums", (tiles.ROWS, _places(y, pitch)), x.dtype)
        _fill_gapped(x[:, some], border, gapped[some])
        _correlate_images(gapped[some], offsets, taps, b, pitch, sums, y[:, some])

    _share(work, len(gapped), w.size * y[0].size)


def _weights_direct(dy: Array, cache: ConvCache, dw: Array) -> None:
    """Fill dw [D, C, k, k] for dy [D, N, OH, OW]."""
    (x, _, padding), border = cache, dw.shape[-1] - 1 - cache.padding
    gapped_x, gapped_dy = _gapped_scratch("x", x, padding), _gapped_scratch("dy", dy, border)
    _share(lambda some: _fill_gapped(x[:, some], padding, gapped_x[some]), len(gapped_x), x.size)
    _share(lambda some: _fill_gapped(dy[:, some], border, gapped_dy[some]), len(gapped_dy), dy.size)
    pitch = x.shape[3] + padding
    _correlate_weights(gapped_x, gapped_dy, pitch, _places(dy, pitch), border, dw)


def _input_direct(dy: Array, cache: ConvCache, w: Array, dx: Array) -> None:
    """Fill dx [C, N, H, W] for dy [D, N, OH, OW]: dy correlated with the weights of swapped channels, turned by 180 degrees."""
    border = w.shape[-1] - 1 - cache.padding
    turned = w[:, :, ::-1, ::-1].swapaxes(0, 1)
    _correlate(dy, border, turned, np.zeros(len(dx), dx.dtype), _gapped_scratch("dy", dy, border), dx)


def _correlate_weights(x: Array, dy: Array, pitch: int, places: int, border: int, dw: Array) -> None:
    """Fill dw [D, C, k, k]: sums of products of gapped x [N, C, length] and dy [N, D, length]; both have the same pitch."""
    first = border * (pitch + 1)
    offsets = _pad(_offsets(x, dw.shape[-1], pitch), tiles.COLUMNS).reshape(-1, tiles.COLUMNS)
    starts = _pad(np.arange(len(dw)) * dy.shape[2] + first, tiles.ROWS).reshape(-1, tiles.ROWS)
    sums = np.zeros((len(starts), len(offsets), tiles.ROWS, tiles.COLUMNS), dw.dtype)
    flat = sums.reshape(-1, tiles.ROWS, tiles.COLUMNS)
    images, slopes = x.reshape(len(x), -1), dy.reshape(len(dy), -1)

    def work(some: slice) -> None:
        _add_weights(images, slopes, offsets, starts, places, some.start, flat[some])

    _share(work, len(flat), x.size * len(dw))
    rows = sums.swapaxes(1, 2).reshape(starts.size, offsets.size)
    dw[:] = rows[: len(dw), : dw[0].size].reshape(dw.shape)


def _pad(values: Array, multiple: int) -> Array:
    """Return values [A, ...] with the last repeated until A is a multiple."""
    return np.concatenate([values, *[values[-1:]] * (-len(values) % multiple)])


@_compiled
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


@_compiled
def _correlate_images(gapped, offsets, taps, b, pitch, sums, y):
    """Write y [D, N, OH, OW] of gapped rows [N, C, length], a few outputs at a time; sums [ROWS, places] is scratch."""
    for n in range(len(gapped)):
        image = gapped[n].reshape(-1)
        for block in range(len(taps)):
            _correlate_row(image, offsets, taps[block], sums)
            for d in range(block * len(sums), min((block + 1) * len(sums), len(y))):
                _drop_gaps(sums[d - block * len(sums)], b[d], pitch, y[d, n])


@_compiled
def _correlate_row(image, offsets, taps, sums):
    """Write the sums [ROWS, places] of an image's values with taps [T, ROWS]."""
    vector = tiles.BYTES // image.itemsize
    wide, place = tiles.COLUMNS * vector, 0
    while place + wide <= sums.shape[1]:
        tiles.correlate_wide(image, place, offsets, taps, sums)
        place += wide
    while place < sums.shape[1]:
        tiles.correlate_narrow(image, place, offsets, taps, sums)
        place += vector


@_compiled
def _drop_gaps(sums, bias, pitch, y):
    """Write one channel's outputs without the gaps, plus the bias, to y [OH, OW]."""
    for r in range(len(y)):
        source, target = sums[r * pitch :], y[r]
        for q in range(target.size):
            target[q] = source[q] + bias


@_compiled
def _add_weights(x, dy, offsets, starts, places, first, sums):
    """Add to sums [B, ROWS, COLUMNS] of tiles first to first + B - 1 the products of gapped x and dy, both [N, values]."""
    for n in range(0, len(x), _TOGETHER):
        some, slopes = x[n : n + _TOGETHER], dy[n : n + _TOGETHER]
        for tile in range(len(sums)):
            i, j = divmod(first + tile, len(offsets))
            tiles.add_weight_tile(some, slopes, offsets[j], starts[i], places, sums[tile])


# Activation, pooling and the residual sum -------------------------------------------------------

def relu_forward(x: Array) -> Array:
    """Return max(x, 0), any shape. NaN stays NaN."""
    values = _flat(x)
    y = np.empty_like(values)
    _share(lambda some: _rectify(values[some], y[some]), values.size, values.size)
    return _unflat(y, x.shape)


def relu_backward(dy: Array, y: Array) -> Array:
    """Return dx for the output y of relu_forward; the slope at zero is 0."""
    slopes, values = _flat(dy), _flat(y)
    dx = np.empty_like(slopes)
    _share(lambda some: _mask(slopes[some], values[some], dx[some]), values.size, values.size)
    return _unflat(dx, dy.shape)


def add_forward(x: Array, shortcut: Array) -> Array:
    """Return x + shortcut, the end of a residual block; equal shapes."""
    values, others = _flat(x), _flat(shortcut)
    y = np.empty_like(values)
    _share(lambda some: _add(values[some], others[some], y[some]), values.size, values.size)
    return _unflat(y, x.shape)


@_compiled
def _rectify(x, y):
    """Write max(x, 0) to y; rows. A comparison with NaN is false, and NaN goes through."""
    for i in range(x.size):
        y[i] = 0 if x[i] <= 0 else x[i]


@_compiled
def _mask(dy, y, dx):
    """Write dy where y > 0, dy * 0 elsewhere, to dx; rows. The product keeps NaN, as in the reference."""
    for i in range(y.size):
        dx[i] = dy[i] * (y[i] > 0)


@_compiled
def _add(x, other, y):
    """Write x + other to y; rows."""
    for i in range(x.size):
        y[i] = x[i] + other[i]


class PoolCache(NamedTuple):
    """What max_pool2d_backward needs: where each window's maximum is, channels-first [C, N, OH, OW], and the input's shape."""

    places: np.ndarray[Any, Any]
    shape: Shape
    size: int


def max_pool2d_forward(x: Array, size: int) -> tuple[Array, PoolCache]:
    """Return (y, cache), y [N, C, H // size, W // size]: the maxima of size x size windows.

    The windows do not overlap; a last incomplete row or column of windows is dropped. NaN wins.
    """
    images = _channels_first(x)
    y = np.empty((*images.shape[:2], x.shape[2] // size, x.shape[3] // size), x.dtype)
    places = np.empty(y.shape, np.min_scalar_type(size * size))
    _share(lambda some: _pool(images[some], size, y[some], places[some]), len(y), images.size)
    return y.swapaxes(0, 1), PoolCache(places, x.shape, size)


def max_pool2d_backward(dy: Array, cache: PoolCache) -> Array:
    """Return dx [N, C, H, W]: each dy goes to the first maximum of its window, row by row."""
    count, channels, height, width = cache.shape
    dx = np.empty((channels, count, height, width), dy.dtype)
    dy = _channels_first(dy)
    _share(lambda some: _unpool(dy[some], cache.places[some], cache.size, dx[some]), channels, dx.size)
    return dx.swapaxes(0, 1)


@_compiled
def _pool(x, size, y, places):
    """Write the maxima y [C, N, OH, OW] of x [C, N, H, W] and their places i * size + j in the windows."""
    for c in range(y.shape[0]):
        for n in range(y.shape[1]):
            for r in range(y.shape[2]):
                best, place = y[c, n, r], places[c, n, r]
                if size == 2:
                    _greatest_of_four(x[c, n, 2 * r], x[c, n, 2 * r + 1], best, place)
                else:
                    _greatest(x[c, n, r * size : (r + 1) * size], best, place)


@_compiled
def _beats(value, best):
    """Whether value takes the place of best, which came first: it is greater, or the first NaN."""
    return not value <= best and best == best


@_compiled
def _greatest_of_four(top, bottom, best, place):
    """Write the maxima and places of 2x2 windows of two rows: without branches, for vector instructions."""
    for q in range(best.size):
        value, here = top[2 * q], 0
        for which, other in ((1, top[2 * q + 1]), (2, bottom[2 * q]), (3, bottom[2 * q + 1])):
            wins = _beats(other, value)
            value = other if wins else value
            here = which if wins else here
        best[q] = value
        place[q] = here


@_compiled
def _greatest(x, best, place):
    """Write the maxima and places of the square windows of rows x [size, W]."""
    size = len(x)
    for q in range(best.size):
        value, here = x[0, q * size], 0
        for i in range(size):
            for j in range(size):
                if _beats(x[i, q * size + j], value):
                    value, here = x[i, q * size + j], i * size + j
        best[q] = value
        place[q] = here


@_compiled
def _unpool(dy, places, size, dx):
    """Write dx [C, N, H, W]: each dy [C, N, OH, OW] at its place, zeros elsewhere."""
    channels, count, height, width = dy.shape
    for c in range(channels):
        for n in range(count):
            dx[c, n] = 0
            for r in range(height):
                for q in range(width):
                    place = np.intp(places[c, n, r, q])
                    dx[c, n, r * size + place // size, q * size + place % size] = dy[c, n, r, q]


# Batch normalisation --------------------------------------------------------------------------


class NormCache(NamedTuple):
    """What batch_norm_backward needs: the input as rows [C, M], the mean [C] and 1 / deviation [C]."""

    rows: Array
    mean: Array
    inverse: Array


def batch_norm_forward(x: Array, gamma: Array, beta: Array, eps: float) -> tuple[Array, Array, Array, NormCache]:
    """Normalise x [N, C, H, W] or [N, C] per channel by the batch; return (y, mean, var, cache).

    mean and var are [C]; var is the biased variance over the M = N * H * W values of a channel.

    Raises ValueError where M < 2: one value has no variance.
    """
    rows = _rows(x)
    if rows.shape[1] < 2:
        raise ValueError("batch norm in training needs at least two values per channel")
    y, mean, var, inverse = np.empty_like(rows), *(np.empty(len(rows), x.dtype) for _ in range(3))

    def work(some: slice) -> None:
        _normalise(rows[some], gamma[some], beta[some], eps, y[some], mean[some], var[some], inverse[some])

    _share(work, len(rows), rows.size)
    return _from_rows(y, x.shape), mean, var, NormCache(rows, mean, inverse)


def batch_norm_inference(x: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float) -> Array:
    """Normalise x [N, C, H, W] or [N, C] by the given mean [C] and var [C]."""
    rows = _rows(x)
    y = np.empty_like(rows)
    scale = gamma / np.sqrt(var + eps)
    shift = beta - mean * scale
    _share(lambda some: _scale_rows(rows[some], scale[some], shift[some], y[some]), len(rows), rows.size)
    return _from_rows(y, x.shape)


def batch_norm_backward(dy: Array, cache: NormCache, gamma: Array) -> tuple[Array, Array, Array]:
    """Return (dx, dgamma [C], dbeta [C]) for dy of the input's shape."""
    rows = _rows(dy)
    dx, dgamma, dbeta = np.empty_like(rows), np.empty_like(cache.mean), np.empty_like(cache.mean)
    x, mean, inverse = cache

    def work(some: slice) -> None:
        numbers = mean[some], inverse[some], gamma[some]
        _normalise_backward(rows[some], x[some], *numbers, dx[some], dgamma[some], dbeta[some])

    _share(work, len(rows), rows.size)
    return _from_rows(dx, dy.shape), dgamma, dbeta


def _rows(x: Array) -> Array:
    """Return [N, C, ...] as one row a channel, [C, N * ...]; a view where memory allows it."""
    return _channels_first(x).reshape(x.shape[1], -1)


def _from_rows(rows: Array, shape: Shape) -> Array:
    """Return rows [C, N * ...] as a view of shape [N, C, ...]."""
    return rows.reshape(shape[1], shape[0], *shape[2:]).swapaxes(0, 1)


@_compiled
def _normalise(rows, gamma, beta, eps, y, mean, var, inverse):
    """Write y [C, M] and the statistics [C] of rows [C, M]. Sums are float64; a row stays in the cache over its three passes."""
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


@_compiled
def _scale_rows(rows, scale, shift, y):
    """Write rows [C, M] times scale [C] plus shift [C] to y."""
    for c in range(len(rows)):
        row, target, factor, term = rows[c], y[c], scale[c], shift[c]
        for m in range(row.size):
            target[m] = row[m] * factor + term


@_compiled
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
        share = dbeta[c] / target.dtype.type(row.size)
        slope = dgamma[c] * inverse[c] / target.dtype.type(row.size)
        for m in range(row.size):
            target[m] = (slopes[m] - share - (row[m] - centre) * slope) * scale
