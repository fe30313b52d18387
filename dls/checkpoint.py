"""Checkpoints: everything that a run needs to go on with the same bits.

OUT/checkpoints/step-00000100/ holds shared.h5 (rank 0: weights, momentum, batch norm's mean statistics), rank-00000.h5, …
(each rank's own state) and manifest.json, written last, with the SHA-256 of every file. A checkpoint is written aside, synced
to disk and renamed, so that a folder with its final name is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dls.comm import Comm

FORMAT = "dls-checkpoint/1"
Arrays = Mapping[str, NDArray[Any]]


class CheckpointError(ValueError):
    """A checkpoint that cannot be used: one clear line that says why."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int
    world_size: int
    config: str
    layers: tuple[tuple[str, int], ...]
    hashes: Mapping[str, str]


def save(out: Path, step: int, shared: Arrays, own: Arrays, config: str, layers: Mapping[str, int], comm: Comm) -> None:
    """Write a checkpoint after `step` finished steps; every rank calls it. An error on any rank is raised on all."""
    final = out / "checkpoints" / f"step-{step:08d}"
    aside = final.with_name(final.name + ".partial")

    def prepare() -> None:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)

    def write() -> dict[str, str]:
        files = {_rank_file(comm.rank): own} | ({"shared.h5": shared} if comm.rank == 0 else {})
        return {name: _write(aside / name, arrays) for name, arrays in files.items()}

    def publish() -> None:
        manifest = {"format": FORMAT, "step": step, "world_size": comm.size, "config": config}
        manifest |= {"layers": list(layers.items()), "sha256": hashes}
        _write_text(aside / "manifest.json", json.dumps(manifest, indent=1))
        _sync(aside)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(aside, final)
        _sync(final.parent)

    comm.from_rank_0(prepare)
    hashes: dict[str, str] = {}
    for written in comm.allgather_objects(comm.together(write)):
        hashes |= written
    comm.from_rank_0(publish)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.h5"


def _write(path: Path, arrays: Arrays) -> str:
    """Write arrays to a new HDF5 file, sync it, and return its SHA-256."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)
    _sync(path)
    return _sha256(path)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def latest(out: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a run, None where there is none. CheckpointError where it is damaged."""
    named = {p: p.name.removeprefix("step-") for p in (out / "checkpoints").glob("step-*") if p.is_dir()}
    complete = {int(number): p for p, number in named.items() if number.isdecimal()}
    return _describe(complete[max(complete)]) if complete else None


def _describe(folder: Path) -> Checkpoint:
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"its format is {manifest['format']!r}; this program reads {FORMAT}")
        layers = tuple((str(name), int(size)) for name, size in manifest["layers"])
        step, world_size, hashes = int(manifest["step"]), int(manifest["world_size"]), dict(manifest["sha256"])
        return Checkpoint(folder, step, world_size, str(manifest["config"]), layers, hashes)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{folder} is damaged: its manifest.json cannot be used ({error})") from None


def load(checkpoint: Checkpoint, rank: int) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """The shared arrays and this rank's own. CheckpointError where a file is missing or not what was written."""
    return (
        _read(checkpoint.folder / "shared.h5", checkpoint.hashes),
        _read(checkpoint.folder / _rank_file(rank), checkpoint.hashes),
    )


def _read(path: Path, hashes: Mapping[str, str]) -> dict[str, NDArray[Any]]:
    try:
        if _sha256(path) != hashes.get(path.name):
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the manifest's")
        with h5py.File(path, "r") as file:
            return {name: np.asarray(dataset[()]) for name, dataset in file.items()}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
