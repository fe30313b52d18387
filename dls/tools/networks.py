"""The networks that are measured, and the images they are measured with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dls.backends import Nn
from dls.tasks import models
from dls.tasks.models import Model

CLASSES = 10
"""Classes of the images, as in MNIST and CIFAR-10."""
MNIST = (1, 28, 28)
"""Channels, height and width of MNIST's images."""
CIFAR = (3, 32, 32)
"""Channels, height and width of CIFAR's images."""


@dataclass(frozen=True)
class Network:
    """A model as it is measured. widths: the mlp's hidden widths; other models have none."""

    model: str
    image_shape: tuple[int, int, int] = CIFAR
    widths: tuple[int, ...] = ()

    def build(self, nn: Nn) -> Model:
        """The network with the weights of seed 0."""
        return models.build(self.model, self.image_shape, CLASSES, 0, nn, self.widths)

    def settings(self) -> dict[str, Any]:
        """The settings of a run that trains the network on synthetic images."""
        settings: dict[str, Any] = {"model": self.model, "dataset": "synthetic"}
        settings["synthetic_shape"] = self.image_shape
        return settings | ({"mlp_widths": self.widths} if self.widths else {})


WIDE_MLP = (4096, 4096)
"""Hidden widths of the mlp that is measured: most of its values lie in one layer."""
_OTHERS = {
    "lenet": Network("lenet", MNIST),
    "mlp": Network("mlp", MNIST, WIDE_MLP),
}
LAYERED = ("vgg16", "resnet20")
"""Networks whose layers may stand for a vector's size."""
TRAINED = ("resnet20", "vgg16", "mlp")
"""Networks with which whole training steps are measured."""


def network(name: str) -> Network:
    """The network of a model's name."""
    return _OTHERS.get(name, Network(name))


def layer_sizes(name: str, nn: Nn) -> list[int]:
    """The sizes of a network's layers."""
    return [layer.size for layer in network(name).build(nn).layers]
