"""The modules that models are made of, forward and backward.

They hold no numbers. These are in the model's flat buffers, which modules see as reshaped views:
writing to a flat buffer changes the model. The functions come from the backend: `nn` has the names
of `reference.nn`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dls.backends import Nn

Array = NDArray[np.floating[Any]]
"""An array of any float dtype."""
OnGradient = Callable[[int], None]
"""Is called with the number of a layer when its gradient is complete."""

MOMENTUM = 0.1
"""Weight of the newest batch in batch norm's running statistics."""
EPSILON = 1e-5
"""Is added to batch norm's variance."""


class Views(NamedTuple):
    """The backend's functions and, for each layer, its views into the model's flat buffers."""

    nn: Nn
    parameters: list[list[Array]]
    """Weight and bias, or gamma and beta."""
    gradients: list[list[Array]]
    """Those of the parameters."""
    statistics: list[list[Array]]
    """Running mean and variance of batch norm; otherwise empty."""


class Module(Protocol):
    """A stage of a network. It holds only its settings; numbers are passed as arguments."""

    def forward(self, views: Views, x: Array, training: bool) -> tuple[Array, Any]:
        """Return the output and what `backward` needs."""
        ...

    def backward(self, views: Views, dy: Array, cache: Any, done: OnGradient) -> Array | None:
        """Write the gradients, call `done` with each layer's number, return the input's gradient.

        None if no module before this one needs it.
        """
        ...


@dataclass(frozen=True)
class Linear:
    """y = x wᵀ + b."""

    layer: int
    need_dx: bool
    """False for the first layer of a network."""

    def forward(self, views: Views, x: Array, training: bool) -> tuple[Array, Any]:
        return views.nn.linear_forward(x, *views.parameters[self.layer]), x

    def backward(self, views: Views, dy: Array, cache: Any, done: OnGradient) -> Array | None:
        views.nn.linear_weight_gradients(dy, cache, *views.gradients[self.layer])
        done(self.layer)  # the gradient can be sent while dx is computed
        dx: Array | None = None
        if self.need_dx:
            dx = views.nn.linear_input_gradient(dy, views.parameters[self.layer][0])
        return dx


@dataclass(frozen=True)
class Conv2d:
    """Convolution with a square kernel; without a bias in front of batch norm."""

    layer: int
    stride: int
    padding: int
    need_dx: bool
    """False for the first layer of a network."""

    def forward(self, views: Views, x: Array, training: bool) -> tuple[Array, Any]:
        w, *bias = views.parameters[self.layer]
        b = bias[0] if bias else None
        return views.nn.conv2d_forward(x, w, b, self.stride, self.padding)

    def backward(self, views: Views, dy: Array, cache: Any, done: OnGradient) -> Array | None:
        dw, *bias = views.gradients[self.layer]
        views.nn.conv2d_weight_gradients(dy, cache, dw, bias[0] if bias else None)
        done(self.layer)
        dx: Array | None = None
        if self.need_dx:
            dx = views.nn.conv2d_input_gradient(dy, cache, views.parameters[self.layer][0])
        return dx


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation; a forward pass in training updates the running statistics."""

    layer: int

    def forward(self, views: Views, x: Array, training: bool) -> tuple[Array, Any]:
        gamma, beta = views.parameters[self.layer]
        running_mean, running_var = views.statistics[self.layer]
        if not training:
            args = x, gamma, beta, running_mean, running_var, EPSILON
            return views.nn.batch_norm_inference(*args), None
        y, mean, var, cache = views.nn.batch_norm_forward(x, gamma, beta, EPSILON)
        count = x.size // x.shape[1]
        running_mean += MOMENTUM * (mean - running_mean)
        running_var += MOMENTUM * (var * (count / (count - 1)) - running_var)
        return y, cache

    def backward(self, views: Views, dy: Array, cache: Any, done: OnGradient) -> Array | None:
        dx: Array
        dx, *gradients = views.nn.batch_norm_backward(dy, cache, views.parameters[self.layer][0])
        for view, gradient in zip(views.gradients[self.layer], gradients, strict=True):
            view[...] = gradient
        done(self.layer)
        return dx


@dataclass(frozen=True)
class ReLU:
    """max(x, 0)."""

    def forward(self, views: Views, x: Array, training: bool) -> tuple[Array, Any]:
        y = views.nn.relu_forward(x)
        return y, y

    def backward(self, views: Views, dy: Array, cache: Any, done: OnGradient) -> Array | None:
        dx: Array = views.nn.relu_backward(dy, cache)
        return dx


@dataclass(frozen=True)
class MaxPool2d:
    """Maxima of windows of size x size that do not overlap."""

    size: int

    def forward(self, views: Views, x: Array, training: bool) -> tuple[Array, Any]:
        y, cache = views.nn.max_pool2d_forward(x, self.size)
        return y, cache

    def backward(self, views: Views, dy: Array, cache: Any, done: OnGradient) -> Array | None:
        dx: Array = views.nn.max_pool2d_backward(dy, cache)
        return dx


@dataclass(frozen=True)
class GlobalAvgPool:
    """The mean of each channel's map."""

    def forward(self, views: Views, x: Array, training: bool) -> tuple[Array, Any]:
        return views.nn.global_avg_pool_forward(x), x.shape

    def backward(self, views: Views, dy: Array, cache: Any, done: OnGradient) -> Array | None:
        dx: Array = views.nn.global_avg_pool_backward(dy, cache)
        return dx


@dataclass(frozen=True)
class Flatten:
    """[N, C, H, W] to [N, C * H * W]."""

    def forward(self, views: Views, x: Array, training: bool) -> tuple[Array, Any]:
        return views.nn.flatten_forward(x), x.shape

    def backward(self, views: Views, dy: Array, cache: Any, done: OnGradient) -> Array | None:
        dx: Array = views.nn.flatten_backward(dy, cache)
        return dx


@dataclass(frozen=True)
class Residual:
    """body(x) + shortcut(x); the shortcut has no parameters, see `shortcut_forward`."""

    body: tuple[Module, ...]
    channels: int
    """Channels of the body's output."""
    stride: int
    """Stride of the body."""
    identity: bool
    """Whether the body keeps the shape, so that the shortcut is x itself."""

    def forward(self, views: Views, x: Array, training: bool) -> tuple[Array, Any]:
        y, caches = forward(self.body, views, x, training)
        shortcut = x
        if not self.identity:
            shortcut = views.nn.shortcut_forward(x, self.channels, self.stride)
        return views.nn.add_forward(y, shortcut), (caches, x.shape)

    def backward(self, views: Views, dy: Array, cache: Any, done: OnGradient) -> Array | None:
        caches, shape = cache
        dbody, dshortcut = views.nn.add_backward(dy)
        if not self.identity:
            dshortcut = views.nn.shortcut_backward(dshortcut, shape, self.stride)
        # not None, since some module comes before a block
        dx: Any = backward(self.body, views, dbody, caches, done)
        return views.nn.add_forward(dx, dshortcut)


def forward(
    modules: Sequence[Module], views: Views, x: Array, training: bool
) -> tuple[Array, list[Any]]:
    """Run the modules one after another; return the output and their caches."""
    caches = []
    for module in modules:
        x, cache = module.forward(views, x, training)
        caches.append(cache if training else None)
    return x, caches


def backward(
    modules: Sequence[Module], views: Views, dy: Array, caches: list[Any], done: OnGradient
) -> Array | None:
    """Run the modules backwards and drop each cache after its use; return the input's gradient."""
    gradient: Array | None = dy
    for module in reversed(modules):
        cache = caches.pop()
        if gradient is not None:
            gradient = module.backward(views, gradient, cache, done)
    return gradient
