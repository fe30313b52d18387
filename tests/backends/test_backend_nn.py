"""Every backend's layers against `reference.nn` in float64, whatever the shape, the memory order
and the number of threads.

That names and signatures agree is tested in `test_backends`.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dls import backends
from dls.backends import Backend
from dls.tasks import models
from gpu import cupy, numba
from gpu.cupy import device
from gpu.numba import work as numba_work
from reference import nn as reference
from tests.pairwise import pairwise

Array = np.ndarray[Any, Any]

TOLERANCE = {np.float32: 3e-6, np.float64: 1e-13}
"""How far a result may be off, as a share of the largest number in it."""
MODEL_TOLERANCE = 1e-4
"""How far a layer's float32 gradient may be off in a whole model, as a share of its norm."""

DTYPES = (np.float32, np.float64)
CASES = [("numba", 1), ("numba", 3), pytest.param(("cupy", 1), marks=pytest.mark.gpu)]
"""Backends and their threads."""
GEOMETRIES = list(itertools.product((1, 3, 5), (1, 2), (0, 1, 2)))
"""Kernel, stride and padding of a convolution."""
CHANNELS = ((3, 4), (1, 7), (17, 2))
DIRECT = [(1, (32, 32)), (5, (16, 17)), (33, (8, 8)), (3, (1, 1)), (2, (40, 1))]
"""Images and their sizes for 3x3 kernels, which numba sums directly.

One image or many in a row of memory, and a last one that is not full.
"""


def case_id(case: tuple[str, int]) -> str:
    return f"{case[0]}-{case[1]}"


@pytest.fixture(scope="module", params=CASES, ids=case_id)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    name, threads = request.param
    with pytest.MonkeyPatch.context() as patch:
        use_threads(patch, threads)
        yield backends.load(name)


of_the_reference_too = pytest.mark.parametrize(
    "backend", [("numpy", 1), *CASES], ids=case_id, indirect=True, scope="module"
)
"""For tests that say themselves what comes out."""


def use_threads(patch: pytest.MonkeyPatch, threads: int) -> None:
    """So many threads for numba, on a machine of any size, and work for all of them."""
    patch.setattr(numba_work, "_thread_count", lambda: threads)
    patch.setattr(numba_work, "_GRAIN", 1)


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> type[np.floating[Any]]:
    return request.param


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


class Twin:
    """A function of the backend beside that of the reference, with the same numbers, there in
    float64.
    """

    def __init__(self, backend: Backend, name: str) -> None:
        self.backend, self.name = backend, name

    def __call__(self, *args: Any) -> Any:
        """Compare all arrays and numbers that come back; return (the backend's result, the
        reference's).
        """
        mine = getattr(self.backend.nn, self.name)(*(self._put(arg) for arg in args))
        theirs = getattr(reference, self.name)(*(self._widen(arg) for arg in args))
        dtype = next(arg.dtype.type for arg in args if isinstance(arg, np.ndarray))
        pairs = (
            zip(mine, theirs, strict=True)
            if isinstance(mine, tuple) and isinstance(theirs, tuple)
            else [(mine, theirs)]
        )
        for one, two in pairs:
            if isinstance(two, np.ndarray):
                self.close(one, two, dtype)
            elif isinstance(two, float | int):
                assert one == pytest.approx(two, rel=TOLERANCE[dtype])
            else:
                assert (one is None) == (two is None)
        return mine, theirs

    def close(self, mine: Array, theirs: Array, dtype: type) -> None:
        mine = self.backend.ops.to_host(mine)
        assert mine.dtype == dtype and mine.shape == theirs.shape
        assert np.abs(mine - theirs).max(initial=0) <= TOLERANCE[dtype] * np.abs(theirs).max(
            initial=1e-30
        )

    def _put(self, arg: Any) -> Any:
        return self.backend.nn.asarray(arg) if isinstance(arg, np.ndarray) else arg

    def _widen(self, arg: Any) -> Any:
        return (
            arg.astype(np.float64) if isinstance(arg, np.ndarray) and arg.dtype.kind == "f" else arg
        )


def run_backward(
    backend: Backend, name: str, dy: Array, caches: tuple[Any, Any], *rest: Any
) -> None:
    """Compare the backward pass of functions that hand over a cache."""
    twin = Twin(backend, name)
    mine = getattr(backend.nn, name)(
        backend.nn.asarray(dy), caches[0], *(twin._put(arg) for arg in rest)
    )
    theirs = getattr(reference, name)(
        twin._widen(dy), caches[1], *(twin._widen(arg) for arg in rest)
    )
    for one, two in zip(
        *(result if isinstance(result, tuple) else (result,) for result in (mine, theirs)),
        strict=True,
    ):
        assert (one is None) == (two is None)
        if two is not None:
            twin.close(one, two, dy.dtype.type)


def run_weight_gradients(
    backend: Backend, kind: str, dy: Array, caches: tuple[Any, Any], w: Array
) -> None:
    """Compare what is written over rubbish: dw and db, and dw alone where there is no bias."""
    name, twin = f"{kind}_weight_gradients", Twin(backend, "")
    for biases in (len(w), None) if kind == "conv2d" else (len(w),):
        rubbish = (
            np.full(w.shape, np.nan, w.dtype),
            None if biases is None else np.full(biases, np.nan, w.dtype),
        )
        mine, theirs = (
            [twin._put(array) for array in rubbish],
            [twin._widen(array) for array in rubbish],
        )
        getattr(backend.nn, name)(backend.nn.asarray(dy), caches[0], *mine)
        getattr(reference, name)(twin._widen(dy), caches[1], *theirs)
        for one, two in zip(mine, theirs, strict=True):
            if two is not None:
                twin.close(one, two, dy.dtype.type)


def plain(x: Array) -> Array:
    return x


def channels_first(x: Array) -> Array:
    return np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)


def strided(x: Array) -> Array:
    """The same values, every other one of a larger memory, last axis reversed."""
    larger = np.full([2 * side for side in x.shape], np.nan, x.dtype)
    view = larger[tuple([slice(None, None, 2)] * x.ndim)][..., ::-1]
    view[...] = x
    return view


ORDERS = [plain, channels_first, strided]


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize(
    ("geometry", "images", "channels", "dtype"),
    [
        *pairwise(GEOMETRIES, [(1, (5, 8)), (5, (7, 5))], CHANNELS, DTYPES),
        *pairwise([(3, 1, 1)], DIRECT, CHANNELS, DTYPES),
    ],
)
def test_convolution(
    backend: Backend,
    rng: np.random.Generator,
    geometry: tuple[int, int, int],
    images: tuple[int, tuple[int, int]],
    channels: tuple[int, int],
    dtype: type,
) -> None:
    (kernel, stride, padding), (batch, size), (inputs, outputs) = geometry, images, channels
    x = rng.normal(size=(batch, inputs, *size)).astype(dtype)
    w = rng.normal(size=(outputs, inputs, kernel, kernel)).astype(dtype)
    for b in (None, rng.normal(size=outputs).astype(dtype)):
        mine, theirs = Twin(backend, "conv2d_forward")(x, w, b, stride, padding)
    dy = rng.normal(size=theirs[0].shape).astype(dtype)
    run_weight_gradients(backend, "conv2d", dy, (mine[1], theirs[1]), w)
    run_backward(backend, "conv2d_input_gradient", dy, (mine[1], theirs[1]), w)


@of_the_reference_too
@pytest.mark.parametrize(("side", "padding"), [(4, 0), (1, 1)])
def test_a_kernel_larger_than_the_image_is_refused(
    backend: Backend, side: int, padding: int
) -> None:
    x, w = (backend.nn.asarray(np.ones((1, 1, n, n), np.float32)) for n in (side, 5))
    with pytest.raises(ValueError, match="does not fit"):
        backend.nn.conv2d_forward(x, w, None, 1, padding)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("channels", "side", "batch"), [(4, 9, 3), (70, 6, 5), (130, 2, 4)])
def test_convolution_of_any_memory_order_and_many_channels(
    backend: Backend,
    rng: np.random.Generator,
    order: Callable[[Array], Array],
    channels: int,
    side: int,
    batch: int,
) -> None:
    x = order(rng.normal(size=(batch, channels, side, side)).astype(np.float32))
    w = order(rng.normal(size=(channels + 1, channels, 3, 3)).astype(np.float32))
    mine, theirs = Twin(backend, "conv2d_forward")(x, w, None, 1, 1)
    dy = order(rng.normal(size=theirs[0].shape).astype(np.float32))
    run_weight_gradients(backend, "conv2d", dy, (mine[1], theirs[1]), w)
    run_backward(backend, "conv2d_input_gradient", dy, (mine[1], theirs[1]), w)


def test_linear(backend: Backend, dtype: type, rng: np.random.Generator) -> None:
    for batch, inputs, outputs in ((1, 3, 5), (5, 40, 1), (33, 7, 200)):
        x, w, b = (
            rng.normal(size=size).astype(dtype)
            for size in ((batch, inputs), (outputs, inputs), outputs)
        )
        Twin(backend, "linear_forward")(x, w, b)
        dy = rng.normal(size=(batch, outputs)).astype(dtype)
        Twin(backend, "linear_input_gradient")(dy, w)
        run_weight_gradients(
            backend, "linear", dy, (backend.nn.asarray(x), x.astype(np.float64)), w
        )


@pytest.mark.parametrize(
    ("order", "shape", "dtype"),
    pairwise(ORDERS, [(5, 3, 7, 5), (1, 2, 1, 1), (2, 3, 70, 41), (5, 6), (1, 1)], DTYPES),
)
def test_relu_and_residual_sum(
    backend: Backend,
    dtype: type,
    rng: np.random.Generator,
    order: Callable[[Array], Array],
    shape: tuple[int, ...],
) -> None:
    x, dy = (
        order(rng.integers(-2, 3, shape).astype(dtype)),
        order(rng.normal(size=shape).astype(dtype)),
    )
    y = np.asarray(Twin(backend, "relu_forward")(x)[1], dtype)
    Twin(backend, "relu_backward")(dy, order(y))
    Twin(backend, "add_forward")(x, dy)
    Twin(backend, "add_backward")(dy)


@pytest.mark.parametrize(
    ("order", "size", "dtype"),
    pairwise(ORDERS, [1, 2, 3, 16], DTYPES),
)
def test_max_pool_sends_the_gradient_to_the_first_of_equals(
    backend: Backend,
    dtype: type,
    rng: np.random.Generator,
    order: Callable[[Array], Array],
    size: int,
) -> None:
    for batch in (1, 5):
        x = order(rng.integers(0, 3, (batch, 3, 2 * size + 1, 3 * size)).astype(dtype))
        mine, theirs = Twin(backend, "max_pool2d_forward")(x, size)
        dy = order(rng.normal(size=theirs[0].shape).astype(dtype))
        run_backward(backend, "max_pool2d_backward", dy, (mine[1], theirs[1]))


@pytest.mark.parametrize("order", ORDERS)
def test_global_average_pool_flatten_and_shortcut(
    backend: Backend, dtype: type, rng: np.random.Generator, order: Callable[[Array], Array]
) -> None:
    x = order(rng.normal(size=(5, 3, 7, 4)).astype(dtype))
    Twin(backend, "global_avg_pool_forward")(x)
    Twin(backend, "global_avg_pool_backward")(rng.normal(size=(5, 3)).astype(dtype), x.shape)
    Twin(backend, "flatten_forward")(x)
    Twin(backend, "flatten_backward")(rng.normal(size=(5, 3 * 7 * 4)).astype(dtype), x.shape)
    for channels, stride in ((3, 2), (6, 2), (4, 1)):
        y = Twin(backend, "shortcut_forward")(x, channels, stride)[1]
        Twin(backend, "shortcut_backward")(
            order(rng.normal(size=y.shape).astype(dtype)), x.shape, stride
        )


@pytest.mark.parametrize(
    ("order", "shape", "dtype"),
    pairwise(ORDERS, [(5, 3, 7, 5), (1, 20, 3, 2), (2, 2, 90, 81), (5, 6), (8, 1)], DTYPES),
)
def test_batch_norm(
    backend: Backend,
    dtype: type,
    rng: np.random.Generator,
    order: Callable[[Array], Array],
    shape: tuple[int, ...],
) -> None:
    x, dy = (order(rng.normal(size=shape).astype(dtype)) for _ in range(2))
    gamma, beta = rng.normal(size=(2, shape[1])).astype(dtype)
    mine, theirs = Twin(backend, "batch_norm_forward")(x, gamma, beta, 1e-5)
    run_backward(backend, "batch_norm_backward", dy, (mine[3], theirs[3]), gamma)
    Twin(backend, "batch_norm_inference")(
        x, gamma, beta, *(part.astype(dtype) for part in theirs[1:3]), 1e-5
    )


@of_the_reference_too
def test_batch_norm_of_a_large_mean_keeps_the_variance(
    backend: Backend, rng: np.random.Generator
) -> None:
    x = (1000 + rng.integers(-3, 4, (5, 2, 40, 40))).astype(np.float32)
    one, zero = np.ones(2, np.float32), np.zeros(2, np.float32)
    y, _, var, _ = backend.nn.batch_norm_forward(*map(backend.nn.asarray, (x, one, zero)), 1e-5)
    expected = reference.batch_norm_forward(x.astype(np.float64), one, zero, 1e-5)
    np.testing.assert_allclose(backend.ops.to_host(var), expected[2], rtol=1e-6)
    # float32 holds a mean near 1000 to within 3e-5, and y moves along
    np.testing.assert_allclose(backend.ops.to_host(y), expected[0], atol=1e-4)


@of_the_reference_too
def test_batch_norm_of_one_value_is_refused(backend: Backend) -> None:
    one = backend.nn.asarray(np.ones(3, np.float32))
    with pytest.raises(ValueError, match="at least two values"):
        backend.nn.batch_norm_forward(
            backend.nn.asarray(np.ones((1, 3), np.float32)), one, one, 1e-5
        )


def test_softmax_cross_entropy(backend: Backend, dtype: type, rng: np.random.Generator) -> None:
    Twin(backend, "softmax_cross_entropy")(
        rng.normal(size=(5, 7)).astype(dtype), rng.integers(0, 7, 5)
    )


# ---------------------------------------------------------------- models


@pytest.mark.usefixtures("gpu_or_host")
def test_weights_are_drawn_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a scalar of the device's library cannot become a number of numpy's."""
    monkeypatch.setattr(device.current(), "xp", SimpleNamespace(sqrt=lambda x: object()))
    one, two = (nn.he_normal(np.random.default_rng(0), (3, 4), 4) for nn in (cupy.Nn(), reference))
    assert one.tobytes() == two.tobytes()


def build(name: str, nn: Any, dtype: type = np.float32) -> models.Model:
    return models.build(
        name, (1, 28, 28) if name == "lenet" else (3, 32, 32), 10, 3, nn, dtype=dtype
    )


def images_for(model: models.Model, count: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(5)
    return rng.normal(size=(count, *model.input_size)), rng.integers(0, 10, count)


def train_once(model: models.Model, nn: Any, count: int = 2) -> tuple[float, Array]:
    """One forward and backward pass; return the loss and the gradients."""
    images, labels = images_for(model, count)
    loss, dlogits, _ = nn.softmax_cross_entropy(
        model.forward(images.astype(model.parameters.dtype), training=True), labels
    )
    model.backward(dlogits, lambda layer: None)
    return loss, model.gradients


@functools.cache
def trained_reference(name: str) -> tuple[models.Model, float, Array]:
    """The model in float64 with its loss and gradients, for all backends."""
    model = build(name, reference, np.float64)
    return model, *train_once(model, reference)


@pytest.mark.parametrize("name", ["lenet", "cnn", "resnet20", "vgg16"])
def test_gradients_of_a_model(backend: Backend, name: str) -> None:
    mine, (theirs, expected_loss, expected) = build(name, backend.nn), trained_reference(name)
    loss, gradients = train_once(mine, backend.nn)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    gradients = backend.ops.to_host(gradients)
    for start, stop in itertools.pairwise(theirs.offsets):
        error = np.linalg.norm(gradients[start:stop] - expected[start:stop])
        assert error <= MODEL_TOLERANCE * np.linalg.norm(expected[start:stop])
    statistics = backend.ops.to_host(mine.statistics)
    np.testing.assert_allclose(statistics, theirs.statistics, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_the_same_input_gives_the_same_bits(backend: Backend, name: str) -> None:
    losses, gradients = zip(
        *(train_once(build(name, backend.nn), backend.nn, 5) for _ in range(2)), strict=True
    )
    assert losses[0] == losses[1]
    assert (
        backend.ops.to_host(gradients[0]).tobytes() == backend.ops.to_host(gradients[1]).tobytes()
    )


@pytest.mark.parametrize("name", ["cnn", "resnet20"])
def test_threads_of_numba_change_no_bits(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    results = []
    for threads in (1, 2, 5):
        use_threads(monkeypatch, threads)
        results.append(train_once(build(name, numba.Nn()), numba.Nn(), 5)[1].tobytes())
    assert len(set(results)) == 1


@of_the_reference_too
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["lenet", "resnet20"])
def test_a_broken_image_gives_a_broken_loss(backend: Backend, name: str, bad: float) -> None:
    model = build(name, backend.nn)
    images, labels = images_for(model, 2)
    images[0, 0, 5, 5] = bad
    with np.errstate(all="ignore"):
        logits = model.forward(images.astype(np.float32), training=True)
    loss, dlogits, correct = backend.nn.softmax_cross_entropy(logits, labels)
    assert math.isnan(loss) and correct == 0
    assert np.isnan(backend.ops.to_host(dlogits)).all()


def test_an_error_in_a_helping_thread_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    use_threads(monkeypatch, 3)

    def work(part: int) -> None:
        raise RuntimeError("broken part")

    with pytest.raises(RuntimeError, match="broken part"):
        numba_work.team.run(work, 8)
