"""How a flat gradient is divided into layers, and layers into buckets: pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from reference.ops import Index

LAST_BUCKET = 16
"""The smallest bucket of layers holds this fraction of the bucket size."""


@dataclass(frozen=True)
class Layer:
    """A layer: its name and how many values its gradient has.

    channels: inputs and outputs, if the theory of gradient variances applies to the layer
    (`--dls-init variance`); otherwise None.
    """

    name: str
    size: int
    channels: tuple[int, int] | None = None


@dataclass(frozen=True)
class Bucket:
    """Neighbouring layers whose gradients are sent as one message; bucket 0 is sent first.

    Bucket 0 holds the last layers. parts: the parts in which the method selects separately, mostly
    the layers; span: the bucket's range of the flat gradient; cuts (parts + 1): where in the bucket
    each part begins and ends.
    """

    index: int
    layers: range
    parts: range
    span: slice
    cuts: Index

    @property
    def size(self) -> int:
        """How many values."""
        return int(self.span.stop - self.span.start)

    @property
    def is_last(self) -> bool:
        """Whether this is the last bucket: with it the whole gradient is complete."""
        return bool(self.span.start == 0)


class Layout:
    """The layers of a gradient (n), in forward order.

    offsets (L + 1): where each begins and ends; sizes (L). ValueError where there are none, where
    one is empty, or where two have the same name.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = tuple(layers)
        self.sizes = [layer.size for layer in self.layers]
        names = [layer.name for layer in self.layers]
        if not names:
            raise ValueError("there is no layer")
        if empty := [layer.name for layer in self.layers if layer.size < 1]:
            raise ValueError(f"layer {empty[0]} is empty: leave it out")
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two layers have the name {twice[0]}")
        self.offsets: Index = np.cumsum([0, *self.sizes], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.layers)

    @property
    def n(self) -> int:
        """Values of the whole gradient."""
        return int(self.offsets[-1])

    @property
    def whole(self) -> slice:
        """The range of the whole gradient."""
        return slice(0, self.n)

    def span(self, layers: range) -> slice:
        """The range of neighbouring layers in the flat gradient."""
        return slice(int(self.offsets[layers.start]), int(self.offsets[layers.stop]))

    def words(self, layers: range) -> str:
        """The layers' names, for messages."""
        first, last = (self.layers[layer].name for layer in (layers.start, layers.stop - 1))
        return f"layer {first}" if first == last else f"layers {first} to {last}"

    def buckets(self, bucket_size: int, whole: bool = False) -> list[Bucket]:
        """The buckets in the order in which they are sent, from the last layer to the first.

        A bucket is full when it holds bucket_size values, or as many as the layers before it have
        together: towards the end of the backward pass ever less time is left to hide a message, so
        buckets become smaller, down to 1 / LAST_BUCKET of the bucket size. bucket_size 0: one
        bucket; whole: one bucket whose values are one part.
        """
        if whole:
            cuts = self.offsets[[0, -1]]
            return [Bucket(0, range(len(self)), range(1), self.whole, cuts)]
        return [
            self._bucket(index, layers) for index, layers in enumerate(self._groups(bucket_size))
        ]

    def _groups(self, bucket_size: int) -> Iterator[range]:
        stop = len(self)
        for first in reversed(range(stop)):
            values = int(self.offsets[stop] - self.offsets[first])
            left = int(self.offsets[first])
            enough = max(min(bucket_size, left), bucket_size // LAST_BUCKET)
            if first == 0 or (bucket_size and values >= enough):
                yield range(first, stop)
                stop = first

    def _bucket(self, index: int, layers: range) -> Bucket:
        cuts = self.offsets[layers.start : layers.stop + 1] - self.offsets[layers.start]
        return Bucket(index, layers, layers, self.span(layers), cuts)

    def sizes_of(self, buckets: Sequence[Bucket]) -> list[int]:
        """The sizes of all parts of these buckets, in forward order."""
        return [
            int(stop - start)
            for bucket in reversed(buckets)
            for start, stop in pairwise(bucket.cuts)
        ]
