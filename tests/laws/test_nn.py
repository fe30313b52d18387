"""Laws of reference.nn: every backward pass is the derivative of its forward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from reference import nn

Array = NDArray[np.floating[Any]]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(autouse=True)
def warnings_are_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def numerical_gradient(f: Callable[[], float], x: Array, step: float = 1e-6) -> Array:
    """Return the central differences of f with respect to x, which is changed and put back."""
    gradient = np.empty_like(x)
    for index in np.ndindex(x.shape):
        value = x[index]
        x[index] = value + step
        above = f()
        x[index] = value - step
        below = f()
        x[index] = value
        gradient[index] = (above - below) / (2 * step)
    return gradient


def assert_gradients(f: Callable[[], float], pairs: list[tuple[Array, Array]]) -> None:
    """Compare each given (gradient, x) with the differences of f in x."""
    for gradient, x in pairs:
        assert gradient.shape == x.shape
        np.testing.assert_allclose(gradient, numerical_gradient(f, x), rtol=1e-6, atol=1e-7)


def naive_conv2d(x: Array, w: Array, b: Array, stride: int, padding: int) -> Array:
    """Convolve by the definition, one output value at a time."""
    x = np.pad(x, [(0, 0), (0, 0), (padding, padding), (padding, padding)])
    kernel = w.shape[-1]
    height = (x.shape[2] - kernel) // stride + 1
    width = (x.shape[3] - kernel) // stride + 1
    y = np.empty((len(x), len(w), height, width))
    for n, d, i, j in np.ndindex(y.shape):
        window = x[n, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
        y[n, d, i, j] = (window * w[d]).sum() + b[d]
    return y


CONVOLUTIONS = [
    (kernel, stride, padding, size)
    for kernel in (1, 3, 5)
    for stride in (1, 2)
    for padding in (0, 1, 2)
    for size in ((5, 6), (7, 5))
]


# Linear and convolution


def weight_gradients(kind: str, dy: Array, cache: Any, w: Array) -> tuple[Array, Array]:
    """(dw, db) of a linear layer or a convolution, written over rubbish."""
    dw, db = np.full_like(w, np.nan), np.full(len(w), np.nan, w.dtype)
    getattr(nn, f"{kind}_weight_gradients")(dy, cache, dw, db)
    return dw, db


def test_linear_is_the_matrix_product_plus_bias(rng: np.random.Generator) -> None:
    x, w, b = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), rng.normal(size=5)
    expected = [[sum(x[n] * w[d]) + b[d] for d in range(5)] for n in range(4)]
    np.testing.assert_allclose(nn.linear_forward(x, w, b), expected)


def test_linear_backward_is_the_derivative(rng: np.random.Generator) -> None:
    x, w, b = rng.normal(size=(4, 3)), rng.normal(size=(5, 3)), rng.normal(size=5)
    dy = rng.normal(size=(4, 5))
    dw, db = weight_gradients("linear", dy, x, w)
    dx = nn.linear_input_gradient(dy, w)
    assert_gradients(
        lambda: float((dy * nn.linear_forward(x, w, b)).sum()), [(dx, x), (dw, w), (db, b)]
    )


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), CONVOLUTIONS)
def test_convolution_follows_its_definition(
    rng: np.random.Generator, kernel: int, stride: int, padding: int, size: tuple[int, int]
) -> None:
    x, w = rng.normal(size=(2, 3, *size)), rng.normal(size=(4, 3, kernel, kernel))
    b = rng.normal(size=4)
    y, _ = nn.conv2d_forward(x, w, b, stride, padding)
    np.testing.assert_allclose(y, naive_conv2d(x, w, b, stride, padding), atol=1e-12)
    without, _ = nn.conv2d_forward(x, w, None, stride, padding)
    np.testing.assert_allclose(without + b[:, None, None], y, atol=1e-12)


@pytest.mark.parametrize(("kernel", "stride", "padding", "size"), CONVOLUTIONS)
def test_convolution_backward_is_the_derivative(
    rng: np.random.Generator, kernel: int, stride: int, padding: int, size: tuple[int, int]
) -> None:
    x, w = rng.normal(size=(2, 2, *size)), rng.normal(size=(2, 2, kernel, kernel))
    b = rng.normal(size=2)
    y, cache = nn.conv2d_forward(x, w, b, stride, padding)
    dy = rng.normal(size=y.shape)
    dw, db = weight_gradients("conv2d", dy, cache, w)
    dx = nn.conv2d_input_gradient(dy, cache, w)
    assert_gradients(
        lambda: float((dy * nn.conv2d_forward(x, w, b, stride, padding)[0]).sum()),
        [(dx, x), (dw, w), (db, b)],
    )


def test_convolution_without_bias_gives_the_same_weight_gradient(rng: np.random.Generator) -> None:
    x, w = rng.normal(size=(2, 3, 6, 6)), rng.normal(size=(4, 3, 3, 3))
    y, cache = nn.conv2d_forward(x, w, None, 1, 1)
    dw = np.full_like(w, np.nan)
    nn.conv2d_weight_gradients(y, cache, dw, None)
    np.testing.assert_array_equal(dw, weight_gradients("conv2d", y, cache, w)[0])


def test_a_kernel_larger_than_the_image_is_refused() -> None:
    with pytest.raises(ValueError, match="5x5 kernel does not fit"):
        nn.conv2d_forward(np.zeros((1, 1, 4, 6)), np.zeros((1, 1, 5, 5)), None, 1, 0)


# Activation and pooling


def test_relu_backward_is_the_derivative(rng: np.random.Generator) -> None:
    x, dy = rng.normal(size=(3, 4, 2, 2)), rng.normal(size=(3, 4, 2, 2))
    dx = nn.relu_backward(dy, nn.relu_forward(x))
    assert_gradients(lambda: float((dy * nn.relu_forward(x)).sum()), [(dx, x)])


def test_relu_is_flat_at_zero_of_either_sign() -> None:
    x = np.array([0.0, -0.0])
    np.testing.assert_array_equal(nn.relu_backward(np.ones(2), nn.relu_forward(x)), [0, 0])


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("shape", [(2, 3, 6, 6), (2, 3, 7, 5), (1, 2, 3, 8)])
def test_max_pool_backward_is_the_derivative(
    rng: np.random.Generator, size: int, shape: tuple[int, ...]
) -> None:
    x = rng.permutation(np.prod(shape)).reshape(shape).astype(np.float64)
    y, cache = nn.max_pool2d_forward(x, size)
    assert y.shape == (*shape[:2], shape[2] // size, shape[3] // size)
    dy = rng.normal(size=y.shape)
    dx = nn.max_pool2d_backward(dy, cache)
    expected = numerical_gradient(
        lambda: float((dy * nn.max_pool2d_forward(x, size)[0]).sum()), x, step=1e-3
    )
    np.testing.assert_allclose(dx, expected, atol=1e-6)


def test_max_pool_sends_the_gradient_to_the_first_maximum() -> None:
    x = np.array([[[[1.0, 2.0, 0.0, -0.0], [2.0, 2.0, -1.0, 0.0]]]])
    y, cache = nn.max_pool2d_forward(x, 2)
    np.testing.assert_array_equal(y, [[[[2, 0]]]])
    dx = nn.max_pool2d_backward(np.array([[[[5.0, 7.0]]]]), cache)
    np.testing.assert_array_equal(dx, [[[[0, 5, 7, 0], [0, 0, 0, 0]]]])


def test_max_pool_conserves_the_gradient_under_ties(rng: np.random.Generator) -> None:
    x = rng.integers(0, 2, size=(3, 4, 7, 9)).astype(np.float64)
    y, cache = nn.max_pool2d_forward(x, 2)
    dy = rng.integers(1, 9, size=y.shape).astype(np.float64)
    dx = nn.max_pool2d_backward(dy, cache)
    sums = dx[:, :, :6, :8].reshape(3, 4, 3, 2, 4, 2).sum(axis=(3, 5))
    np.testing.assert_array_equal(sums, dy)
    assert np.count_nonzero(dx) == dy.size


@pytest.mark.parametrize("place", range(4))
def test_max_pool_and_relu_let_nan_through(place: int) -> None:
    x = np.zeros((1, 1, 2, 2))
    x.flat[place] = np.nan
    assert np.isnan(nn.max_pool2d_forward(nn.relu_forward(x), 2)[0]).all()


def test_global_avg_pool_backward_is_the_derivative(rng: np.random.Generator) -> None:
    x, dy = rng.normal(size=(2, 3, 4, 5)), rng.normal(size=(2, 3))
    dx = nn.global_avg_pool_backward(dy, x.shape)
    assert_gradients(lambda: float((dy * nn.global_avg_pool_forward(x)).sum()), [(dx, x)])


# Batch normalisation

NORM_SHAPES = [(6, 3), (2, 3, 4, 5), (1, 2, 3, 3)]


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_batch_norm_backward_is_the_derivative(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    x, dy = 3 + 2 * rng.normal(size=shape), rng.normal(size=shape)
    gamma, beta = rng.normal(size=shape[1]), rng.normal(size=shape[1])
    cache = nn.batch_norm_forward(x, gamma, beta, 1e-5)[3]
    dx, dgamma, dbeta = nn.batch_norm_backward(dy, cache, gamma)
    assert_gradients(
        lambda: float((dy * nn.batch_norm_forward(x, gamma, beta, 1e-5)[0]).sum()),
        [(dx, x), (dgamma, gamma), (dbeta, beta)],
    )


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_batch_norm_gives_each_channel_mean_beta_and_deviation_gamma(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    x = 3 + 2 * rng.normal(size=shape)
    gamma, beta = rng.uniform(1, 2, size=shape[1]), rng.normal(size=shape[1])
    y, mean, var, _ = nn.batch_norm_forward(x, gamma, beta, 0.0)
    axes = (0, *range(2, len(shape)))
    np.testing.assert_allclose(mean, x.mean(axis=axes))
    np.testing.assert_allclose(var, x.var(axis=axes))
    np.testing.assert_allclose(y.mean(axis=axes), beta, atol=1e-12)
    np.testing.assert_allclose(y.std(axis=axes), gamma)


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_batch_norm_inference_with_the_batch_statistics_is_training(
    rng: np.random.Generator, shape: tuple[int, ...]
) -> None:
    x = 3 + 2 * rng.normal(size=shape)
    gamma, beta = rng.normal(size=shape[1]), rng.normal(size=shape[1])
    y, mean, var, _ = nn.batch_norm_forward(x, gamma, beta, 1e-5)
    np.testing.assert_allclose(nn.batch_norm_inference(x, gamma, beta, mean, var, 1e-5), y)


def test_batch_norm_of_one_value_is_refused_and_of_a_constant_is_beta() -> None:
    one, zero = np.ones(2), np.zeros(2)
    with pytest.raises(ValueError, match="at least two values"):
        nn.batch_norm_forward(np.ones((1, 2)), one, zero, 1e-5)
    y, _, var, cache = nn.batch_norm_forward(np.ones((4, 2)), one, zero + 3, 1e-5)
    np.testing.assert_array_equal(y, np.full((4, 2), 3.0))
    np.testing.assert_array_equal(var, zero)
    assert np.isfinite(nn.batch_norm_backward(y, cache, one)[0]).all()


# Shape and shortcut


def test_flatten_backward_undoes_flatten(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3, 2, 4, 5)).swapaxes(0, 1)
    y = nn.flatten_forward(x)
    assert y.shape == (2, 60)
    np.testing.assert_array_equal(nn.flatten_backward(y, x.shape), x)


def test_add_backward_gives_the_gradient_to_both(rng: np.random.Generator) -> None:
    x, shortcut, dy = (rng.normal(size=(2, 3)) for _ in range(3))
    dx, dshortcut = nn.add_backward(dy)
    assert_gradients(
        lambda: float((dy * nn.add_forward(x, shortcut)).sum()), [(dx, x), (dshortcut, shortcut)]
    )


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [3, 4, 6])
@pytest.mark.parametrize("size", [(4, 6), (5, 3)])
def test_shortcut_backward_is_the_derivative(
    rng: np.random.Generator, stride: int, channels: int, size: tuple[int, int]
) -> None:
    x = rng.normal(size=(2, 3, *size))
    y = nn.shortcut_forward(x, channels, stride)
    np.testing.assert_array_equal(y[:, :3], x[:, :, ::stride, ::stride])
    np.testing.assert_array_equal(y[:, 3:], 0)
    dy = rng.normal(size=y.shape)
    dx = nn.shortcut_backward(dy, x.shape, stride)
    assert_gradients(
        lambda: float((dy * nn.shortcut_forward(x, channels, stride)).sum()), [(dx, x)]
    )


# Loss


def test_cross_entropy_gradient_is_the_derivative(rng: np.random.Generator) -> None:
    logits, labels = 3 * rng.normal(size=(5, 4)), np.array([0, 3, 1, 1, 2])
    _, dlogits, _ = nn.softmax_cross_entropy(logits, labels)
    assert_gradients(lambda: nn.softmax_cross_entropy(logits, labels)[0], [(dlogits, logits)])


def test_cross_entropy_of_equal_logits_is_log_classes() -> None:
    loss, dlogits, correct = nn.softmax_cross_entropy(np.zeros((3, 8)), np.array([0, 5, 0]))
    assert loss == pytest.approx(np.log(8))
    np.testing.assert_allclose(dlogits.sum(axis=1), 0, atol=1e-15)
    assert correct == 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_cross_entropy_is_stable_for_huge_logits(dtype: type[np.floating[Any]]) -> None:
    logits = np.array([[1e4, -1e4], [1e4, -1e4], [1e4, 1e4], [-1e4, -1e4]], dtype)
    loss, dlogits, correct = nn.softmax_cross_entropy(logits, np.array([0, 1, 0, 1]))
    assert loss == pytest.approx((0 + 2e4 + 2 * np.log(2)) / 4)
    np.testing.assert_allclose(
        dlogits, np.array([[0, 0], [1, -1], [-0.5, 0.5], [0.5, -0.5]]) / 4, atol=1e-12
    )
    assert dlogits.dtype == dtype
    assert correct == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1])
def test_a_logit_that_is_not_finite_gives_a_loss_that_is_not_finite(
    bad: float, column: int
) -> None:
    logits = np.zeros((4, 2), np.float32)
    logits[2, column] = bad
    loss, dlogits, correct = nn.softmax_cross_entropy(logits, np.zeros(4, np.int64))
    assert not np.isfinite(loss)
    assert not np.isfinite(dlogits).any()
    assert correct == 0


def test_logits_at_the_ends_of_float32_give_an_infinite_loss_quietly() -> None:
    logits = np.array([[3e38, -3e38]], np.float32)
    assert nn.softmax_cross_entropy(logits, np.array([1]))[0] == np.inf


# Initialisation and dtype


@pytest.mark.parametrize(("shape", "fan_in"), [((400, 300), 300), ((64, 32, 5, 5), 800)])
def test_he_normal_has_mean_zero_and_variance_two_over_fan_in(
    rng: np.random.Generator, shape: tuple[int, ...], fan_in: int
) -> None:
    w = nn.he_normal(rng, shape, fan_in)
    std = np.sqrt(2 / fan_in)
    assert w.shape == shape
    assert w.dtype == np.float32
    assert abs(w.mean()) < 4 * std / np.sqrt(w.size)
    assert w.std() == pytest.approx(std, rel=4 / np.sqrt(2 * w.size))


def every_result(x: Array, rng: np.random.Generator) -> list[Array]:
    """Run every function on images x [N, C, H, W] with dtype kept; return all arrays."""
    channels = x.shape[1]
    w = rng.normal(size=(4, channels, 3, 3)).astype(x.dtype)
    b = np.ones(4, x.dtype)
    convolved, conv_cache = nn.conv2d_forward(x, w, b, 2, 1)
    active = nn.relu_forward(convolved)
    normal, mean, var, norm_cache = nn.batch_norm_forward(active, b, b, 1e-5)
    pooled, pool_cache = nn.max_pool2d_forward(normal, 2)
    flat = nn.flatten_forward(pooled)
    matrix = rng.normal(size=(4, flat.shape[1])).astype(x.dtype)
    logits = nn.linear_forward(flat, matrix, b)
    _, dlogits, _ = nn.softmax_cross_entropy(logits, np.arange(len(x)) % 4)
    linear = (
        nn.linear_input_gradient(dlogits, matrix),
        *weight_gradients("linear", dlogits, flat, matrix),
    )
    dpooled = nn.flatten_backward(linear[0], pooled.shape)
    dnormal = nn.max_pool2d_backward(dpooled, pool_cache)
    dactive = nn.batch_norm_backward(dnormal, norm_cache, b)
    dconvolved = nn.relu_backward(dactive[0], active)
    dw, db = weight_gradients("conv2d", dconvolved, conv_cache, w)
    dx = nn.conv2d_input_gradient(dconvolved, conv_cache, w)
    mean_pool = nn.global_avg_pool_forward(active)
    shortcut = nn.shortcut_forward(x, 5, 2)
    return [
        *(convolved, active, normal, mean, var, pooled, flat, logits, dlogits, *linear),
        *(dpooled, dnormal, *dactive, dconvolved, dx, dw, db, mean_pool, shortcut),
        nn.batch_norm_inference(active, b, b, mean, var, 1e-5),
        nn.global_avg_pool_backward(mean_pool, active.shape),
        nn.shortcut_backward(shortcut, x.shape, 2),
        nn.add_forward(x, x),
        nn.asarray(x),
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_function_keeps_the_dtype(
    rng: np.random.Generator, dtype: type[np.floating[Any]]
) -> None:
    results = every_result(rng.normal(size=(2, 3, 9, 11)).astype(dtype), rng)
    assert {result.dtype for result in results} == {np.dtype(dtype)}


def test_the_same_input_gives_the_same_bits_in_any_memory_order(rng: np.random.Generator) -> None:
    x = rng.normal(size=(5, 3, 16, 16)).astype(np.float32)
    channels_first = np.ascontiguousarray(x.swapaxes(0, 1)).swapaxes(0, 1)
    once, twice = (every_result(v, np.random.default_rng(1)) for v in (x, channels_first))
    for a, b in zip(once, twice, strict=True):
        np.testing.assert_array_equal(a, b)


def test_no_function_changes_its_arguments(rng: np.random.Generator) -> None:
    x = rng.normal(size=(2, 3, 8, 8))
    x.flags.writeable = False
    every_result(x, rng)
