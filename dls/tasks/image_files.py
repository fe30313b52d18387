"""Reads image files: IDX (MNIST, Fashion-MNIST) and the binary format of CIFAR.

They are checked before any memory of the size that they state is allocated.
"""

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dls.record import files
from dls.tasks.images import DataError, Split

SYSTEM_DIR = Path("/usr/share/datasets")
"""Where Debian's dataset-* packages install their files."""
MAX_BYTES = 2**32
"""The largest size to which an IDX file is unpacked."""
DEFLATE_RATIO = 1032
"""The largest compression ratio of deflate, according to zlib's technical notes."""
CIFAR_IMAGES = 50_000
"""The most images in a file of CIFAR."""
CIFAR_SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"
"""Where users can download CIFAR."""
IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
"""The files of MNIST and Fashion-MNIST: training images and labels, test images and labels."""


# --- files in IDX format (MNIST, Fashion-MNIST) ---------------------------------------------------


def read_idx_folder(
    name: str, data_dir: Path | None, usual: str, advice: str
) -> tuple[Split, Split]:
    """Read the four IDX files of one folder, under any of their names: training set, test set.

    usual: the folder that torchvision makes for the data set.
    """
    folders = _idx_folders(name, data_dir, usual)
    folder = _first_folder_with(folders, _idx_names(IDX_FILES[0]))
    if folder is None:
        names = f"{IDX_FILES[0]} or {_dotted(IDX_FILES[0])}, plain or .gz"
        raise DataError(f"{name}: no {names}, in {_either(folders)}; {advice}")
    paths = [_idx_path(name, folder, file, advice) for file in IDX_FILES]
    train = _read_idx_split(paths[0], paths[1], classes=10)
    test = _read_idx_split(paths[2], paths[3], classes=10)
    if train[0].shape[1:] != test[0].shape[1:]:
        raise DataError(
            f"{paths[2]}: images of {_by(test[0].shape[2:])} pixels, but {paths[0]} has "
            f"{_by(train[0].shape[2:])}; get both from the same data set"
        )
    return train, test


def _idx_folders(name: str, data_dir: Path | None, usual: str) -> list[Path]:
    """The folders in which to look for the files; a folder of their own comes first."""
    if data_dir is None:
        return [SYSTEM_DIR / name]
    _check_folder(name, data_dir)
    return [data_dir / name, data_dir / usual / "raw", data_dir / "raw", data_dir]


def _idx_names(file: str) -> list[str]:
    """The possible names of an IDX file: as Y. LeCun named it, or with a dot.

    Some archives unpack to a folder with the name of the file.
    """
    names = [name + suffix for name in (file, _dotted(file)) for suffix in ("", ".gz")]
    return [*names, *(f"{name.removesuffix('.gz')}/{name}" for name in names)]


def _dotted(file: str) -> str:
    """train-images.idx3-ubyte for train-images-idx3-ubyte."""
    return file.replace("-idx", ".idx")


def _idx_path(name: str, folder: Path, file: str, advice: str) -> Path:
    for each in _idx_names(file):
        if os.path.isfile(folder / each):
            return folder / each
    raise DataError(f"{name}: neither {folder / file} nor {file}.gz is there; {advice}")


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
    """Read an IDX file of bytes, gzipped if its name ends in .gz.

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


# --- files in CIFAR's binary format ---------------------------------------------------------------


def cifar_folder(
    name: str, data_dir: Path | None, usual: tuple[str, str], wanted: Sequence[str]
) -> Path:
    """Return the folder with all that is wanted.

    usual: the folders that the archives of the binary and of the python version unpack to.
    """
    archive = f"{name.replace('cifar', 'cifar-')}-binary.tar.gz from {CIFAR_SITE}"
    if data_dir is None:
        raise DataError(f"{name}: where is {wanted[0]}? Unpack {archive} and give --data-dir")
    _check_folder(name, data_dir)
    places = [data_dir / usual[0], data_dir]
    folder = _first_folder_with(places, wanted)
    if folder is None:
        pickles = [file.removesuffix(".bin") for file in wanted]
        python = _first_folder_with([data_dir / usual[1], data_dir], pickles)
        hint = f"; {python} has the python version, whose pickles are not opened" if python else ""
        raise DataError(f"{name}: no {wanted[0]} in {_either(places)}{hint}; unpack {archive}")
    for file in wanted:
        if not os.path.isfile(folder / file):
            raise DataError(f"{name}: {folder / file} is not there; unpack {archive}")
    return folder


def read_cifar(path: Path, label_classes: Sequence[int]) -> Split:
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


# --- shared by the readers ------------------------------------------------------------------------


def _check_folder(name: str, folder: Path) -> None:
    """Raise DataError unless the folder can be read."""
    try:
        os.listdir(folder)
    except OSError as error:
        raise DataError(
            f"{name}: --data-dir {folder} cannot be read: {files.reason(error)}"
        ) from None


def _first_folder_with(folders: Sequence[Path], wanted: Sequence[str]) -> Path | None:
    """Return the first folder with any wanted file, since a data set never mixes two folders."""
    for folder in folders:
        if any(os.path.isfile(folder / file) for file in wanted):
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


def join(splits: Sequence[Split]) -> Split:
    """Concatenate splits."""
    images, labels = zip(*splits, strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _either(choices: Sequence[str | Path]) -> str:
    return " or ".join(map(str, choices))


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
