"""The PyTorch models that `python -m dls.bench torch` trains, and the batches it trains them on."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from dls.tasks import data
from dls.tasks.images import DataError
from dls.tools import networks

Tensor = Any
"""A torch.Tensor: PyTorch's own types are not read."""
Batch = tuple[Tensor, Tensor]
"""What a model is given, and what it should find."""

CONTEXT = 128
"""Bytes in a piece of text."""
BYTES = 256
"""The vocabulary of the GPT."""
MOST_TEXT = 2**22
"""Bytes of text at most."""


class Residual(nn.Module):
    """ResNet's basic block: two convolutions, and a way around them."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.around = nn.Sequential()
        if stride > 1 or before != after:
            projection = nn.Conv2d(before, after, 1, stride, bias=False)
            self.around = nn.Sequential(projection, nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, before, H, W]."""
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.around(x))


def resnet18() -> Tensor:
    """ResNet-18 for small images: 11.2 M parameters.

    K. He et al., Deep residual learning for image recognition, 2016; the first convolution keeps
    the image's size.
    """
    modules = [nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    before = 64
    for after in (64, 128, 256, 512):
        modules += [Residual(before, after, after // before), Residual(after, after, 1)]
        before = after
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, networks.CLASSES)]
    return nn.Sequential(*modules, *head)


def mlp() -> Tensor:
    """A network most of whose values lie in one layer: 20 M parameters."""
    first, second = networks.WIDE_MLP
    pixels = int(np.prod(networks.MNIST))
    inner = [nn.Linear(pixels, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *inner, nn.Linear(second, networks.CLASSES))


def small() -> Tensor:
    """A network that takes no time, for tests."""
    pixels = int(np.prod(networks.MNIST))
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 32), nn.ReLU(), nn.Linear(32, 10))


class Attention(nn.Module):
    """A GPT's block: attention to what came before, then a layer for each place by itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.merge = nn.Linear(width, 3 * width), nn.Linear(width, width)
        outer = nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), outer)

    def forward(self, x: Tensor) -> Tensor:
        """x: [N, T, width]."""
        split = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        heard = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.merge(heard.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A GPT on bytes: 4.9 M parameters, six blocks of width 256."""

    def __init__(self, width: int = 256, blocks: int = 6) -> None:
        super().__init__()
        self.byte, self.place = nn.Embedding(BYTES, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Attention(width, 4) for _ in range(blocks)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, BYTES)

    def forward(self, text: Tensor) -> Tensor:
        """text: [N, T]; returns [N · T, BYTES]."""
        x = self.byte(text) + self.place.weight[: text.shape[1]]
        scores = self.head(self.norm(self.blocks(x)))
        return scores.flatten(0, 1)


# Batches ------------------------------------------------------------------------------------------


class Images:
    """Fashion-MNIST where its files are found, else noise of its shape.

    name: which of the two.
    """

    def __init__(self) -> None:
        try:
            self._data = data.load("fashion-mnist")
        except DataError:
            self._data = data.load("synthetic", synthetic_shape=networks.MNIST)
        self.name = self._data.name

    def batch(self, size: int, seed: tuple[int, int]) -> Batch:
        """Training images drawn at random: [size, 1, 28, 28], and their classes [size]."""
        drawn = np.random.default_rng(seed).integers(len(self._data.train_labels), size=size)
        return self._as_tensors(self._data.train_images[drawn], self._data.train_labels[drawn])

    def test(self, size: int) -> Batch:
        """The first test images."""
        return self._as_tensors(self._data.test_images[:size], self._data.test_labels[:size])

    def _as_tensors(self, images: Any, labels: Any) -> Batch:
        pixels = torch.from_numpy(self._data.normalise(images))
        return pixels, torch.from_numpy(np.array(labels))


class Text:
    """The sources of Python's standard library, as bytes."""

    name = "Python's sources"

    def __init__(self) -> None:
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        joined = b"\n".join(each.read_bytes() for each in files)[:MOST_TEXT]
        self._text = np.frombuffer(joined, dtype=np.uint8)

    def batch(self, size: int, seed: tuple[int, int]) -> Batch:
        """Pieces from random places [size, CONTEXT], and each one's next byte [size · CONTEXT]."""
        last = len(self._text) - CONTEXT
        starts = np.random.default_rng(seed).integers(last, size=(size, 1))
        pieces = torch.from_numpy(self._text[starts + np.arange(CONTEXT + 1)].astype(np.int64))
        return pieces[:, :-1], pieces[:, 1:].flatten()

    def test(self, size: int) -> Batch:
        """Pieces that are the same in every run."""
        return self.batch(size, (0, 2**31))


@dataclass(frozen=True)
class Kind:
    """A model, and what it learns from. rate: the learning rate of SGD with momentum 0.9."""

    build: Callable[[], Tensor]
    source: Callable[[], Images | Text]
    rate: float


KINDS = {
    "resnet18": Kind(resnet18, Images, 0.005),
    "gpt": Kind(GPT, Text, 0.05),
    "mlp": Kind(mlp, Images, 0.01),
    "small": Kind(small, Images, 0.005),
}
"""The models by their names."""


def build(name: str) -> Tensor:
    """A model, with the weights of seed 0."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return KINDS[name].build()


def loss(scores: Tensor, wanted: Tensor) -> Tensor:
    """The loss of all models: cross entropy."""
    return F.cross_entropy(scores, wanted)
