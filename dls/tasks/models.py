"""Models: small networks over one flat buffer of parameters and one of gradients.

A model is a tuple of modules (`dls.tasks.modules`), which see its buffers as reshaped views:
writing to the flat buffer changes the model.

To add a model, write a function below that appends modules to a `Builder`, with `@register`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dls.backends import Nn
from dls.cli import near
from dls.tasks import modules
from dls.tasks.modules import (
    Array,
    BatchNorm,
    Conv2d,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool2d,
    Module,
    OnGradient,
    ReLU,
    Residual,
    Views,
)


@dataclass(frozen=True)
class LayerInfo:
    """One layer: the parameters of one module, weight and bias (or gamma and beta) together."""

    name: str
    kind: str
    """linear, conv2d or batch_norm."""
    size: int
    """Number of parameters."""
    inputs: int
    """c: input channels; for a linear layer its inputs, also after a flatten."""
    outputs: int
    """d: output channels, or a linear layer's outputs."""
    kernel: int
    """k: side of the kernel; 1 for a linear layer, 0 for batch norm."""
    positions: int
    """S: positions of the output map; 1 for a linear layer, 0 for batch norm."""
    channels_in: int
    """Channels before the flatten in front of a linear layer; otherwise `inputs`."""


# Building -----------------------------------------------------------------------------------------


class Builder:
    """Appends modules one after another, and keeps track of the shape and of the layers.

    Weights are He-normal, biases 0, gamma 1, beta 0, running means 0 and variances 1.
    """

    def __init__(self, input_shape: tuple[int, int, int], rng: np.random.Generator, nn: Nn) -> None:
        self.shape: tuple[int, ...] = input_shape  # (C, H, W), or (features,) after a flatten
        self.channels = input_shape[0]  # a flatten does not change it, for `channels_in`
        self.modules: list[Module] = []
        self.layers: list[LayerInfo] = []
        self.parameters: list[list[Array]] = []
        self.statistics: list[list[Array]] = []
        self.chain = True
        self._at_images = True  # no module before the next one needs a gradient
        self._rng = rng
        self._nn = nn

    def linear(self, outputs: int) -> Builder:
        """Append a linear layer with bias, after a flatten if its input is a map."""
        if len(self.shape) > 1:
            self.modules.append(Flatten())
            self.shape = (int(np.prod(self.shape)),)
        (inputs,) = self.shape
        weight = self._nn.he_normal(self._rng, (outputs, inputs), inputs)
        need_dx = not self._at_images
        layer = self._layer("linear", [weight, np.zeros(outputs)], inputs, outputs, 1, 1)
        self.modules.append(Linear(layer, need_dx))
        self.shape, self.channels = (outputs,), outputs
        return self

    def conv(
        self, outputs: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> Builder:
        """Append a convolution with kernel x kernel weights per pair of channels."""
        inputs, height, width = self.shape
        size = tuple((side + 2 * padding - kernel) // stride + 1 for side in (height, width))
        self._check(size, f"a {kernel}x{kernel} kernel")
        shape = (outputs, inputs, kernel, kernel)
        initial: list[Array] = [self._nn.he_normal(self._rng, shape, inputs * kernel * kernel)]
        initial += [np.zeros(outputs)] if bias else []
        need_dx = not self._at_images
        layer = self._layer("conv2d", initial, inputs, outputs, kernel, size[0] * size[1])
        self.modules.append(Conv2d(layer, stride, padding, need_dx))
        self.shape, self.channels = (outputs, *size), outputs
        return self

    def batch_norm(self) -> Builder:
        """Append batch normalisation of the channels."""
        channels = self.shape[0]
        initial: list[Array] = [np.ones(channels), np.zeros(channels)]
        layer = self._layer("batch_norm", initial, channels, channels, 0, 0)
        self.statistics[layer] = [np.zeros(channels), np.ones(channels)]
        self.modules.append(BatchNorm(layer))
        return self

    def relu(self) -> Builder:
        """Append a ReLU."""
        self.modules.append(ReLU())
        return self

    def max_pool(self, size: int) -> Builder:
        """Append max pooling; a last incomplete row or column of windows is dropped."""
        channels, height, width = self.shape
        self._check((height // size, width // size), f"pooling by {size}")
        self.modules.append(MaxPool2d(size))
        self.shape = (channels, height // size, width // size)
        return self

    def global_avg_pool(self) -> Builder:
        """Append the mean over each channel's map."""
        self.modules.append(GlobalAvgPool())
        self.shape = self.shape[:1]
        return self

    def residual(self, body: Callable[[Builder], Any], stride: int) -> Builder:
        """Append what `body` appends, with a shortcut around it; `stride` is that of the body."""
        outer, self.modules = self.modules, []
        self._at_images = False
        before = self.shape
        body(self)
        identity = self.shape == before
        outer.append(Residual(tuple(self.modules), self.shape[0], stride, identity))
        self.modules = outer
        self.chain = False
        return self

    def _layer(
        self,
        kind: str,
        initial: list[Array],
        inputs: int,
        outputs: int,
        kernel: int,
        positions: int,
    ) -> int:
        """Record a layer with the initial values of its parameters; return its number."""
        number = 1 + sum(layer.kind == kind for layer in self.layers)
        name = {"linear": "linear", "conv2d": "conv", "batch_norm": "norm"}[kind] + str(number)
        size = sum(array.size for array in initial)
        info = LayerInfo(name, kind, size, inputs, outputs, kernel, positions, self.channels)
        self.layers.append(info)
        self.parameters.append(initial)
        self.statistics.append([])
        self._at_images = False
        return len(self.layers) - 1

    def _check(self, size: Sequence[int], what: str) -> None:
        if min(size) < 1:
            raise ValueError(f"images too small: {what} does not fit {self.shape[1:]} pixels")


class Model:
    """A network whose numbers are in three flat buffers.

    name            as in `names()`
    layers          L layers in forward order; backward completes them in descending order
    offsets         int64 [L + 1]: layer l is parameters[offsets[l]:offsets[l + 1]]
    parameters      float32 [n]: per layer weight, bias (gamma, beta), each in C order
    gradients       float32 [n]: in the same order
    statistics      float32 [m]: per batch norm its running mean, then its running variance;
                    m may be 0
    chain           whether every layer feeds only the next one (False with shortcuts)
    input_size      (C, H, W) of the images that `forward` takes
    smallest_side   pixels a side to which smaller images are enlarged
    modules         the modules in forward order
    views           each layer's views into the flat buffers

    All three have the same dtype: float32, or float64 for gradient checks.
    """

    def __init__(
        self,
        name: str,
        input_size: tuple[int, int, int],
        wanted: int,
        builder: Builder,
        nn: Nn,
        dtype: DTypeLike,
    ) -> None:
        self.name = name
        self.input_size = input_size
        self.layers = tuple(builder.layers)
        self.chain = builder.chain
        sizes = [layer.size for layer in self.layers]
        self.offsets: NDArray[np.int64] = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self.parameters: Array = nn.asarray(_join(builder.parameters, dtype))
        self.gradients: Array = nn.asarray(np.zeros(self.parameters.size, dtype))
        self.statistics: Array = nn.asarray(_join(builder.statistics, dtype))
        self.views = Views(
            nn,
            _split(self.parameters, builder.parameters),
            _split(self.gradients, builder.parameters),
            _split(self.statistics, builder.statistics),
        )
        self.smallest_side = wanted
        self.modules = tuple(builder.modules)
        self._caches: list[Any] | None = None

    def forward(self, images: Array, training: bool) -> Array:
        """Return logits [N, classes] for images [N, C, H, W] of this model's dtype.

        In training, batch norm uses the batch and updates `statistics`, and the pass is kept for
        one `backward`; otherwise batch norm uses `statistics`, and nothing is kept. Numbers that
        overflow become infinities, without a warning; the caller finds them in the loss.

        Raises ValueError for images of another shape or dtype.
        """
        dtype = self.parameters.dtype
        if images.shape[1:] != self.input_size or images.dtype != dtype:
            raise ValueError(
                f"{self.name} takes {dtype} images {self.input_size}, "
                f"not {images.dtype} images {images.shape[1:]}"
            )
        x = self.views.nn.asarray(enlarge(images, self.smallest_side))
        with np.errstate(over="ignore", invalid="ignore"):
            logits, caches = modules.forward(self.modules, self.views, x, training)
        self._caches = caches if training else None
        return logits

    def backward(self, dlogits: Array, on_gradient: OnGradient) -> None:
        """Overwrite `gradients` from dlogits [N, classes], from the last layer to the first.

        on_gradient(l) is called once per layer, in strictly descending l, at the moment when
        gradients[offsets[l]:offsets[l + 1]] is complete.

        Raises RuntimeError unless a forward pass in training came just before.
        """
        if self._caches is None:
            raise RuntimeError("backward needs a forward pass in training before it")
        caches, self._caches = self._caches, None
        modules.backward(self.modules, self.views, dlogits, caches, on_gradient)


def _join(arrays: list[list[Array]], dtype: DTypeLike) -> Array:
    """Return all values in one flat array of `dtype`."""
    flat = [array.ravel() for layer in arrays for array in layer]
    return np.concatenate([np.empty(0), *flat]).astype(dtype)


def _split(flat: Array, like: list[list[Array]]) -> list[list[Array]]:
    """Return views into `flat`, one after another, in the shapes of `like`."""
    views, start = [], 0
    for layer in like:
        row = []
        for array in layer:
            row.append(flat[start : start + array.size].reshape(array.shape))
            start += array.size
        views.append(row)
    return views


def enlarge(images: Array, wanted: int) -> Array:
    """Return images [N, C, H, W] with at least `wanted` pixels a side.

    Smaller images grow by the largest whole factor that fits, each pixel repeated, and get a border
    of zeros, the image in the centre (an odd pixel goes below and to the right). Images that are
    large enough come back as they are.

    Raises ValueError for images without pixels.
    """
    sides = images.shape[2:]
    if min(sides) < 1:
        raise ValueError(f"images too small: {sides} pixels")
    factor = max(1, min(wanted // side for side in sides))
    missing = [max(0, wanted - factor * side) for side in sides]
    if factor > 1:
        images = images.repeat(factor, axis=2).repeat(factor, axis=3)
    if any(missing):
        border = [(pixels // 2, pixels - pixels // 2) for pixels in missing]
        images = np.pad(images, [(0, 0), (0, 0), *border])
    return images


# The models ---------------------------------------------------------------------------------------

Architecture = Callable[[Builder, int, Sequence[int]], Any]
"""A function that `register` takes."""
_ARCHITECTURES: dict[str, tuple[Architecture, int]] = {}
_READS: dict[str, Collection[str]] = {}


def register(
    wanted: int, reads: Collection[str] = ("mlp_widths",)
) -> Callable[[Architecture], Architecture]:
    """Register a function as the model of its name; smaller images than `wanted` are enlarged.

    wanted: pixels a side. reads: the settings of models that it reads; a run names others that are
    given as having no effect.
    """

    def add(architecture: Architecture) -> Architecture:
        _ARCHITECTURES[architecture.__name__] = architecture, wanted
        _READS[architecture.__name__] = reads
        return architecture

    return add


def names() -> tuple[str, ...]:
    """Return the names of all models, sorted."""
    return tuple(sorted(_ARCHITECTURES))


def reads(name: str, setting: str) -> bool:
    """Whether the model reads this setting."""
    return setting in _READS[name]


def build(
    name: str,
    input_shape: tuple[int, int, int],
    classes: int,
    seed: int,
    nn: Nn,
    widths: Sequence[int] = (128, 64),
    dtype: DTypeLike = np.float32,
) -> Model:
    """Build a model for images of `input_shape` (C, H, W).

    The same arguments give the same bits. nn: the backend's layers, as in `reference.nn`. widths:
    the hidden widths of mlp; other models ignore them.

    Raises ValueError for an unknown name and for images that no model could take.
    """
    if name not in _ARCHITECTURES:
        hint = near(name, names())
        raise ValueError(f"unknown model {name!r}; known: {', '.join(names())}{hint}")
    if min(input_shape) < 1 or classes < 1:
        raise ValueError(f"a model needs images and classes, not {input_shape} and {classes}")
    architecture, wanted = _ARCHITECTURES[name]
    _, channels, height, width = enlarge(np.empty((1, *input_shape)), wanted).shape
    builder = Builder((channels, height, width), np.random.default_rng(seed), nn)
    architecture(builder, classes, widths)
    return Model(name, input_shape, wanted, builder, nn, dtype)


@register(wanted=1)
def mlp(net: Builder, classes: int, widths: Sequence[int]) -> None:
    """Linear layers with ReLU between them; `widths` are those of the hidden layers."""
    for width in widths:
        net.linear(width).relu()
    net.linear(classes)


@register(wanted=28, reads=())
def lenet(net: Builder, classes: int, _: Sequence[int]) -> None:
    """LeNet-5 with ReLU and max pooling, after LeCun et al., Proceedings of the IEEE, 1998."""
    net.conv(6, kernel=5, padding=2).relu().max_pool(2)
    net.conv(16, kernel=5).relu().max_pool(2)
    net.linear(120).relu().linear(84).relu().linear(classes)


@register(wanted=32, reads=())
def cnn(net: Builder, classes: int, _: Sequence[int]) -> None:
    """Plain convolutions in the style of VGG, without batch norm, as Eq. 8 and Eq. 9 assume."""
    for channels in (32, 64, 128):
        net.conv(channels, kernel=3, padding=1).relu()
        net.conv(channels, kernel=3, padding=1).relu().max_pool(2)
    net.linear(256).relu().linear(classes)


@register(wanted=32, reads=())
def vgg16(net: Builder, classes: int, _: Sequence[int]) -> None:
    """VGG-16 for CIFAR: batch norm, one linear layer; after Simonyan and Zisserman, ICLR 2015."""
    for channels, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _layer in range(depth):
            net.conv(channels, kernel=3, padding=1, bias=False).batch_norm().relu()
        net.max_pool(2)
    net.linear(classes)


@register(wanted=32, reads=())
def resnet20(net: Builder, classes: int, _: Sequence[int]) -> None:
    """ResNet-20 for CIFAR with option A shortcuts; He et al., CVPR 2016, section 4.2."""
    net.conv(16, kernel=3, padding=1, bias=False).batch_norm().relu()
    for channels, first_stride in ((16, 1), (32, 2), (64, 2)):
        for stride in (first_stride, 1, 1):
            _basic_block(net, channels, stride)
    net.global_avg_pool().linear(classes)


def _basic_block(net: Builder, channels: int, stride: int) -> None:
    """Append two 3x3 convolutions with batch norm, a shortcut around them and a ReLU."""

    def body(inner: Builder) -> None:
        inner.conv(channels, kernel=3, stride=stride, padding=1, bias=False).batch_norm().relu()
        inner.conv(channels, kernel=3, padding=1, bias=False).batch_norm()

    net.residual(body, stride).relu()
