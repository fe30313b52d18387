"""The images that each rank trains and tests on.

A step's global mini-batch has ranks * batch_size images. It depends only on the seed and on that
product, not on the number of ranks that share it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from dls.record.checkpoint import Position
from dls.tasks.data import AUGMENT, ORDER, Dataset, generator
from dls.tasks.images import DataError, ImagesF32, ImagesU8, Labels


def steps_per_epoch(n_train: int, global_batch: int) -> int:
    """The number of complete global batches in the training set; an incomplete one is dropped."""
    if not 1 <= global_batch <= n_train:
        raise DataError(
            f"a global batch of {global_batch} (batch size times ranks) does not lie between 1 "
            f"and the {n_train} training images; change --batch-size or the number of ranks"
        )
    return n_train // global_batch


@lru_cache(maxsize=2)
def _epoch_order(n_train: int, seed: int, epoch: int) -> Labels:
    """The order of the training images in an epoch; int64 [n_train], read-only."""
    order = generator(seed, ORDER, epoch, 0).permutation(n_train).astype(np.int64, copy=False)
    order.setflags(write=False)
    return order


def global_indices(
    n_train: int, seed: int, epoch: int, index: int, global_batch: int
) -> NDArray[np.int64]:
    """The training images of an epoch's global batch `index`, from 0; int64 [global_batch]."""
    if not 0 <= index < steps_per_epoch(n_train, global_batch):
        raise DataError(f"an epoch of {n_train} images has no global batch {index}")
    start = index * global_batch
    return _epoch_order(n_train, seed, epoch)[start : start + global_batch]


@dataclass(frozen=True)
class Batches:
    """The training batches of one rank, by step number; it has no state.

    batch_size: images per rank and step. augment: see `augment_images`. start: from where on
    batches have this size; the images from there to the next multiple of it are skipped. Raises
    DataError if a global batch is larger than the training set.
    """

    dataset: Dataset
    seed: int
    batch_size: int
    rank: int
    ranks: int
    augment: bool = False
    start: Position = Position()

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank {self.rank} is not one of {self.ranks} ranks")
        steps_per_epoch(len(self.dataset.train_labels), self.global_batch)

    @property
    def global_batch(self) -> int:
        """Images per step over all ranks."""
        return self.batch_size * self.ranks

    @property
    def steps_per_epoch(self) -> int:
        """Steps in an epoch, the same on all ranks."""
        return steps_per_epoch(len(self.dataset.train_labels), self.global_batch)

    @property
    def _first(self) -> int:
        """The number of the first batch, within the epoch of `start`."""
        return min(-(-self.start.seen // self.global_batch), self.steps_per_epoch)

    def epoch_and_batch(self, step: int) -> tuple[int, int]:
        """The epoch, and the batch in that epoch, of the step after `step` finished ones."""
        epochs, batch = divmod(self._first + step - self.start.step, self.steps_per_epoch)
        return self.start.epoch + epochs, batch

    def position(self, step: int) -> Position:
        """The position in the data after `step` finished steps."""
        epoch, batch = self.epoch_and_batch(step)
        return Position(step, epoch, batch * self.global_batch)

    def steps_until(self, epoch: int) -> int:
        """The number of finished steps when `epoch` epochs are complete."""
        return self.start.step + (epoch - self.start.epoch) * self.steps_per_epoch - self._first

    def batch(self, step: int) -> tuple[ImagesF32, Labels]:
        """Return this rank's part of the global batch that follows `step` finished steps.

        Normalised images float32 [batch_size, C, H, W] and labels int64 [batch_size].
        """
        data = self.dataset
        count = len(data.train_labels)
        epoch, index = self.epoch_and_batch(step)
        part = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        chosen = global_indices(count, self.seed, epoch, index, self.global_batch)[part]
        images = data.train_images[chosen]
        if self.augment:
            rng = generator(self.seed, AUGMENT, epoch, index)
            shifts, flips = _draw_augmentation(rng, self.global_batch, data)
            images = augment_images(images, shifts[:, part], flips[part])
        return data.normalise(images), data.train_labels[chosen]


def crop_padding(height: int, width: int) -> int:
    """How far a crop may shift: an eighth of the shorter side, at most CIFAR's 4 pixels.

    4 for 32x32, 3 for 28x28, 1 for 8x8, 0 below that.
    """
    return min(4, height // 8, width // 8)


def _draw_augmentation(
    rng: np.random.Generator, count: int, dataset: Dataset
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Draw shifts down and right, int64 [2, count], and flips, bool [count], for a global batch."""
    pad = crop_padding(*dataset.input_shape[1:])
    shifts = rng.integers(-pad, pad, (2, count), endpoint=True)
    flips = rng.integers(0, 2, count, dtype=np.bool_)
    return shifts, flips & dataset.mirror


def augment_images(
    images: ImagesU8, shifts: NDArray[np.int64], flips: NDArray[np.bool_]
) -> ImagesU8:
    """Crop each image, shifted, then mirror it left to right where flips is set.

    images uint8 [B, C, H, W]; shifts int64 [2, B], down and right, in pixels; flips bool [B].
    Pixels outside the image are raw 0 (not the mean), as in the order of torchvision's
    RandomCrop(32, padding=4), RandomHorizontalFlip(), Normalize(...).
    """
    batch, channels, height, width = images.shape
    pad = int(np.abs(shifts).max(initial=0))
    padded = np.pad(images, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows = pad + shifts[0][:, None] + np.arange(height)  # [B, H]
    columns = pad + shifts[1][:, None] + np.arange(width)  # [B, W]
    columns = np.where(flips[:, None], columns[:, ::-1], columns)
    result: ImagesU8 = padded[
        np.arange(batch)[:, None, None, None],
        np.arange(channels)[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]
    return result


def test_shard(
    dataset: Dataset, rank: int, ranks: int, batch: int
) -> Iterator[tuple[ImagesF32, Labels]]:
    """Yield the rank's contiguous share of the test set, at most `batch` images at a time.

    The ranks' shares follow one another and differ by one image at most; a rank may get none.
    Each item is normalised images float32 [<= batch, C, H, W] and labels int64 [<= batch].
    """
    count = len(dataset.test_labels)
    stop = count * (rank + 1) // ranks
    for start in range(count * rank // ranks, stop, batch):
        part = slice(start, min(start + batch, stop))
        yield dataset.normalise(dataset.test_images[part]), dataset.test_labels[part]
