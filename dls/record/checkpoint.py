"""Checkpoints: everything that a run needs to go on with the same bits.

OUT/checkpoints/step-00000100/ holds shared.h5 (rank 0: weights, momentum, batch norm's mean
statistics), rank-00000.h5, … (each rank's own state) and manifest.json, written last, with the
configuration, the position in the data, the SHA-256 of every file, and a seal: the SHA-256 of the
manifest itself. No random state is stored, since all random numbers follow from seed and step. A
checkpoint is written under a temporary name, synced to disk and renamed, so that a folder with its
final name is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
from numpy.typing import NDArray

from dls.record import files, hdf5

if TYPE_CHECKING:
    from dls.comm.base import Comm

FORMAT = "dls-checkpoint/2"
"""The format of a checkpoint, in its manifest."""
MANIFEST = "manifest.json"
"""The file that describes a checkpoint; written last."""
SHARED = "shared.h5"
"""The file of what is the same on all ranks."""
MANIFEST_BYTES = 2**24
"""A longer manifest is not read; one of 10,000 ranks and as many layers has a tenth of it."""
Arrays = Mapping[str, NDArray[Any]]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used or written: one clear line that says why."""


@dataclass(frozen=True)
class Position:
    """A position in the data: `step` finished steps, `seen` images of `epoch` used."""

    step: int = 0
    epoch: int = 0
    seen: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint, or one to be written, which has no hashes yet.

    data: the checksum of its run's data; environment: what its bits depend on
    (`dls.record.environment`). Older checkpoints lack both.
    """

    folder: Path
    world_size: int
    position: Position
    config: str
    layers: tuple[tuple[str, int], ...]
    data: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, str] = field(default_factory=dict)

    @property
    def step(self) -> int:
        """How many steps are finished."""
        return self.position.step


def place(out: Path, step: int) -> Path:
    """The folder of a run's checkpoint after `step` finished steps."""
    return out / "checkpoints" / f"step-{step:08d}"


def complete(out: Path) -> dict[Path, int]:
    """The folders of a run's complete checkpoints and their steps, the last step first.

    They may have been damaged since.
    """
    numbers = {
        p: p.name.removeprefix("step-") for p in (out / "checkpoints").glob("step-*") if p.is_dir()
    }
    steps = {
        p: int(number)
        for p, number in numbers.items()
        if number.isascii() and number.isdigit() and len(number) < 20
    }
    return dict(sorted(steps.items(), key=lambda item: item[1], reverse=True))


# --- writing --------------------------------------------------------------------------------------


def save(about: Checkpoint, shared: Arrays, own: Arrays, keep: int, comm: Comm) -> list[str]:
    """Write a checkpoint, then remove all but the newest `keep` (0: keep all). Every rank calls it.

    Returns a line for each file or folder that should be removed and cannot. CheckpointError, on
    all ranks, where any of them cannot write: then no part of it stays, and earlier ones are
    unchanged.
    """

    def write(aside: Path) -> dict[str, str]:
        parts = {rank_file(comm.rank): own} | ({SHARED: shared} if comm.rank == 0 else {})
        return {name: _write(aside / name, arrays) for name, arrays in parts.items()}

    aside: Path | None = None
    try:
        aside, left = comm.from_rank_0(lambda: _prepare(about.folder))
        hashes: dict[str, str] = {}
        for written in comm.allgather_objects(comm.together(lambda: write(aside))):
            hashes |= written
        left += comm.from_rank_0(lambda: _publish(about, aside, hashes))
    except OSError as error:
        if comm.rank == 0 and aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"cannot write {about.folder}: {files.reason(error)}; earlier checkpoints are untouched"
        ) from None
    return left + comm.from_rank_0(lambda: _prune(about, keep))


def rank_file(rank: int) -> str:
    """The file of a rank's own state."""
    return f"rank-{rank:05d}.h5"


def _prepare(final: Path) -> tuple[Path, list[str]]:
    """An empty folder to write in, and a line for each old one that cannot be removed.

    Killed runs leave such folders behind. The run's own folder must still exist.
    """
    final.parent.mkdir(exist_ok=True)
    left = [line for folder in final.parent.glob("step-*.partial*") for line in _remove(folder)]
    aside = files.aside(final)
    aside.mkdir()
    return aside, left


def _write(path: Path, arrays: Arrays) -> str:
    """Write arrays to a new HDF5 file, sync it, and return its SHA-256. OSError.

    The datasets stay open until all is flushed: h5py drops the error where closing one of them
    writes what it still holds.
    """
    file = h5py.File(path, "x", locking=False)  # the run has its folder's lock
    try:
        datasets = [file.create_dataset(name, data=array) for name, array in arrays.items()]
        file.flush()
        datasets.clear()
        file.close()
    except (OSError, RuntimeError) as error:
        hdf5.give_up(file)
        raise OSError(0, files.reason(error)) from None
    files.sync(path)
    return _sha256(path)


def _publish(about: Checkpoint, aside: Path, hashes: Mapping[str, str]) -> list[str]:
    where = {
        "step": about.position.step,
        "epoch": about.position.epoch,
        "seen": about.position.seen,
    }
    manifest = {
        "format": FORMAT,
        "world_size": about.world_size,
        "position": where,
        "config": about.config,
    }
    manifest |= {"data": about.data, "environment": dict(about.environment)}
    manifest |= {"layers": about.layers, "sha256": dict(hashes)}
    files.write_text(aside / MANIFEST, json.dumps(manifest | {"seal": _seal(manifest)}, indent=1))
    # an existing one is damaged: the run started from an earlier one
    left = _take_down(about.folder) if about.folder.exists() else []
    files.publish(aside, about.folder)
    return left


def _seal(manifest: Mapping[str, Any]) -> str:
    text = json.dumps(
        {name: value for name, value in manifest.items() if name != "seal"}, sort_keys=True
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _prune(about: Checkpoint, keep: int) -> list[str]:
    """Keep the newest `keep` checkpoints up to this one, and remove those before.

    Checkpoints of later steps are damaged ones, which were passed over.
    """
    ours = [
        folder
        for folder, step in complete(about.folder.parent.parent).items()
        if step <= about.step
    ]
    left: list[str] = []
    for folder in ours[keep:] if keep else []:
        if not os.access(folder, os.W_OK | os.X_OK):  # somebody wants to keep it
            left.append(f"{folder} is write-protected; it stays")
            continue
        try:
            left += _take_down(folder)
        except OSError as error:
            left.append(_stays(folder, error))
    return left


def _take_down(folder: Path) -> list[str]:
    """Remove a checkpoint.

    It is renamed first, so that its name never stands for an incomplete one. OSError where it
    cannot be renamed.
    """
    aside = files.aside(folder.with_name(folder.name + ".removed"))
    os.replace(folder, aside)
    return _remove(aside)


def _remove(folder: Path) -> list[str]:
    """Remove a folder. Returns a line where that is not possible."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        return [_stays(folder, error)]
    return []


def _stays(path: Path, error: OSError) -> str:
    return f"{path} cannot be removed ({files.reason(error)}); it stays"


def _sha256(path: Path) -> str:
    with files.open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- reading --------------------------------------------------------------------------------------


def find(out: Path, comm: Comm) -> tuple[Checkpoint | None, list[str]]:
    """The newest intact checkpoint of a run, and a line for each damaged one that is newer.

    Every checksum of it is right. The ranks share the work and must see the same folder.
    CheckpointError, on all ranks, where there are checkpoints and none is intact.
    """
    passed: list[str] = []
    for folder in complete(out):
        examined = comm.allgather_objects(_examine(folder, comm.rank, comm.size))
        faults = [found for found in examined if isinstance(found, str)]
        if not faults:
            own: Any = examined[comm.rank]
            return own, passed
        passed.append(faults[0])
    if passed:
        raise CheckpointError(
            f"none of the {len(passed)} checkpoints in {out} is whole; of the newest, {passed[0]}"
        )
    return None, passed


def _examine(folder: Path, rank: int, ranks: int) -> Checkpoint | str:
    """The checkpoint in a folder, or what is wrong with it; this rank checks its share of files."""
    try:
        found = describe(folder)
        for name in sorted(found.hashes)[rank::ranks]:
            if _sha256(folder / name) != found.hashes[name]:
                return f"{folder / name} is damaged: its SHA-256 is not the manifest's"
    except CheckpointError as error:
        return str(error)
    except OSError as error:
        return f"{folder} is damaged: {error.filename} cannot be read ({files.reason(error)})"
    return found


def listing(out: Path) -> list[str]:
    """The checkpoints that this rank sees, with their manifests' checksums, to be compared."""
    manifests = {folder.name: folder / MANIFEST for folder in complete(out)}
    return [
        f"{name} ({_sha256(path)[:8] if path.is_file() else 'no manifest'})"
        for name, path in manifests.items()
    ]


def latest(out: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run, None where there is none; checksums are not checked.

    CheckpointError.
    """
    return next((describe(folder) for folder in complete(out)), None)


def describe(folder: Path) -> Checkpoint:
    """What a checkpoint's manifest says. CheckpointError where it is missing or damaged."""
    try:
        with files.open_plain(folder / MANIFEST) as file:
            text = file.read(MANIFEST_BYTES + 1)
        if len(text) > MANIFEST_BYTES:
            raise ValueError("it is too long")
        return _parse(folder, json.loads(text))
    except OSError as error:
        raise CheckpointError(
            f"{folder} is damaged: its {MANIFEST} cannot be read ({files.reason(error)})"
        ) from None
    except KeyError as error:
        raise CheckpointError(f"{folder} is damaged: its {MANIFEST} has no {error}") from None
    except (AttributeError, TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{folder} is damaged: its {MANIFEST} cannot be used ({error})"
        ) from None


def _parse(folder: Path, manifest: Any) -> Checkpoint:
    """Every type and range is checked: the seal shows accidental damage, not malice."""
    if manifest["format"] != FORMAT:
        raise ValueError(
            f"its format is {str(manifest['format'])[:40]!r}; this program reads {FORMAT}"
        )
    if manifest["seal"] != _seal(manifest):
        raise ValueError("its seal is not that of its text")
    ranks = _count(manifest["world_size"], 1)
    hashes = {str(name): str(digest) for name, digest in manifest["sha256"].items()}
    if len(hashes) != ranks + 1 or hashes.keys() != {SHARED, *map(rank_file, range(ranks))}:
        raise ValueError(f"its files are not those of {ranks} ranks")
    layers = tuple((str(name), _count(size, 1)) for name, size in manifest["layers"])
    where = Position(*(_count(manifest["position"][name], 0) for name in ("step", "epoch", "seen")))
    if folder.name != place(folder, where.step).name:
        raise ValueError(f"it is that of step {where.step}")
    found = Checkpoint(folder, ranks, where, str(manifest["config"]), layers, hashes=hashes)
    environment = {str(name): str(value) for name, value in manifest.get("environment", {}).items()}
    return replace(found, data=str(manifest.get("data", "")), environment=environment)


def _count(value: Any, low: int) -> int:
    """A whole number from `low` to what 32 bits hold. ValueError."""
    if type(value) is not int or not low <= value < 2**32:
        raise ValueError(f"{str(value)[:40]} is no count")
    return value


def load(
    checkpoint: Checkpoint, rank: int
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """The shared arrays, and the rank's own. CheckpointError."""
    return load_shared(checkpoint), load_own(checkpoint, rank)


def load_shared(checkpoint: Checkpoint) -> dict[str, NDArray[Any]]:
    """The arrays that are the same on all ranks. CheckpointError."""
    return _read(checkpoint.folder / SHARED)


def load_own(checkpoint: Checkpoint, rank: int) -> dict[str, NDArray[Any]]:
    """Those of one of the ranks that wrote it. CheckpointError."""
    return _read(checkpoint.folder / rank_file(rank))


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a file, which together cannot be larger than the file."""
    arrays: dict[str, NDArray[Any]] = {}
    try:
        left = path.stat().st_size
        with h5py.File(path, "r", locking=False) as file:
            for name in file:
                dataset = hdf5.dataset(file, name, left)
                if dataset.dtype.kind not in "iuf":
                    raise KeyError(f"{name} holds no numbers")
                arrays[name] = dataset[()]
                left -= arrays[name].nbytes
    except hdf5.ERRORS as error:
        raise CheckpointError(f"{path} cannot be read: {files.reason(error)}") from None
    return arrays
