"""Laws of the data sets, their readers and the batches of a rank."""

import gzip
import re
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dls.tasks import batches, data, image_files
from dls.tasks.batches import Batches
from dls.tasks.data import Dataset
from dls.tasks.image_files import IDX_FILES
from dls.tasks.images import DataError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = IDX_FILES
RNG = np.random.default_rng(0)


def idx_bytes(array: np.ndarray) -> bytes:
    """The array as an IDX file of bytes."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def idx_contents(n_train: int = 20, n_test: int = 6) -> dict[str, np.ndarray]:
    """Small arrays in MNIST's form, by file name."""
    return {
        TRAIN_IMAGES: RNG.integers(0, 256, (n_train, 5, 4), dtype=np.uint8),
        TRAIN_LABELS: RNG.integers(0, 10, n_train, dtype=np.uint8),
        TEST_IMAGES: RNG.integers(0, 256, (n_test, 5, 4), dtype=np.uint8),
        TEST_LABELS: RNG.integers(0, 10, n_test, dtype=np.uint8),
    }


def write_idx(folder: Path, contents: dict[str, np.ndarray], packed: bool = False) -> None:
    """Write the arrays as IDX files, gzipped or not."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in contents.items():
        raw = idx_bytes(array)
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(raw) if packed else raw)


def cifar_records(count: int, label_classes: tuple[int, ...]) -> np.ndarray:
    """Random records of CIFAR's binary format, uint8 [count, labels + 3072]."""
    labels = [RNG.integers(0, classes, (count, 1), dtype=np.uint8) for classes in label_classes]
    pixels = RNG.integers(0, 256, (count, 3072), dtype=np.uint8)
    return np.hstack([*labels, pixels])


def write_cifar10(folder: Path) -> list[np.ndarray]:
    """Write six small files of CIFAR-10 and return their records."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    batches = [cifar_records(count, (10,)) for count in (3, 1, 2, 4, 1, 5)]
    for file, records in zip(files, batches, strict=True):
        (folder / file).write_bytes(records.tobytes())
    return batches


def synthetic(
    size: int = 50, shape: tuple[int, int, int] = (3, 16, 16), classes: int = 4, seed: int = 0
) -> Dataset:
    """A small synthetic data set."""
    return data.load(
        "synthetic",
        synthetic_shape=shape,
        synthetic_classes=classes,
        synthetic_size=size,
        seed=seed,
    )


def refused(*mentions: object) -> AbstractContextManager[object]:
    """Expect a DataError of one line that mentions all these files and words."""
    ahead = "".join(f"(?=.*{re.escape(str(mention))})" for mention in mentions)
    return pytest.raises(DataError, match=rf"\A{ahead}[^\n]*\Z")


# --- data sets ------------------------------------------------------------------------------------


def test_names_are_what_load_knows() -> None:
    assert data.names() == ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "synthetic")
    with refused("fashion-mnist"):
        data.load("imagenet")


def test_digits_are_embedded_and_the_same_each_time() -> None:
    digits, again = data.load("digits"), data.load("digits", Path("/nowhere"), seed=7)
    assert (digits.input_shape, digits.classes, digits.mirror) == ((1, 8, 8), 10, False)
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert len(digits.train_labels) == 1437 and len(digits.test_labels) == 360
    assert digits.train_images.max() == 16
    assert set(digits.train_labels) == set(digits.test_labels) == set(range(10))
    assert np.array_equal(digits.train_images, again.train_images)
    assert np.array_equal(digits.train_labels, again.train_labels)
    assert np.array_equal(digits.test_images, again.test_images)
    assert np.array_equal(digits.test_labels, again.test_labels)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 no archive", b"\x80\x04."])
def test_broken_digits_are_named(
    damage: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "ASSETS_DIR", tmp_path)
    with refused(tmp_path / "digits.npz"):
        data.load("digits")
    (tmp_path / "digits.npz").write_bytes(damage)
    with refused(tmp_path / "digits.npz"):
        data.load("digits")


def test_types_are_as_documented_and_arrays_read_only() -> None:
    for dataset in (data.load("digits"), synthetic()):
        for images in (dataset.train_images, dataset.test_images):
            assert images.dtype == np.uint8 and not images.flags.writeable
        for labels in (dataset.train_labels, dataset.test_labels):
            assert labels.dtype == np.int64 and not labels.flags.writeable
        assert dataset.mean.dtype == dataset.std.dtype == np.float32
        assert dataset.mean.shape == dataset.std.shape == (dataset.input_shape[0],)


@pytest.mark.parametrize("dataset", [data.load("digits"), synthetic()], ids=["digits", "synthetic"])
def test_normalised_training_images_have_mean_0_and_std_1(dataset: Dataset) -> None:
    images = dataset.normalise(dataset.train_images)
    assert images.dtype == np.float32 and images.shape == dataset.train_images.shape
    assert np.allclose(images.mean((0, 2, 3), dtype=np.float64), 0, atol=1e-6)
    assert np.allclose(images.std((0, 2, 3), dtype=np.float64), 1, atol=1e-6)


def test_statistics_are_those_of_the_definition_and_a_constant_channel_has_std_1() -> None:
    images = RNG.integers(0, 256, (30, 3, 4, 5), dtype=np.uint8)
    images[:, 1] = 255
    mean, std = data._channel_statistics(images)
    exact = images.astype(np.float64)
    assert np.array_equal(mean, exact.mean((0, 2, 3)).astype(np.float32))
    assert np.allclose(std[[0, 2]], exact.std((0, 2, 3))[[0, 2]], rtol=1e-6)
    assert mean[1] == 255 and std[1] == 1


def test_synthetic_follows_its_arguments_and_its_seed_alone() -> None:
    one, same, other = synthetic(seed=1), synthetic(seed=1), synthetic(seed=2)
    assert one.input_shape == (3, 16, 16) and one.classes == 4
    assert len(one.train_labels) == 50 and len(one.test_labels) == 12
    assert np.array_equal(one.train_images, same.train_images)
    assert np.array_equal(one.test_labels, same.test_labels)
    assert not np.array_equal(one.train_images, other.train_images)
    tiny = synthetic(size=1, shape=(1, 1, 1), classes=1)
    assert tiny.train_images.shape == tiny.test_images.shape == (1, 1, 1, 1)


def test_synthetic_is_learnable_by_the_nearest_class_mean() -> None:
    dataset = synthetic(size=200)
    images = dataset.normalise(dataset.train_images).reshape(200, -1)
    means = np.stack([images[dataset.train_labels == c].mean(0) for c in range(4)])
    tests = dataset.normalise(dataset.test_images).reshape(50, -1)
    distances = ((tests[:, None] - means) ** 2).sum(2)
    assert (distances.argmin(1) == dataset.test_labels).mean() > 0.95


@pytest.mark.parametrize(
    "arguments",
    [{"size": 0}, {"classes": 0}, {"shape": (3, 0, 8)}, {"shape": (8, 8)}, {"size": -1}],
)
def test_synthetic_refuses_empty_sizes(arguments: dict[str, object]) -> None:
    with refused("synthetic"):
        synthetic(**arguments)  # type: ignore[arg-type]


# --- IDX files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("place", ["folder", "subfolder", "system"])
def test_idx_files_come_back_as_written(
    name: str, packed: bool, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = idx_contents()
    write_idx(tmp_path if place == "folder" else tmp_path / name, contents, packed)
    monkeypatch.setattr(image_files, "SYSTEM_DIR", tmp_path)
    dataset = data.load(name, None if place == "system" else tmp_path)
    assert (dataset.name, dataset.input_shape, dataset.classes) == (name, (1, 5, 4), 10)
    assert np.array_equal(dataset.train_images[:, 0], contents[TRAIN_IMAGES])
    assert np.array_equal(dataset.train_labels, contents[TRAIN_LABELS])
    assert np.array_equal(dataset.test_images[:, 0], contents[TEST_IMAGES])
    assert np.array_equal(dataset.test_labels, contents[TEST_LABELS])


def test_a_folder_of_its_own_comes_first_and_folders_are_never_mixed(tmp_path: Path) -> None:
    write_idx(tmp_path, idx_contents(n_train=7))
    write_idx(tmp_path / "mnist", idx_contents(n_train=8))
    assert len(data.load("mnist", tmp_path).train_labels) == 8
    assert len(data.load("fashion-mnist", tmp_path).train_labels) == 7
    (tmp_path / "mnist" / TRAIN_LABELS).unlink()
    with refused(tmp_path / "mnist" / TRAIN_LABELS):
        data.load("mnist", tmp_path)


def test_missing_idx_files_are_named_with_the_places_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused(
        TRAIN_IMAGES, "train-images.idx3-ubyte", tmp_path / "mnist", tmp_path / "MNIST/raw"
    ):
        data.load("mnist", tmp_path)
    monkeypatch.setattr(image_files, "SYSTEM_DIR", tmp_path / "none")
    with refused("apt-get install dataset-fashion-mnist", tmp_path / "none"):
        data.load("fashion-mnist")


IDX_DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "empty": (TRAIN_IMAGES, lambda raw: b""),
    "cut header": (TRAIN_LABELS, lambda raw: raw[:6]),
    "cut data": (TEST_IMAGES, lambda raw: raw[:-1]),
    "header alone": (TRAIN_LABELS, lambda raw: raw[:8]),
    "trailing byte": (TEST_LABELS, lambda raw: raw + b"\0"),
    "wrong magic": (TRAIN_IMAGES, lambda raw: b"\0\0\x0d\x03" + raw[4:]),
    "labels as images": (TRAIN_IMAGES, lambda raw: idx_bytes(np.zeros(20, np.uint8))),
    "2^31 images": (TRAIN_IMAGES, lambda raw: raw[:4] + b"\x80\0\0\0" + raw[8:]),
    "2^96 bytes": (TEST_IMAGES, lambda raw: raw[:4] + b"\xff" * 12 + raw[16:]),
    "2^32 labels": (TEST_LABELS, lambda raw: raw[:4] + b"\xff" * 4 + raw[8:]),
    "no images": (TRAIN_IMAGES, lambda raw: raw[:4] + bytes(4) + raw[8:16]),
    "no rows": (TRAIN_IMAGES, lambda raw: raw[:8] + bytes(4) + raw[12:16]),
    "label 10": (TRAIN_LABELS, lambda raw: raw[:-1] + b"\x0a"),
    "too few labels": (TRAIN_LABELS, lambda raw: idx_bytes(np.zeros(19, np.uint8))),
    "other size": (TEST_IMAGES, lambda raw: idx_bytes(np.zeros((6, 4, 5), np.uint8))),
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("damage", IDX_DAMAGES)
def test_damaged_idx_files_are_named(damage: str, packed: bool, tmp_path: Path) -> None:
    contents = idx_contents()
    write_idx(tmp_path, contents, packed)
    name, spoil = IDX_DAMAGES[damage]
    raw = spoil(idx_bytes(contents[name]))
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(raw) if packed else raw)
    with refused(path):
        data.load("mnist", tmp_path)


GZIP_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "truncated": lambda packed: packed[: len(packed) // 2],
    "no checksum": lambda packed: packed[:-8],
    "wrong checksum": lambda packed: packed[:-8] + bytes(4) + packed[-4:],
    "trailing rubbish": lambda packed: packed + b"rubbish",
    "second member": lambda packed: packed + gzip.compress(b"more"),
    "not gzipped": lambda packed: gzip.decompress(packed),
    "bomb": lambda packed: gzip.compress(gzip.decompress(packed) + bytes(10**7)),
}


@pytest.mark.parametrize("damage", GZIP_DAMAGES)
def test_damaged_gzip_files_are_named(damage: str, tmp_path: Path) -> None:
    write_idx(tmp_path, idx_contents(), packed=True)
    path = tmp_path / f"{TRAIN_IMAGES}.gz"
    path.write_bytes(GZIP_DAMAGES[damage](path.read_bytes()))
    with refused(path):
        data.load("fashion-mnist", tmp_path)


def test_no_more_of_a_gzip_file_is_unpacked_than_its_header_claims(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []
    read = gzip.GzipFile.read

    def spy(self: gzip.GzipFile, size: int | None = -1) -> bytes:
        asked.append(size)
        return read(self, size)

    monkeypatch.setattr(gzip.GzipFile, "read", spy)
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(idx_bytes(np.zeros(9, np.uint8)) + bytes(10**7)))
    with refused(path):
        image_files._read_idx(path, dimensions=1)
    assert asked == [8, 10]
    monkeypatch.setattr(image_files, "MAX_BYTES", 8)
    with refused("at most 8"):
        image_files._read_idx(path, dimensions=1)


def test_every_flip_and_cut_of_an_idx_header_loads_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "images"
    raw = idx_bytes(RNG.integers(0, 256, (3, 2, 4), dtype=np.uint8))
    flips = [
        raw[:i] + bytes([raw[i] ^ bits]) + raw[i + 1 :] for i in range(16) for bits in range(1, 256)
    ]
    cuts = [raw[:i] for i in range(len(raw))]
    for spoiled in flips + cuts:
        path.write_bytes(spoiled)
        with refused(path):
            image_files._read_idx(path, dimensions=3)


@given(packed=st.booleans(), where=st.floats(0, 1, exclude_max=True), bits=st.integers(1, 255))
@settings(max_examples=150, deadline=None)
def test_any_flipped_byte_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, packed: bool, where: float, bits: int
) -> None:
    raw = idx_bytes(np.arange(24, dtype=np.uint8).reshape(3, 2, 4))
    spoiled = bytearray(gzip.compress(raw) if packed else raw)
    spoiled[int(where * len(spoiled))] ^= bits
    path = tmp_path_factory.mktemp("flip") / ("images.gz" if packed else "images")
    path.write_bytes(spoiled)
    try:
        images = image_files._read_idx(path, dimensions=3)
    except DataError as error:
        assert str(path) in str(error)
    else:
        assert images.size == 24 and images.dtype == np.uint8


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    for read in (
        lambda: image_files._read_idx(tmp_path, 3),
        lambda: image_files.read_cifar(tmp_path, (10,)),
    ):
        with refused(tmp_path):
            read()


# --- CIFAR's binary files -------------------------------------------------------------------------


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-bin"])
def test_cifar10_comes_back_as_written(subfolder: str, tmp_path: Path) -> None:
    *train, test = write_cifar10(tmp_path / subfolder)
    dataset = data.load("cifar10", tmp_path)
    records = np.concatenate(train)
    assert (dataset.input_shape, dataset.classes, dataset.mirror) == ((3, 32, 32), 10, True)
    assert np.array_equal(dataset.train_labels, records[:, 0])
    assert np.array_equal(dataset.train_images.reshape(11, -1), records[:, 1:])
    assert np.array_equal(dataset.test_labels, test[:, 0])
    assert np.array_equal(dataset.test_images.reshape(5, -1), test[:, 1:])


@pytest.mark.parametrize("subfolder", ["", "cifar-100-binary"])
def test_cifar100_has_the_fine_labels(subfolder: str, tmp_path: Path) -> None:
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    train, test = cifar_records(7, (20, 100)), cifar_records(3, (20, 100))
    (folder / "train.bin").write_bytes(train.tobytes())
    (folder / "test.bin").write_bytes(test.tobytes())
    dataset = data.load("cifar100", tmp_path)
    assert dataset.classes == 100
    assert np.array_equal(dataset.train_labels, train[:, 1])
    assert np.array_equal(dataset.train_images.reshape(7, -1), train[:, 2:])
    assert np.array_equal(dataset.test_labels, test[:, 1])


@pytest.mark.parametrize(
    ("name", "first"), [("cifar10", "data_batch_1.bin"), ("cifar100", "train.bin")]
)
def test_missing_cifar_files_are_named_with_the_places(
    name: str, first: str, tmp_path: Path
) -> None:
    with refused(first, "--data-dir"):
        data.load(name)
    with refused(first, tmp_path, f"{name[:5]}-{name[5:]}-binary.tar.gz"):
        data.load(name, tmp_path)


@pytest.mark.parametrize("subfolder", ["", "cifar-10-batches-py"])
def test_cifar_pickles_are_never_opened(subfolder: str, tmp_path: Path) -> None:
    folder = tmp_path / subfolder
    folder.mkdir(exist_ok=True)
    (folder / "data_batch_1").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with refused(f"{folder} has the python version, whose pickles are not opened"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize("file", ["data_batch_3.bin", "test_batch.bin"])
def test_damaged_cifar_files_are_named(file: str, tmp_path: Path) -> None:
    write_cifar10(tmp_path)
    path = tmp_path / file
    whole = path.read_bytes()
    for spoiled in (b"", whole[:-1], whole + b"\0", b"\x0a" + whole[1:]):
        path.write_bytes(spoiled)
        with refused(path):
            data.load("cifar10", tmp_path)
    path.unlink()
    with refused(path):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize("column", [0, 1], ids=["coarse", "fine"])
def test_a_cifar100_label_out_of_range_is_refused(column: int, tmp_path: Path) -> None:
    records = cifar_records(2, (20, 100))
    records[1, column] = (20, 100)[column]
    (tmp_path / "train.bin").write_bytes(records.tobytes())
    (tmp_path / "test.bin").write_bytes(cifar_records(2, (20, 100)).tobytes())
    with refused(tmp_path / "train.bin", "of image 1"):
        data.load("cifar100", tmp_path)


# --- batches --------------------------------------------------------------------------------------

SPLITS = [(1, 12), (2, 6), (3, 4), (4, 3)]  # ranks, batch size


def global_batch(
    dataset: Dataset, ranks: int, size: int, step: int, augment: bool
) -> tuple[np.ndarray, np.ndarray]:
    """All ranks' batches of a step in rank order."""
    parts = [Batches(dataset, 5, size, p, ranks, augment).batch(step) for p in range(ranks)]
    images, labels = zip(*parts, strict=True)
    return np.concatenate(images), np.concatenate(labels)


@pytest.mark.parametrize("augment", [False, True], ids=["plain", "augmented"])
@pytest.mark.parametrize("step", [0, 3, 4, 21])
def test_global_batches_do_not_depend_on_the_number_of_ranks(augment: bool, step: int) -> None:
    dataset = synthetic()
    images, labels = global_batch(dataset, *SPLITS[0], step, augment)
    assert images.shape == (12, 3, 16, 16) and images.dtype == np.float32
    assert labels.shape == (12,) and labels.dtype == np.int64
    for split in SPLITS[1:]:
        other_images, other_labels = global_batch(dataset, *split, step, augment)
        assert np.array_equal(images, other_images)
        assert np.array_equal(labels, other_labels)


def test_a_batch_is_its_part_of_the_global_indices() -> None:
    dataset = synthetic()
    own = Batches(dataset, seed=5, batch_size=4, rank=1, ranks=3)
    assert own.global_batch == 12 and own.steps_per_epoch == 4
    for step in (9, 0, 9):  # epoch 2, 0, 2: any order, any number of times
        chosen = batches.global_indices(50, 5, step // 4, step % 4, 12)[4:8]
        images, labels = own.batch(step)
        assert np.array_equal(images, dataset.normalise(dataset.train_images[chosen]))
        assert np.array_equal(labels, dataset.train_labels[chosen])


@given(n=st.integers(1, 60), size=st.integers(1, 60), seed=st.integers(0, 2**70))
def test_an_epoch_visits_each_image_at_most_once_and_drops_only_the_rest(
    n: int, size: int, seed: int
) -> None:
    if size > n:
        with refused("--batch-size"):
            batches.steps_per_epoch(n, size)
        return
    steps = batches.steps_per_epoch(n, size)
    parts = [batches.global_indices(n, seed, 3, i, size) for i in range(steps)]
    visited = np.concatenate(parts)
    assert visited.dtype == np.int64 and all(part.shape == (size,) for part in parts)
    assert len(set(visited)) == len(visited) == n - n % size
    assert set(visited) <= set(range(n))
    with pytest.raises(DataError):
        batches.global_indices(n, seed, 3, steps, size)


def test_epochs_seeds_and_nothing_else_change_the_order() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return list(batches.global_indices(50, seed, epoch, 0, 50))

    orders = [order(seed, epoch) for seed in (0, 1, 2**32, 2**32 + 1) for epoch in range(4)]
    assert len({tuple(o) for o in orders}) == len(orders)
    assert order(0, 0) == orders[0]
    two_halves = [
        *batches.global_indices(50, 0, 0, 0, 25),
        *batches.global_indices(50, 0, 0, 1, 25),
    ]
    assert two_halves == orders[0]


def test_impossible_batches_are_refused() -> None:
    dataset = synthetic()
    with refused("50 training images"):
        Batches(dataset, 0, batch_size=17, rank=0, ranks=3)
    with refused("batch"):
        Batches(dataset, 0, batch_size=0, rank=0, ranks=3)
    for rank in (-1, 3):
        with pytest.raises(ValueError, match="rank"):
            Batches(dataset, 0, batch_size=1, rank=rank, ranks=3)


@pytest.mark.parametrize(
    ("height", "width", "pad"), [(32, 32, 4), (28, 28, 3), (8, 8, 1), (7, 64, 0), (224, 224, 4)]
)
def test_crop_padding(height: int, width: int, pad: int) -> None:
    assert batches.crop_padding(height, width) == pad


@given(
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    shifts=st.lists(st.tuples(st.integers(-2, 2), st.integers(-2, 2)), max_size=4),
    flip=st.booleans(),
)
def test_augmentation_is_crop_of_the_padded_image_then_mirror(
    height: int, width: int, shifts: list[tuple[int, int]], flip: bool
) -> None:
    images = RNG.integers(1, 256, (len(shifts), 2, height, width), dtype=np.uint8)
    flips = np.array([flip ^ (i % 2 == 1) for i in range(len(shifts))], dtype=np.bool_)
    moves = np.array(shifts, dtype=np.int64).reshape(-1, 2).T
    result = batches.augment_images(images, moves, flips)
    assert result.dtype == np.uint8 and result.shape == images.shape
    for image, (down, right), mirrored, got in zip(images, shifts, flips, result, strict=True):
        padded = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        crop = padded[:, 2 + down : 2 + down + height, 2 + right : 2 + right + width]
        assert np.array_equal(got, crop[:, :, ::-1] if mirrored else crop)


def test_augmentation_differs_from_step_to_step_and_seed_to_seed() -> None:
    dataset = synthetic(size=40, shape=(1, 8, 8))
    one_image = np.repeat(dataset.train_images[:1], 40, axis=0)
    dataset = replace(dataset, train_images=one_image)  # so that only the augmentation differs
    batches = [Batches(dataset, seed, 20, rank=0, ranks=1, augment=True) for seed in (0, 1)]
    drawn = {(seed, step): batches[seed].batch(step)[0] for seed in (0, 1) for step in range(4)}
    assert len({images.tobytes() for images in drawn.values()}) == 8
    assert np.array_equal(drawn[0, 2], batches[0].batch(2)[0])


def test_augmentation_flips_half_and_shifts_up_to_the_padding() -> None:
    rng = data.generator(0, data.AUGMENT, 0, 0)
    shifts, flips = batches._draw_augmentation(rng, 2000, synthetic(shape=(1, 8, 8)))
    assert 0.45 < flips.mean() < 0.55
    assert [set(axis) for axis in shifts.tolist()] == [{-1, 0, 1}] * 2


def test_digits_are_never_mirrored() -> None:
    digits = data.load("digits")
    rng = data.generator(0, data.AUGMENT, 0, 0)
    assert not batches._draw_augmentation(rng, 1000, digits)[1].any()


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 12, 13])
@pytest.mark.parametrize("batch", [1, 5, 100])
def test_the_ranks_shards_are_the_test_set_in_order(ranks: int, batch: int) -> None:
    dataset = synthetic()
    shards = [list(batches.test_shard(dataset, p, ranks, batch)) for p in range(ranks)]
    items = [item for shard in shards for item in shard]
    assert all(0 < len(labels) == len(images) <= batch for images, labels in items)
    counts = [sum(len(labels) for _, labels in shard) for shard in shards]
    assert max(counts) - min(counts) <= 1
    images = np.concatenate([images for images, _ in items])
    assert np.array_equal(images, dataset.normalise(dataset.test_images))
    assert np.array_equal(np.concatenate([labels for _, labels in items]), dataset.test_labels)


# --- data sets of one's own -----------------------------------------------------------------------


def whole(count: int = 4, **changes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels that a data set may hold, but for the changes."""
    split = {
        "images": np.zeros((count, 1, 2, 2), np.uint8),
        "labels": np.zeros(count, np.int64),
    } | changes
    return split["images"], split["labels"]


def test_a_registered_data_set_is_one_like_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_LOADERS", dict(data._LOADERS))
    data.register("own")(
        lambda request: data.assemble("own", whole(request.synthetic_size), whole(), classes=1)
    )
    assert "own" in data.names()
    assert data.load("own", synthetic_size=7).train_images.shape == (7, 1, 2, 2)
    assert not data.load("own").train_labels.flags.writeable


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": np.zeros((4, 1, 2, 2), np.float32)}, "images are float32"),
        ({"images": np.zeros((4, 2, 2), np.uint8)}, r"images are uint8 \[4, 2, 2\]"),
        ({"images": np.zeros((0, 1, 2, 2), np.uint8)}, "images are uint8"),
        ({"labels": np.zeros(4, np.int32)}, "labels are int32"),
        ({"labels": np.zeros(3, np.int64)}, r"labels are int64 \[3\]"),
        ({"labels": np.array([0, 1, 2, 3])}, "labels go from 0 to 3"),
        ({"labels": np.array([0, -1, 0, 0])}, "labels go from -1 to 0"),
    ],
)
@pytest.mark.parametrize("place", ["train", "test"])
def test_what_is_no_data_set_is_refused(
    place: str, changes: dict[str, np.ndarray], words: str
) -> None:
    splits = {"train": whole(), "test": whole()} | {place: whole(**changes)}
    with pytest.raises(DataError, match=f"own: {words}"):
        data.assemble("own", **splits, classes=3)


def test_images_of_two_shapes_are_refused() -> None:
    with pytest.raises(DataError, match="differ in shape"):
        data.assemble("own", whole(), whole(images=np.zeros((4, 1, 2, 3), np.uint8)), classes=3)


# --- the other usual names ------------------------------------------------------------------------

LAYOUTS = {
    "dots": "{dotted}",
    "torchvision": "{usual}/raw/{plain}",
    "torchvision's folder itself": "raw/{plain}",
    "folders as Kaggle's": "{plain}/{plain}",
    "dots in such folders": "{dotted}/{dotted}",
}


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzipped"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "usual"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_idx_files_are_found_under_their_other_names(
    name: str, usual: str, layout: str, packed: bool, tmp_path: Path
) -> None:
    contents = idx_contents()
    for plain, array in contents.items():
        dotted = plain.replace("-idx", ".idx")
        path = tmp_path / LAYOUTS[layout].format(plain=plain, dotted=dotted, usual=usual)
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = idx_bytes(array)
        path = path.with_name(path.name + ".gz") if packed else path
        path.write_bytes(gzip.compress(raw) if packed else raw)
    dataset = data.load(name, tmp_path)
    assert np.array_equal(dataset.train_images[:, 0], contents[TRAIN_IMAGES])
    assert np.array_equal(dataset.test_labels, contents[TEST_LABELS])


def test_torchvisions_two_data_sets_are_told_apart(tmp_path: Path) -> None:
    write_idx(tmp_path / "MNIST/raw", idx_contents(n_train=7))
    write_idx(tmp_path / "FashionMNIST/raw", idx_contents(n_train=8))
    assert len(data.load("mnist", tmp_path).train_labels) == 7
    assert len(data.load("fashion-mnist", tmp_path).train_labels) == 8


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100"])
def test_a_folder_that_cannot_be_read_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder, why in {
        "none": "No such file",
        "file": "Not a directory",
        "x" * 300: "File name too long",
    }.items():
        with refused(f"--data-dir {tmp_path / folder} cannot be read: {why}"):
            data.load(name, tmp_path / folder)
