"""Data sets: images in memory, by name.

Images stay uint8, [N, C, H, W]; a batch becomes float32 when it is drawn (`dls.tasks.batches`). All
random numbers are a pure function of (seed, purpose, epoch, index), so a checkpoint needs no random
state.

A new data set is one function, marked with `@register("its-name")`, here or in a program of your
own.
"""

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dls.cli import near
from dls.tasks.image_files import IDX_FILES, cifar_folder, join, read_cifar, read_idx_folder
from dls.tasks.images import DataError, ImagesF32, ImagesU8, Labels, Split

ASSETS_DIR = Path(__file__).parent / "assets"
"""The folder of the data that comes with the program."""
DIGITS_SHA256 = "dcc8ca6619875703dbbfe9df02a9bcb04c8ea81247b27c64d917ab7421b1e6c6"
"""The checksum of digits.npz."""

SYNTHETIC = 0
"""A purpose of random numbers: the synthetic data."""
ORDER = 1
"""A purpose of random numbers: the order of the training images."""
AUGMENT = 2
"""A purpose of random numbers: shifts and flips of images."""


def generator(seed: int, purpose: int, epoch: int, index: int) -> np.random.Generator:
    """Return a new generator, a pure function of its arguments; 0 <= seed, the others < 2**32."""
    sequence = np.random.SeedSequence(seed, spawn_key=(purpose, epoch, index))
    return np.random.Generator(np.random.Philox(sequence))


# --- the data sets --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in memory, both read-only.

    train_images uint8 [N, C, H, W], train_labels int64 [N], 0 <= label < classes; test_* alike.
    mean, std: float32 [C], of the raw training pixels; the std of a constant channel is 1.
    mirror: whether a mirrored image keeps its class (false for digits, which are never flipped).
    """

    name: str
    train_images: ImagesU8
    train_labels: Labels
    test_images: ImagesU8
    test_labels: Labels
    classes: int
    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    mirror: bool = True

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, channels, height, width = self.train_images.shape
        return channels, height, width

    def checksum(self) -> str:
        """A CRC-32 of all images and labels, which shows whether two ranks loaded the same data."""
        crc = 0
        for array in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
        return f"{crc:08x}"

    def normalise(self, images: ImagesU8) -> ImagesF32:
        """(images - mean) / std by channel; uint8 [N, C, H, W] to float32 [N, C, H, W]."""
        result = images.astype(np.float32, order="C")
        result -= self.mean[:, None, None]
        result /= self.std[:, None, None]
        return result


@dataclass(frozen=True)
class Request:
    """The arguments of `load` that a loader can use."""

    data_dir: Path | None
    synthetic_shape: tuple[int, int, int]
    synthetic_classes: int
    synthetic_size: int
    seed: int


Loader = Callable[[Request], Dataset]
"""A function that `register` takes."""
_LOADERS: dict[str, Loader] = {}
_READS: dict[str, Collection[str]] = {}
FILES = ("data_dir",)
"""The settings that data sets in files read."""
NOISE = ("synthetic_shape", "synthetic_classes", "synthetic_size")
"""The settings that the synthetic data set reads."""


def register(name: str, reads: Collection[str] = (*FILES, *NOISE)) -> Callable[[Loader], Loader]:
    """Register a function as a data set of this name; it returns what `assemble` makes.

    reads: the settings of data sets that it reads; a run names others that are given as having no
    effect.
    """

    def add(loader: Loader) -> Loader:
        _LOADERS[name] = loader
        _READS[name] = reads
        return loader

    return add


def names() -> tuple[str, ...]:
    """The names of all data sets."""
    return tuple(_LOADERS)


def reads(name: str, setting: str) -> bool:
    """Whether the data set reads this setting."""
    return setting in _READS[name]


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    synthetic_shape: tuple[int, int, int] = (3, 32, 32),
    synthetic_classes: int = 10,
    synthetic_size: int = 4096,
    seed: int = 0,
) -> Dataset:
    """Load a data set by name.

    data_dir: the folder of its files; `digits` and `synthetic` need none.
    synthetic_*, seed: (C, H, W), classes, training images and seed of `synthetic`; else unused.
    Raises DataError for an unknown name and for missing or broken files.
    """
    if name not in _LOADERS:
        hint = near(name, names())
        raise DataError(f"unknown dataset {name!r}: choose one of {', '.join(names())}{hint}")
    request = Request(data_dir, synthetic_shape, synthetic_classes, synthetic_size, seed)
    return _LOADERS[name](request)


@register("digits", reads=())
def _digits(_: Request) -> Dataset:
    """UCI handwritten digits, which come with the program; assets/ describes the split."""
    path = ASSETS_DIR / "digits.npz"
    try:
        packed = path.read_bytes()
        if hashlib.sha256(packed).hexdigest() != DIGITS_SHA256:
            raise ValueError("it is not the file that belongs to this program")
        with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
            train = arrays["train_images"], arrays["train_labels"]
            test = arrays["test_images"], arrays["test_labels"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); install the program again") from error
    return assemble("digits", train, test, classes=10, mirror=False)


@register("mnist", reads=FILES)
def _mnist(request: Request) -> Dataset:
    """MNIST, Y. LeCun, C. Cortes, C. Burges; four IDX files."""
    advice = f"give --data-dir a folder with MNIST's four IDX files ({', '.join(IDX_FILES)})"
    train, test = read_idx_folder("mnist", request.data_dir, "MNIST", advice)
    return assemble("mnist", train, test, classes=10, mirror=False)


@register("fashion-mnist", reads=FILES)
def _fashion_mnist(request: Request) -> Dataset:
    """Fashion-MNIST, H. Xiao, K. Rasul, R. Vollgraf, 2017; four IDX files."""
    advice = "apt-get install dataset-fashion-mnist, or give --data-dir its four IDX files' folder"
    train, test = read_idx_folder("fashion-mnist", request.data_dir, "FashionMNIST", advice)
    return assemble("fashion-mnist", train, test, classes=10)


@register("cifar10", reads=FILES)
def _cifar10(request: Request) -> Dataset:
    """CIFAR-10, A. Krizhevsky, 2009; the binary version: label byte, 3072 pixel bytes."""
    files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    folders = "cifar-10-batches-bin", "cifar-10-batches-py"
    folder = cifar_folder("cifar10", request.data_dir, folders, files)
    splits = [read_cifar(folder / file, label_classes=(10,)) for file in files]
    return assemble("cifar10", join(splits[:-1]), splits[-1], classes=10)


@register("cifar100", reads=FILES)
def _cifar100(request: Request) -> Dataset:
    """CIFAR-100, A. Krizhevsky, 2009; the binary version: coarse and fine label byte, 3072 pixels.

    The labels are the fine ones.
    """
    folders = "cifar-100-binary", "cifar-100-python"
    folder = cifar_folder("cifar100", request.data_dir, folders, ["train.bin", "test.bin"])
    train = read_cifar(folder / "train.bin", label_classes=(20, 100))
    test = read_cifar(folder / "test.bin", label_classes=(20, 100))
    return assemble("cifar100", train, test, classes=100)


@register("synthetic", reads=NOISE)
def _synthetic(request: Request) -> Dataset:
    """Noise around a random image for each class, for measurements; a quarter more for testing."""
    shape, classes = request.synthetic_shape, request.synthetic_classes
    train_size = request.synthetic_size
    if len(shape) != 3 or min(*shape, classes, train_size) < 1:
        raise DataError(
            f"synthetic: shape {shape}, {classes} classes and {train_size} "
            "images: give three sizes C, H, W and counts, all at least 1"
        )
    test_size = max(1, train_size // 4)
    rng = generator(request.seed, SYNTHETIC, 0, 0)
    centres = rng.integers(0, 64, (classes, *shape), dtype=np.uint8)
    labels = rng.integers(0, classes, train_size + test_size, dtype=np.int64)
    images = rng.integers(0, 192, (len(labels), *shape), dtype=np.uint8)
    images += centres[labels]  # at most 191 + 63, so uint8 never wraps
    train = images[:train_size], labels[:train_size]
    test = images[train_size:], labels[train_size:]
    return assemble("synthetic", train, test, classes)


def assemble(name: str, train: Split, test: Split, classes: int, *, mirror: bool = True) -> Dataset:
    """Make a Dataset from (images, labels): compute mean and std, and write-protect the arrays.

    DataError unless shapes, types and labels are as described there.
    """
    for images, labels in (train, test):
        _check(name, images, labels, classes)
        images.setflags(write=False)
        labels.setflags(write=False)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(f"{name}: images for training and for testing differ in shape")
    mean, std = _channel_statistics(train[0])
    return Dataset(name, *train, *test, classes, mean, std, mirror)


def _check(name: str, images: ImagesU8, labels: Labels, classes: int) -> None:
    """DataError unless these are uint8 [N, C, H, W] and int64 [N] below classes."""
    if images.dtype != np.uint8 or images.ndim != 4 or not images.size:
        raise DataError(
            f"{name}: images are {images.dtype} {[*images.shape]}, not uint8 [N, C, H, W]"
        )
    if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise DataError(
            f"{name}: labels are {labels.dtype} {[*labels.shape]}, not int64 [{len(images)}]"
        )
    if not 0 <= labels.min() <= labels.max() < classes:
        raise DataError(
            f"{name}: labels go from {labels.min()} to {labels.max()}, of {classes} classes"
        )


def _channel_statistics(images: ImagesU8) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each channel, float32 [C]; a constant channel's std is 1.

    The sums are exact integers, so the result depends on no summation order.
    """
    count = images.size // images.shape[1]
    total = np.einsum("nchw->c", images, dtype=np.int64)
    squares = np.einsum("nchw,nchw->c", images, images, dtype=np.int64)
    mean = total / count
    variance = np.maximum(squares / count - mean**2, 0.0)
    std = np.where(variance > 0.0, np.sqrt(variance), 1.0)
    return mean.astype(np.float32), std.astype(np.float32)
