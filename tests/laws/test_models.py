"""Laws of dls.tasks.models: views, order of completion, gradients, sizes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dls.tasks import models
from reference import nn
from tests.pairwise import pairwise

Array = NDArray[np.floating[Any]]
Size = tuple[int, int, int]

CIFAR = (3, 32, 32)


def build(name: str, size: Size = CIFAR, seed: int = 0, **options: Any) -> models.Model:
    return models.build(name, size, 10, seed, nn, **options)


@functools.cache
def built(name: str) -> models.Model:
    """For tests that only look."""
    return build(name)


def batch(model: models.Model, count: int = 2, seed: int = 1) -> tuple[Array, NDArray[np.int64]]:
    """Return images of the model's dtype and labels."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, *model.input_size)).astype(model.parameters.dtype)
    return images, rng.integers(0, 10, count)


def train_once(model: models.Model, count: int = 2) -> tuple[float, list[int]]:
    """Run forward and backward; return the loss and the layers in order of completion."""
    images, labels = batch(model, count)
    order: list[int] = []
    loss, dlogits, _ = nn.softmax_cross_entropy(model.forward(images, training=True), labels)
    model.backward(dlogits, order.append)
    return loss, order


# Sizes


@pytest.mark.parametrize(
    ("name", "size", "parameters", "layers", "statistics"),
    [
        ("mlp", (1, 8, 8), 64 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10, 3, 0),
        ("lenet", (1, 28, 28), 61_706, 5, 0),
        ("lenet", (3, 32, 32), 83_126, 5, 0),
        ("cnn", CIFAR, 814_122, 8, 0),
        ("vgg16", CIFAR, 14_724_042, 27, 2 * 4_224),
        ("resnet20", CIFAR, 269_722, 39, 1_376),
    ],
)
def test_a_model_has_the_known_number_of_parameters(
    name: str, size: Size, parameters: int, layers: int, statistics: int
) -> None:
    model = build(name, size)
    assert model.parameters.size == model.gradients.size == parameters
    assert model.statistics.size == statistics
    assert len(model.layers) == layers


@pytest.mark.parametrize("name", models.names())
def test_offsets_are_the_running_sum_of_the_layer_sizes(name: str) -> None:
    model = built(name)
    assert model.offsets.dtype == np.int64
    assert model.offsets[0] == 0
    assert model.offsets[-1] == model.parameters.size
    assert np.diff(model.offsets).tolist() == [layer.size for layer in model.layers]
    assert len({layer.name for layer in model.layers}) == len(model.layers)


@pytest.mark.parametrize("name", models.names())
def test_a_layer_knows_its_size_from_its_shape(name: str) -> None:
    for layer in built(name).layers:
        if layer.kind == "batch_norm":
            assert layer.size == 2 * layer.inputs == 2 * layer.outputs
            assert layer.kernel == layer.positions == 0
        else:
            weights = layer.inputs * layer.outputs * layer.kernel**2
            assert layer.size in (weights, weights + layer.outputs)
            assert layer.positions >= 1


def test_lenet_layers_are_described_as_in_the_theory() -> None:
    info = models.LayerInfo
    assert build("lenet", (1, 28, 28)).layers == (
        info("conv1", "conv2d", 156, 1, 6, 5, 784, 1),
        info("conv2", "conv2d", 2_416, 6, 16, 5, 100, 6),
        info("linear1", "linear", 48_120, 400, 120, 1, 1, 16),
        info("linear2", "linear", 10_164, 120, 84, 1, 1, 120),
        info("linear3", "linear", 850, 84, 10, 1, 1, 84),
    )


def test_only_the_model_with_shortcuts_is_no_chain() -> None:
    assert [name for name in models.names() if not built(name).chain] == ["resnet20"]


def test_mlp_takes_any_hidden_widths() -> None:
    outputs = [layer.outputs for layer in build("mlp", widths=(7, 5, 3)).layers]
    assert outputs == [7, 5, 3, 10]
    assert len(build("mlp", widths=()).layers) == 1


# Initialisation


@pytest.mark.parametrize("name", models.names())
def test_weights_start_he_normal_biases_zero_and_norms_neutral(name: str) -> None:
    model = built(name)
    for layer, start in zip(model.layers, model.offsets, strict=False):
        values = model.parameters[start : start + layer.size]
        if layer.kind == "batch_norm":
            assert values.tolist() == [1] * layer.inputs + [0] * layer.outputs
            continue
        fan_in = layer.inputs * layer.kernel**2
        weights, bias = np.split(values, [fan_in * layer.outputs])
        assert weights.std() == pytest.approx(
            np.sqrt(2 / fan_in), rel=4 / np.sqrt(2 * weights.size)
        )
        assert not bias.any()


# Training


@pytest.mark.parametrize(
    ("name", "side", "channels"), pairwise(models.names(), (8, 28, 32), (1, 3))
)
def test_every_model_trains_on_every_image_size(name: str, side: int, channels: int) -> None:
    model = build(name, (channels, side, side))
    images, _ = batch(model)
    logits = model.forward(images, training=False)
    assert logits.shape == (2, 10)
    assert logits.dtype == np.float32
    loss, order = train_once(model)
    assert np.isfinite(loss)
    assert order == list(reversed(range(len(model.layers))))
    assert np.isfinite(model.gradients).all()


@pytest.mark.parametrize("name", models.names())
def test_a_layer_is_announced_once_complete_and_not_touched_again(name: str) -> None:
    model = build(name)
    model.gradients[:] = np.nan
    images, labels = batch(model)
    _, dlogits, _ = nn.softmax_cross_entropy(model.forward(images, training=True), labels)
    order, seen = [], np.full_like(model.gradients, np.nan)

    def on_gradient(layer: int) -> None:
        order.append(layer)
        start, stop = model.offsets[layer : layer + 2]
        assert np.isfinite(model.gradients[start:]).all()
        assert np.isnan(model.gradients[:start]).all()
        seen[start:stop] = model.gradients[start:stop]

    model.backward(dlogits, on_gradient)
    assert order == list(reversed(range(len(model.layers))))
    np.testing.assert_array_equal(seen, model.gradients)


@pytest.mark.parametrize("name", models.names())
def test_the_same_seed_gives_the_same_bits_at_the_start_and_later(name: str) -> None:
    a, b = build(name, seed=3), build(name, seed=3)
    assert a.parameters.dtype == a.gradients.dtype == a.statistics.dtype == np.float32
    assert a.parameters.tobytes() == b.parameters.tobytes()
    assert a.statistics.tobytes() == b.statistics.tobytes()
    assert a.parameters.tobytes() != built(name).parameters.tobytes()
    for model in (a, b):
        for _ in range(2):
            train_once(model, count=3)
            model.parameters -= np.float32(0.01) * model.gradients
    assert a.parameters.tobytes() == b.parameters.tobytes()
    assert a.gradients.tobytes() == b.gradients.tobytes()
    assert a.statistics.tobytes() == b.statistics.tobytes()


@pytest.mark.parametrize("name", models.names())
def test_the_flat_buffers_are_the_model(name: str) -> None:
    model, other = build(name, seed=1), build(name, seed=2)
    images, _ = batch(model)
    train_once(model)
    other.parameters[:] = model.parameters
    other.statistics[:] = model.statistics
    expected = model.forward(images, training=False)
    np.testing.assert_array_equal(other.forward(images, training=False), expected)
    other.parameters[:] = 0
    np.testing.assert_array_equal(other.forward(images, training=False), 0)


def every_module(net: models.Builder, classes: int, _: Sequence[int]) -> None:
    """Use every module once, small enough for finite differences over all parameters."""

    def body(inner: models.Builder) -> None:
        inner.conv(4, kernel=3, stride=2, padding=1, bias=False).batch_norm().relu()
        inner.conv(4, kernel=3, padding=1)

    net.conv(2, kernel=3, padding=1).relu().max_pool(2)
    net.residual(body, stride=2).relu()
    net.residual(lambda inner: inner.conv(4, kernel=1), stride=1)
    net.global_avg_pool().linear(classes)


def shortcut_first(net: models.Builder, classes: int, _: Sequence[int]) -> None:
    """Begin with a shortcut, where the first convolution is not alone with the images."""
    net.residual(lambda inner: inner.conv(3, kernel=3, stride=2, padding=1), stride=2)
    net.max_pool(2).linear(classes)


def gradient_of_loss(model: models.Model, places: NDArray[np.int64]) -> tuple[Array, Array]:
    """Return the gradients at `places`: from backward, and from central differences."""
    images, labels = batch(model, count=3)

    def loss() -> float:
        return nn.softmax_cross_entropy(model.forward(images, training=True), labels)[0]

    train_once(model, count=3)
    expected, step = np.empty(len(places)), 1e-6
    for row, place in enumerate(places):
        value = model.parameters[place]
        model.parameters[place] = value + step
        above = loss()
        model.parameters[place] = value - step
        expected[row] = (above - loss()) / (2 * step)
        model.parameters[place] = value
    return model.gradients[places], expected


@pytest.mark.parametrize("architecture", [every_module, shortcut_first])
def test_the_gradient_of_a_new_model_is_the_derivative_in_every_parameter(
    monkeypatch: pytest.MonkeyPatch, architecture: models.Architecture
) -> None:
    monkeypatch.setattr(models, "_ARCHITECTURES", {})
    models.register(wanted=9)(architecture)
    (name,) = models.names()
    model = build(name, (2, 3, 4), dtype=np.float64)
    got, expected = gradient_of_loss(model, np.arange(model.parameters.size))
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["mlp", "lenet", "cnn", "resnet20"])
def test_the_gradient_of_a_whole_model_is_the_derivative(name: str) -> None:
    model = build(name, (1, 8, 8), dtype=np.float64)
    rng = np.random.default_rng(5)
    starts, sizes = model.offsets[:-1], np.diff(model.offsets)
    got, expected = gradient_of_loss(model, starts + rng.integers(0, sizes))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-7)


def test_running_statistics_move_a_tenth_towards_the_batch() -> None:
    model = build("resnet20")
    mean, var = model.statistics[:16].copy(), model.statistics[16:32].copy()
    assert not mean.any()
    assert (var == 1).all()
    images, _ = batch(model, count=4)
    weights = model.parameters[: model.offsets[1]].reshape(16, 3, 3, 3)
    convolved, _ = nn.conv2d_forward(images, weights, None, 1, 1)
    model.forward(images, training=True)
    rows = convolved.swapaxes(0, 1).reshape(16, -1)
    np.testing.assert_allclose(model.statistics[:16], 0.1 * rows.mean(axis=1), rtol=1e-4, atol=1e-6)
    unbiased = rows.var(axis=1, ddof=1)
    np.testing.assert_allclose(model.statistics[16:32], 0.9 + 0.1 * unbiased, rtol=1e-5)


def test_evaluation_leaves_the_statistics_alone_and_ignores_the_rest_of_the_batch() -> None:
    model = build("resnet20")
    train_once(model)
    before = model.statistics.tobytes()
    images, _ = batch(model, count=4)
    together = model.forward(images, training=False)
    alone = model.forward(images[:1], training=False)
    assert model.statistics.tobytes() == before
    np.testing.assert_allclose(together[:1], alone, rtol=1e-4, atol=1e-5)


def test_descending_the_gradient_lowers_the_loss() -> None:
    model = build("lenet", (1, 8, 8))
    first, _ = train_once(model, count=8)
    for _ in range(10):
        train_once(model, count=8)
        model.parameters -= np.float32(0.01) * model.gradients
    assert train_once(model, count=8)[0] < 0.5 * first


def test_a_model_that_overflows_is_quiet_and_its_loss_is_not_finite(
    recwarn: pytest.WarningsRecorder,
) -> None:
    model = build("lenet")
    model.parameters *= np.float32(1e30)
    images, labels = batch(model)
    loss, _, _ = nn.softmax_cross_entropy(model.forward(images, training=True), labels)
    assert not np.isfinite(loss)
    assert not recwarn.list


# Enlarging


@pytest.mark.parametrize(
    ("side", "wanted", "factor", "border"),
    [(8, 28, 3, (2, 2)), (28, 32, 1, (2, 2)), (8, 32, 4, (0, 0)), (9, 28, 3, (0, 1))],
)
def test_enlarging_repeats_pixels_and_centres_them(
    side: int, wanted: int, factor: int, border: tuple[int, int]
) -> None:
    images = np.random.default_rng(0).normal(size=(2, 3, side, side)).astype(np.float32)
    large = models.enlarge(images, wanted)
    assert large.shape == (2, 3, wanted, wanted)
    assert large.dtype == np.float32
    expected = np.pad(
        np.kron(images, np.ones((factor, factor), np.float32)), [(0, 0), (0, 0), border, border]
    )
    np.testing.assert_array_equal(large, expected)


@pytest.mark.parametrize(("side", "wanted"), [(28, 28), (32, 28), (5, 1), (64, 32)])
def test_images_that_are_large_enough_stay_as_they_are(side: int, wanted: int) -> None:
    images = np.zeros((1, 1, side, side), np.float32)
    assert models.enlarge(images, wanted) is images


def test_each_side_is_filled_up_by_itself() -> None:
    assert models.enlarge(np.ones((1, 1, 10, 16)), 32).shape == (1, 1, 32, 32)
    assert models.enlarge(np.ones((1, 1, 10, 40)), 32).shape == (1, 1, 32, 40)
    assert models.enlarge(np.ones((1, 1, 10, 40)), 32).sum() == 400


# Refusals


def test_an_unknown_model_is_refused_with_the_list_of_models() -> None:
    with pytest.raises(ValueError, match=r"'alexnet'.*cnn, lenet, mlp, resnet20, vgg16"):
        build("alexnet")


@pytest.mark.parametrize("size", [(0, 8, 8), (1, 0, 8), (3, 8, 0)])
def test_images_without_pixels_are_refused(size: Size) -> None:
    with pytest.raises(ValueError, match="needs images"):
        build("mlp", size)


def test_a_network_too_deep_for_its_images_is_refused() -> None:
    def net() -> models.Builder:
        return models.Builder((1, 4, 4), np.random.default_rng(0), nn)

    with pytest.raises(ValueError, match="5x5 kernel does not fit"):
        net().conv(1, kernel=5)
    with pytest.raises(ValueError, match="pooling by 5 does not fit"):
        net().max_pool(5)


@pytest.mark.parametrize(
    "images", [np.zeros((2, 1, 9, 8), np.float32), np.zeros((2, 1, 8, 8), np.uint8)]
)
def test_images_of_another_shape_or_dtype_are_refused(images: Array) -> None:
    with pytest.raises(ValueError, match=r"mlp takes float32 images \(1, 8, 8\)"):
        build("mlp", (1, 8, 8)).forward(images, training=True)


def test_backward_needs_one_forward_in_training_each_time() -> None:
    model = build("mlp", (1, 8, 8))
    train_once(model)
    with pytest.raises(RuntimeError, match="forward pass in training"):
        model.backward(np.zeros((2, 10), np.float32), lambda layer: None)
    model.forward(batch(model)[0], training=False)
    with pytest.raises(RuntimeError, match="forward pass in training"):
        model.backward(np.zeros((2, 10), np.float32), lambda layer: None)
