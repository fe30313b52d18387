"""Data sets, and which images every rank trains and tests on.

Images stay uint8 in memory, [N, C, H, W]; a batch becomes float32 when it is drawn. A step's
global mini-batch has ranks * batch_size images and depends on the seed and that product alone,
never on how many ranks share it. All randomness is a pure function of (seed, purpose, epoch,
index), so a checkpoint has no random state to keep.

A new data set is one function, marked with `@_dataset("its-name")`.
"""

import gzip
import hashlib
import io
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

ImagesU8 = NDArray[np.uint8]  # [N, C, H, W]
ImagesF32 = NDArray[np.float32]  # [N, C, H, W]
Labels = NDArray[np.int64]  # [N]
Split = tuple[ImagesU8, Labels]

SYSTEM_DIR = Path("/usr/share/datasets")  # where Debian's dataset-* packages put their files
ASSETS_DIR = Path(__file__).parent / "assets"
DIGITS_SHA256 = "dcc8ca6619875703dbbfe9df02a9bcb04c8ea81247b27c64d917ab7421b1e6c6"
MAX_BYTES = 2**32  # no IDX file is unpacked beyond this
DEFLATE_RATIO = 1032  # zlib's technical notes: deflate never packs tighter than 1032:1
CIFAR_IMAGES = 50_000  # no file of CIFAR's has more
CIFAR_SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class DataError(ValueError):
    """Data is missing or wrong; the message is one line and says what to do."""


# --- the data sets ---------------------------------------------------------------------------


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
        """A CRC-32 of all images and labels, to tell whether two ranks loaded the same."""
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
class _Request:
    """What a loader may use of the arguments of `load`."""

    data_dir: Path | None
    shape: tuple[int, int, int]
    classes: int
    size: int
    seed: int


_Loader = Callable[[_Request], Dataset]
_LOADERS: dict[str, _Loader] = {}


def _dataset(name: str) -> Callable[[_Loader], _Loader]:
    """Register the decorated loader under `name`."""

    def register(loader: _Loader) -> _Loader:
        _LOADERS[name] = loader
        return loader

    return register


def names() -> tuple[str, ...]:
    """The names that `load` knows."""
    return tuple(_LOADERS)


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

    data_dir: where its files are; `digits` and `synthetic` have none.
    synthetic_*, seed: (C, H, W), classes, training images and seed of `synthetic`; else unused.
    Raises DataError for an unknown name and for missing or broken files.
    """
    if name not in _LOADERS:
        raise DataError(f"unknown dataset {name!r}: choose one of {', '.join(names())}")
    request = _Request(data_dir, synthetic_shape, synthetic_classes, synthetic_size, seed)
    return _LOADERS[name](request)


@_dataset("digits")
def _digits(_: _Request) -> Dataset:
    """UCI handwritten digits, shipped with the program; its split is described in assets/."""
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
    return _assemble("digits", train, test, classes=10, mirror=False)


@_dataset("mnist")
def _mnist(request: _Request) -> Dataset:
    """MNIST, Y. LeCun, C. Cortes, C. Burges; four IDX files."""
    advice = f"give --data-dir a folder with MNIST's four IDX files ({', '.join(IDX_FILES)})"
    return _load_idx("mnist", request.data_dir, advice, mirror=False)


@_dataset("fashion-mnist")
def _fashion_mnist(request: _Request) -> Dataset:
    """Fashion-MNIST, H. Xiao, K. Rasul, R. Vollgraf, 2017; four IDX files."""
    advice = "apt-get install dataset-fashion-mnist, or give --data-dir its four IDX files' folder"
    return _load_idx("fashion-mnist", request.data_dir, advice, mirror=True)


@_dataset("cifar10")
def _cifar10(request: _Request) -> Dataset:
    """CIFAR-10, A. Krizhevsky, 2009; the binary version: label byte, 3072 pixel bytes."""
    files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    folders = "cifar-10-batches-bin", "cifar-10-batches-py"
    folder = _cifar_folder("cifar10", request.data_dir, folders, files)
    splits = [_read_cifar(folder / file, label_classes=(10,)) for file in files]
    return _assemble("cifar10", _join(splits[:-1]), splits[-1], classes=10)


@_dataset("cifar100")
def _cifar100(request: _Request) -> Dataset:
    """CIFAR-100, A. Krizhevsky, 2009; the binary version: coarse and fine label byte, 3072 pixels.

    The labels are the fine ones.
    """
    folders = "cifar-100-binary", "cifar-100-python"
    folder = _cifar_folder("cifar100", request.data_dir, folders, ["train.bin", "test.bin"])
    train = _read_cifar(folder / "train.bin", label_classes=(20, 100))
    test = _read_cifar(folder / "test.bin", label_classes=(20, 100))
    return _assemble("cifar100", train, test, classes=100)


@_dataset("synthetic")
def _synthetic(request: _Request) -> Dataset:
    """Noise around one random image for each class, for measuring; a quarter more for testing."""
    if len(request.shape) != 3 or min(*request.shape, request.classes, request.size) < 1:
        raise DataError(
            f"synthetic: shape {request.shape}, {request.classes} classes and {request.size} "
            "images: give three sizes C, H, W and counts, all at least 1"
        )
    train_size, test_size = request.size, max(1, request.size // 4)
    rng = _generator(request.seed, _SYNTHETIC, 0, 0)
    centres = rng.integers(0, 64, (request.classes, *request.shape), dtype=np.uint8)
    labels = rng.integers(0, request.classes, train_size + test_size, dtype=np.int64)
    images = rng.integers(0, 192, (len(labels), *request.shape), dtype=np.uint8)
    images += centres[labels]  # at most 191 + 63, so uint8 never wraps
    train = images[:train_size], labels[:train_size]
    test = images[train_size:], labels[train_size:]
    return _assemble("synthetic", train, test, request.classes)


def _assemble(
    name: str, train: Split, test: Split, classes: int, *, mirror: bool = True
) -> Dataset:
    """Make the Dataset: measure mean and std, and write-protect the arrays."""
    for array in (*train, *test):
        array.setflags(write=False)
    mean, std = _channel_statistics(train[0])
    return Dataset(name, *train, *test, classes, mean, std, mirror)


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


# --- files in IDX format (MNIST, Fashion-MNIST) ----------------------------------------------


def _load_idx(name: str, data_dir: Path | None, advice: str, *, mirror: bool) -> Dataset:
    """Load the four IDX files, each plain or gzipped, from one folder."""
    folders = [SYSTEM_DIR / name] if data_dir is None else [data_dir / name, data_dir]
    wanted = [file + suffix for file in IDX_FILES for suffix in ("", ".gz")]
    folder = _first_folder_with(folders, wanted)
    if folder is None:
        raise DataError(f"{name}: no {_either(wanted[:2])} in {_either(folders)}; {advice}")
    paths = []
    for file in IDX_FILES:
        choices = [folder / file, folder / f"{file}.gz"]
        found = [path for path in choices if os.path.isfile(path)]
        if not found:
            raise DataError(f"{name}: neither {choices[0]} nor {file}.gz is there; {advice}")
        paths.append(found[0])
    train = _read_idx_split(paths[0], paths[1], classes=10)
    test = _read_idx_split(paths[2], paths[3], classes=10)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"{paths[2]}: images of {_by(test[0].shape[2:])} pixels, but {paths[0]} has "
            f"{_by(train[0].shape[2:])}; get both from the same data set"
        )
    return _assemble(name, train, test, classes=10, mirror=mirror)


def _read_idx_split(images_path: Path, labels_path: Path, classes: int) -> Split:
    """Read a pair of IDX files into images [N, 1, H, W] and labels [N]."""
    images = _read_idx(images_path, dimensions=3)
    labels = _read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: {len(labels)} labels, but {images_path} has {len(images)} images; "
            "get both from the same data set"
        )
    _check_labels(labels_path, labels, classes)
    return images[:, None], labels.astype(np.int64)


def _read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of bytes; gzipped where the name ends in .gz.

    The header is checked against what the file can hold before anything of its size is
    allocated, and no more than its data and one byte is unpacked.
    """
    packed = path.suffix == ".gz"
    try:
        with path.open("rb") as file:
            stream = gzip.GzipFile(fileobj=file) if packed else file
            shape = _parse_idx_header(path, stream.read(4 + 4 * dimensions), dimensions)
            count = math.prod(shape)
            length = os.fstat(file.fileno()).st_size
            most = min(MAX_BYTES, length * (DEFLATE_RATIO if packed else 1))
            if count > most:
                raise DataError(
                    f"{path}: its header claims {_by(shape)} bytes, but a file of its length "
                    f"has at most {most}; it is truncated or damaged, get it again"
                )
            data = stream.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); get the file again") from error
    if len(data) != count:
        fault = "is truncated" if len(data) < count else "goes on after its data"
        raise DataError(f"{path}: {fault} ({_by(shape)} bytes expected); get the file again")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _parse_idx_header(path: Path, header: bytes, dimensions: int) -> tuple[int, ...]:
    """Return the sizes that an IDX header names, all at least 1."""
    if len(header) != 4 + 4 * dimensions:
        raise DataError(f"{path}: is truncated in its header; get the file again")
    magic, *shape = struct.unpack(f">{1 + dimensions}I", header)
    expected = 0x0800 + dimensions  # 08: unsigned bytes
    if magic != expected:
        raise DataError(
            f"{path}: magic number {magic:#010x} where {expected:#010x} belongs; "
            f"this is no IDX file of bytes with {dimensions} dimension(s)"
        )
    if min(shape) < 1:
        raise DataError(f"{path}: its header claims {_by(shape)} bytes, so it holds no data")
    return tuple(shape)


# --- files in CIFAR's binary format ----------------------------------------------------------


def _cifar_folder(
    name: str, data_dir: Path | None, usual: tuple[str, str], files: Sequence[str]
) -> Path:
    """Return the folder with all `files`.

    usual: the folders that the archives of the binary and of the python version unpack to.
    """
    archive = f"{name.replace('cifar', 'cifar-')}-binary.tar.gz from {CIFAR_SITE}"
    if data_dir is None:
        raise DataError(f"{name}: where is {files[0]}? Unpack {archive} and give --data-dir")
    places = [data_dir / usual[0], data_dir]
    folder = _first_folder_with(places, files)
    if folder is None:
        pickles = [file.removesuffix(".bin") for file in files]
        python = _first_folder_with([data_dir / usual[1], data_dir], pickles)
        hint = f"; {python} has the python version, but the binary one is needed" if python else ""
        raise DataError(f"{name}: no {files[0]} in {_either(places)}{hint}; unpack {archive}")
    for file in files:
        if not os.path.isfile(folder / file):
            raise DataError(f"{name}: {folder / file} is not there; unpack {archive}")
    return folder


def _read_cifar(path: Path, label_classes: Sequence[int]) -> Split:
    """Read records of label bytes and a 3x32x32 image; the last label byte is the label.

    label_classes: how many values each label byte may take.
    """
    labels = len(label_classes)
    record = labels + 3 * 32 * 32
    try:
        with path.open("rb") as file:
            data = file.read(CIFAR_IMAGES * record + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error}); get the file again") from error
    if not data or len(data) % record:
        raise DataError(
            f"{path}: {len(data)} bytes are no multiple of the {record} of one image; "
            "it is truncated or damaged, get it again"
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, record)
    for column, classes in enumerate(label_classes):
        _check_labels(path, records[:, column], classes)
    images = records[:, labels:].reshape(-1, 3, 32, 32)
    return images, records[:, labels - 1].astype(np.int64)


# --- what the readers share ------------------------------------------------------------------


def _first_folder_with(folders: Sequence[Path], files: Sequence[str]) -> Path | None:
    """Return the first folder with any of the files: a data set never mixes two folders."""
    for folder in folders:
        if any(os.path.isfile(folder / file) for file in files):
            return folder
    return None


def _check_labels(path: Path, labels: NDArray[np.uint8], classes: int) -> None:
    """Raise DataError unless every label is below classes."""
    wrong = np.flatnonzero(labels >= classes)
    if wrong.size:
        raise DataError(
            f"{path}: label {labels[wrong[0]]} of image {wrong[0]} is not below {classes}; "
            "it is damaged or another data set's, get it again"
        )


def _join(splits: Sequence[Split]) -> Split:
    """Append splits to one another."""
    images, labels = zip(*splits, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _either(choices: Sequence[str | Path]) -> str:
    return " or ".join(map(str, choices))


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


# --- batches ---------------------------------------------------------------------------------

_SYNTHETIC, _ORDER, _AUGMENT = range(3)  # purposes of randomness


def _generator(seed: int, purpose: int, epoch: int, index: int) -> np.random.Generator:
    """Return a fresh generator, a pure function of its arguments; 0 <= seed, the rest < 2**32."""
    sequence = np.random.SeedSequence(seed, spawn_key=(purpose, epoch, index))
    return np.random.Generator(np.random.Philox(sequence))


def steps_per_epoch(n_train: int, global_batch: int) -> int:
    """How many whole global batches the training set has; the incomplete last one is dropped."""
    if not 1 <= global_batch <= n_train:
        raise DataError(
            f"a global batch of {global_batch} (batch size times ranks) does not lie between 1 "
            f"and the {n_train} training images; change --batch-size or the number of ranks"
        )
    return n_train // global_batch


@lru_cache(maxsize=2)
def _epoch_order(n_train: int, seed: int, epoch: int) -> Labels:
    """The order of the training images in an epoch; int64 [n_train], read-only."""
    order = _generator(seed, _ORDER, epoch, 0).permutation(n_train).astype(np.int64, copy=False)
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
class Position:
    """A place in the data, between two steps: `step` are finished, and `seen` images of `epoch`."""

    step: int = 0
    epoch: int = 0
    seen: int = 0


@dataclass(frozen=True)
class Batches:
    """The training batches of one rank, by step number; it keeps no position.

    batch_size: images per rank and step. augment: see `augment_images`. start: where batches of this
    size begin; what is left of its epoch before the next whole batch is dropped.
    Raises DataError where a global batch is larger than the training set.
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
        """The first whole batch of the epoch in which `start` lies."""
        return min(-(-self.start.seen // self.global_batch), self.steps_per_epoch)

    def place(self, step: int) -> tuple[int, int]:
        """Epoch, and batch in that epoch, of the step that follows `step` finished ones."""
        epochs, batch = divmod(self._first + step - self.start.step, self.steps_per_epoch)
        return self.start.epoch + epochs, batch

    def position(self, step: int) -> Position:
        """The place in the data after `step` finished steps."""
        epoch, batch = self.place(step)
        return Position(step, epoch, batch * self.global_batch)

    def steps_until(self, epoch: int) -> int:
        """How many steps are finished when so many epochs are."""
        return self.start.step + (epoch - self.start.epoch) * self.steps_per_epoch - self._first

    def batch(self, step: int) -> tuple[ImagesF32, Labels]:
        """Return this rank's part of the global batch of `step`, counted from 0 over all epochs.

        Normalised images float32 [batch_size, C, H, W] and labels int64 [batch_size].
        """
        data = self.dataset
        count = len(data.train_labels)
        epoch, index = self.place(step)
        part = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        chosen = global_indices(count, self.seed, epoch, index, self.global_batch)[part]
        images = data.train_images[chosen]
        if self.augment:
            rng = _generator(self.seed, _AUGMENT, epoch, index)
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
    """Crop each image at a shifted place, then mirror it left to right where flips is set.

    images uint8 [B, C, H, W]; shifts int64 [2, B], down and right, in pixels; flips bool [B].
    What lies outside the image is raw 0 (not the mean), the order of torchvision's
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
