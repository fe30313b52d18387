"""The networks that `dls.theory` measures, and which of their layers are neighbours.

To add one, name it in CHAINS: a chain of convolutions or linear layers, each with a ReLU, and a
last linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from dls.cli import UsageError, near
from dls.tasks import models, modules
from dls.tasks.data import Dataset
from dls.tasks.images import ImagesF32
from dls.tasks.models import LayerInfo, Model
from reference import nn

RAW = "/raw"
"""Behind a network's name: its images are pixels from 0 up, so their mean is not zero."""
SIDE = 16
"""Pixels a side that the chains of convolutions enlarge smaller images to."""
LINEAR = 0
"""The kernel of a stage that is a linear layer."""


class Stage(NamedTuple):
    """One layer of a chain with its ReLU: output channels, side of the kernel, stride, and side of
    the max pooling behind it.
    """

    channels: int
    kernel: int = 3
    stride: int = 1
    pool: int = 1


class Chain(NamedTuple):
    """A small network; `norm`: batch norm before each ReLU; `average`: a global average in place of
    the last flatten.
    """

    stages: tuple[Stage, ...]
    norm: bool = False
    average: bool = False


_EQUAL = (Stage(32),) * 6
_KERNELS = tuple(Stage(32, kernel) for kernel in (3, 5, 1, 3, 1, 5))
CHAINS = {
    "equal": Chain(_EQUAL),
    "widths": Chain(tuple(Stage(channels) for channels in (16, 64, 16, 32, 64, 32))),
    "kernels": Chain(_KERNELS),
    "strides": Chain(tuple(Stage(32, stride=stride) for stride in (1, 1, 2, 1, 2, 1))),
    "pooling": Chain(tuple(Stage(32, pool=pool) for pool in (1, 2, 1, 2, 1))),
    "linear": Chain(tuple(Stage(width, LINEAR) for width in (256, 256, 64, 256, 128, 128))),
    "average": Chain(_EQUAL, average=True),
    "norm": Chain(_EQUAL, norm=True),
    "kernels-norm": Chain(_KERNELS, norm=True),
}


@dataclass(frozen=True)
class Pair:
    """Two neighbouring layers with weights, and where they stand: what may break an assumption of
    the theory.

    `where` holds any of: first (`previous` sees the images), raw images (with first: their mean is
    not zero), last (no ReLU follows `layer`), other kernel, stride, pooling, flatten, average,
    batch norm (in front of `layer`).
    """

    previous: LayerInfo
    layer: LayerInfo
    where: tuple[str, ...]


def names() -> tuple[str, ...]:
    """All networks but for those with `/raw`: the small chains, then the models."""
    return (*CHAINS, *(name for name in models.names() if name not in CHAINS))


def check(name: str) -> str:
    """The name itself, as an option's type. UsageError unless `build` knows it."""
    if name.removesuffix(RAW) not in names():
        known = f"known: {', '.join(names())}, each also with {RAW} behind it"
        raise UsageError(f"unknown network {name!r}; {known}{near(name, names())}")
    return name


def build(name: str, dataset: Dataset, seed: int) -> Model:
    """The network, float32, He-normal weights of this seed.

    UsageError where it is unknown or not a chain.
    """
    check(name)
    plain = name.removesuffix(RAW)
    chain = CHAINS.get(plain)
    model = (
        _build(plain, chain, dataset, seed)
        if chain
        else models.build(plain, dataset.input_shape, dataset.classes, seed, nn)
    )
    if not model.chain:
        raise UsageError(
            f"{plain} is not a chain: with shortcuts a layer has more than one neighbour"
        )
    return model


def _build(name: str, chain: Chain, dataset: Dataset, seed: int) -> Model:
    wanted = 1 if chain.stages[0].kernel == LINEAR else SIDE
    _, channels, height, width = models.enlarge(np.empty((1, *dataset.input_shape)), wanted).shape
    net = models.Builder((channels, height, width), np.random.default_rng(seed), nn)
    for stage in chain.stages:
        _append(net, stage, chain.norm)
    if chain.average:
        net.global_avg_pool()
    net.linear(dataset.classes)
    return Model(name, dataset.input_shape, wanted, net, nn, np.float32)


def _append(net: models.Builder, stage: Stage, norm: bool) -> None:
    if stage.kernel == LINEAR:
        net.linear(stage.channels)
    else:
        net.conv(
            stage.channels, stage.kernel, stage.stride, padding=stage.kernel // 2, bias=not norm
        )
    if norm:
        net.batch_norm()
    net.relu()
    if stage.pool > 1:
        net.max_pool(stage.pool)


def prepare(name: str, dataset: Dataset, images: ImagesF32) -> ImagesF32:
    """The normalised images [N, C, H, W] as the network gets them: with `/raw` from 0 up again, at
    a mean square of 1.
    """
    if not name.endswith(RAW):
        return images
    shift = dataset.mean / dataset.std
    raw: ImagesF32 = (images + shift[:, None, None]) / np.sqrt(1 + shift**2)[:, None, None]
    return raw


def pairs(name: str, model: Model) -> list[Pair]:
    """The W − 1 pairs of neighbours among the W layers with weights (batch norm left out), in
    forward order.
    """
    layers = list(_weight_layers(model))
    result = []
    for number, ((previous, _), (layer, before)) in enumerate(pairwise(layers)):
        where = ["first", *(["raw images"] if name.endswith(RAW) else [])] if number == 0 else []
        where += ["last"] if number == len(layers) - 2 else []
        where += (
            ["other kernel"]
            if layer.kind == previous.kind and layer.kernel != previous.kernel
            else []
        )
        result.append(Pair(previous, layer, (*where, *before)))
    return result


def _weight_layers(model: Model) -> Iterator[tuple[LayerInfo, list[str]]]:
    """Each layer with weights, and what stands between the one before and its product."""
    words = {
        modules.MaxPool2d: "pooling",
        modules.GlobalAvgPool: "average",
        modules.BatchNorm: "batch norm",
    }
    before: list[str] = []
    maps = False
    for module in model.modules:
        if isinstance(module, modules.Linear | modules.Conv2d):
            stride = ["stride"] if isinstance(module, modules.Conv2d) and module.stride > 1 else []
            yield model.layers[module.layer], before + stride
            before, maps = [], isinstance(module, modules.Conv2d)
        elif isinstance(module, modules.Flatten):
            before += ["flatten"] if maps else []
        elif type(module) in words:
            before.append(words[type(module)])
