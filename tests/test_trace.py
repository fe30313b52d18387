"""The trace: its layout, its life beside a reader, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dls import trace

RANKS, LAYERS = 2, 3


def header() -> trace.Header:
    attributes = {
        "config": "", "version": "0", "commit": "", "world_size": RANKS, "backend": "numpy", "seed": 0, "hosts": ["a", "b"],
        "started": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    numbers = {name: [1] * LAYERS for name in ("size", "inputs", "outputs", "kernel", "positions")}
    return trace.Header(attributes, {"name": ["x", "y", "z"], "kind": ["linear"] * LAYERS} | numbers)


def rows(first: int, count: int) -> dict[str, np.ndarray]:
    steps = np.arange(first, first + count)
    per_rank = {name: np.full((count, RANKS), 0.5) for name in ("loss", *(f"seconds/{phase}" for phase in trace.SECONDS))}
    per_layer = {name: np.full((count, RANKS, LAYERS), 2) for name in ("k", "threshold", "residual_norm")}
    once = {"step": steps, "epoch": steps * 0, "lr": steps * 0.1, "payload_bytes": np.full((count, RANKS), 8)}
    return once | per_rank | per_layer


def test_the_layout_is_that_of_the_schema(tmp_path: Path) -> None:
    writer = trace.Writer(tmp_path / "trace.h5", header())
    writer.steps(rows(1, 5))
    writer.evals(5, 0.25, 0.75)
    writer.close()
    with h5py.File(tmp_path / "trace.h5") as file:
        assert file.attrs["schema"] == "dls-trace/1"
        wanted = {"schema", "config", "version", "commit", "world_size", "backend", "seed", "hosts", "started"}
        assert set(file.attrs) == wanted
        assert set(file["layers"]) == {"name", "kind", "size", "inputs", "outputs", "kernel", "positions"}
        assert {file["steps"][name].shape for name in ("step", "epoch", "lr")} == {(5,)}
        assert {file["steps"][name].shape for name in ("loss", "payload_bytes")} == {(5, RANKS)}
        assert {file["steps"][name].shape for name in ("k", "threshold", "residual_norm")} == {(5, RANKS, LAYERS)}
        assert set(file["steps/seconds"]) == set(trace.SECONDS)
        assert set(file["evals"]) == {"step", "loss", "accuracy"}
        datasets = [file["steps"][name] for name in file["steps"] if name != "seconds"] + list(file["steps/seconds"].values())
        assert all(dataset.attrs["unit"] for dataset in [*datasets, *file["evals"].values()])


def test_a_reader_sees_what_was_flushed_while_the_writer_goes_on(tmp_path: Path) -> None:
    writer = trace.Writer(tmp_path / "trace.h5", header())
    for first in (1, 4, 7):
        writer.steps(rows(first, 3))
        assert trace.read(tmp_path / "trace.h5").steps["step"].tolist() == list(range(1, first + 3))
    writer.close()


def test_what_was_flushed_survives_sigkill(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib\nfrom tests.test_trace import header, rows\nfrom dls import trace\n"
        "w = trace.Writer(pathlib.Path(sys.argv[1]), header())\nw.steps(rows(1, 7))\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "trace.h5"
    root = Path(__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", program, str(path)], cwd=root, check=False).returncode == -9
    assert len(trace.read(path).steps["step"]) == 7
    writer = trace.go_on(tmp_path, 4, header())
    writer.steps(rows(5, 2))
    writer.close()
    assert trace.read(path).steps["step"].tolist() == [1, 2, 3, 4, 5, 6]
    with h5py.File(path) as file:
        assert file["steps/step"].shape == (6,)


def _other_schema(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "dls-trace/2"


def _no_datasets(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = trace.SCHEMA


def _whole(path: Path) -> None:
    writer = trace.Writer(path, header())
    writer.steps(rows(1, 60))
    writer.close()


def _cut(share: float) -> Callable[[Path], object]:
    def cut(path: Path) -> None:
        _whole(path)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    return cut


def _group_for_dataset(path: Path) -> None:
    _whole(path)
    with h5py.File(path, "r+") as file:
        del file["steps/k"]
        file.create_group("steps/k")


def _scalar(path: Path) -> None:
    _whole(path)
    with h5py.File(path, "r+") as file:
        del file["steps/step"]
        file["steps/step"] = 3


def _other_shape(path: Path) -> None:
    _whole(path)
    with h5py.File(path, "r+") as file:
        del file["steps/k"]
        file["steps/k"] = np.zeros((60, RANKS, LAYERS + 1))


def _schema_of_many(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = ["dls-trace/1", "dls-trace/1"]


def _no_world_size(path: Path) -> None:
    _whole(path)
    with h5py.File(path, "r+") as file:
        del file.attrs["world_size"]


def _plain_hdf5(path: Path) -> None:
    h5py.File(path, "w").close()


SPOILED = {
    "missing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "plain HDF5": _plain_hdf5,
    "newer schema": _other_schema,
    "no datasets": _no_datasets,
    "a group for a dataset": _group_for_dataset,
    "a scalar": _scalar,
    "another shape": _other_shape,
    "a schema of many": _schema_of_many,
    "no world size": _no_world_size,
} | {f"cut to {share}": _cut(share) for share in (0.001, 0.02, 0.1, 0.5, 0.9, 0.99)}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_no_trace_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.h5"
    SPOILED[case](path)
    with pytest.raises(trace.TraceError) as caught:
        trace.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
