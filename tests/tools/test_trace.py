"""The trace: its layout, its life beside a reader, and what is refused."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from dls.inspect import __main__ as inspect
from dls.record import reader
from dls.record.lock import Lock, State
from dls.record.repair import go_on, repair
from dls.record.schema import KNOWN, SCHEMA, SECONDS, Header, TraceError
from dls.record.writer import Writer
from tests.launch import ROOT

RANKS, LAYERS = 2, 3


def header() -> Header:
    attributes = {
        "config": "", "version": "0", "commit": "", "world_size": RANKS, "backend": "numpy",
        "seed": 0, "hosts": ["a", "b"],
        "started": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    numbers = {name: [1] * LAYERS for name in ("size", "inputs", "outputs", "kernel", "positions")}
    return Header(attributes, {"name": ["x", "y", "z"], "kind": ["linear"] * LAYERS} | numbers)


def rows(first: int, count: int) -> dict[str, np.ndarray]:
    steps = np.arange(first, first + count)
    per_rank = {
        name: np.full((count, RANKS), 0.5)
        for name in ("loss", *(f"seconds/{phase}" for phase in SECONDS))
    }
    per_layer = {
        name: np.full((count, RANKS, LAYERS), 2) for name in ("k", "threshold", "residual_norm")
    }
    once = {"step": steps, "epoch": steps * 0, "lr": steps * 0.1}
    once |= {name: np.full((count, RANKS), 8) for name in ("payload_bytes", "received_bytes")}
    return once | per_rank | per_layer


def test_the_layout_is_that_of_the_schema(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "trace.h5", header())
    writer.append("steps", rows(1, 5))
    writer.evaluation(5, 0.25, 0.75)
    writer.close()
    with h5py.File(tmp_path / "trace.h5") as file:
        assert file.attrs["schema"] == "dls-trace/2"
        wanted = {
            "schema",
            "config",
            "version",
            "commit",
            "world_size",
            "backend",
            "seed",
            "hosts",
            "started",
        }
        assert set(file.attrs) == wanted | {"NX_class", "default"}
        assert set(file["layers"]) == {
            "name",
            "kind",
            "size",
            "inputs",
            "outputs",
            "kernel",
            "positions",
        }
        assert {file["steps"][name].shape for name in ("step", "epoch", "lr")} == {(5,)}
        assert {file["steps"][name].shape for name in ("loss", "payload_bytes")} == {(5, RANKS)}
        assert {file["steps"][name].shape for name in ("k", "threshold", "residual_norm")} == {
            (5, RANKS, LAYERS)
        }
        assert set(file["steps/seconds"]) == set(SECONDS)
        assert set(file["evals"]) == {"step", "loss", "accuracy"}
        datasets = [file["steps"][name] for name in file["steps"] if name != "seconds"] + list(
            file["steps/seconds"].values()
        )
        assert all(dataset.attrs["units"] for dataset in [*datasets, *file["evals"].values()])


def test_viewers_find_a_name_a_scale_and_a_unit_for_every_axis(tmp_path: Path, writing) -> None:
    """Also in the trace of a writer that was killed, once it is repaired."""
    writing.kill()
    writing.wait()
    repair(tmp_path / "trace.h5")
    names = {
        "rank": [*range(RANKS)],
        "layer": [b"x", b"y", b"z"],
        "phase": [b"backward", b"select", b"exchange", b"decode"],
    }
    with h5py.File(tmp_path / "trace.h5") as file:
        found: list[h5py.Dataset] = []
        file.visititems(
            lambda name, item: found.append(item) if isinstance(item, h5py.Dataset) else None
        )
        assert {each.name[1:] for each in found} == set(names) | {each.name for each in KNOWN}
        described = [each for each in found if each.name[1:] not in names]
        assert all(each.attrs["units"] and each.attrs["comment"] for each in described)
        for dataset in (each for each in found if not h5py.h5ds.is_scale(each.id)):
            group = file[dataset.name.split("/")[1]]
            growing = {"step": group.get("step"), "message": group.get("message")}
            for dimension, length in zip(dataset.dims, dataset.shape, strict=True):
                (scale,) = dimension.values()
                assert len(scale) == length
                assert dimension.label == dimension.keys()[0]
                if dimension.label in growing:
                    assert scale == growing[dimension.label]
                else:
                    assert scale[()].tolist() == names[dimension.label]
        assert [dimension.label for dimension in file["diagnostics/begin"].dims] == [
            "step",
            "rank",
            "layer",
            "phase",
        ]


def test_a_reader_sees_what_was_flushed_while_the_writer_goes_on(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "trace.h5", header())
    for first in (1, 4, 7):
        writer.append("steps", rows(first, 3))
        assert reader.read(tmp_path / "trace.h5").steps["step"].tolist() == list(
            range(1, first + 3)
        )
    writer.close()


def test_what_was_flushed_survives_sigkill(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys, pathlib\nfrom tests.tools.test_trace import header, rows\nfrom"
        " dls.record.writer import Writer\nw = Writer(pathlib.Path(sys.argv[1]),"
        " header())\nw.append('steps', rows(1, 7))\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = tmp_path / "trace.h5"
    assert (
        subprocess.run([sys.executable, "-c", program, str(path)], cwd=ROOT, check=False).returncode
        == -9
    )
    assert len(reader.read(path).steps["step"]) == 7
    writer = go_on(tmp_path, 4, header())
    writer.append("steps", rows(5, 2))
    writer.close()
    assert reader.read(path).steps["step"].tolist() == [1, 2, 3, 4, 5, 6]
    with h5py.File(path) as file:
        assert file["steps/step"].shape == (6,)


KILLED = """
import itertools, pathlib, sys
from tests.tools.test_trace import header, rows
from dls.record import lock
from dls.record.writer import Writer
path, own = pathlib.Path(sys.argv[1]), lock.Lock()
own.take(path.parent)
writer = Writer(path, header())
for first in itertools.count(1, 40):
    writer.append("steps", rows(first, 40))
    writer.evaluation(first + 39, 0.5, 0.5)
    print(first + 39, flush=True)
"""


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that writes tmp_path/trace.h5 until it is killed, and tells what it has flushed; 40
    steps are there at least.
    """
    command = [sys.executable, "-c", KILLED, str(tmp_path / "trace.h5")]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "40\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@pytest.mark.parametrize("after", [0, 0.013, 0.05, 0.11, 0.23])
def test_a_writer_killed_at_any_moment_loses_what_it_had_not_flushed(
    after: float, writing, tmp_path: Path, capsys
) -> None:
    time.sleep(after)
    writing.kill()
    flushed = ["40", *writing.communicate()[0].split()]
    steps = reader.read(tmp_path / "trace.h5").steps
    last = len(steps["step"])
    assert last >= int(flushed[-1])
    assert steps["step"].tolist() == list(range(1, last + 1))
    assert (steps["payload_bytes"] == 8).all() and (steps["k"] == 2).all()
    with pytest.raises(OSError, match="already open for write"):
        h5py.File(tmp_path / "trace.h5")
    assert inspect.main(["--repair", str(tmp_path)]) == 0
    assert f"trace.h5 is repaired, with {last} recorded steps" in capsys.readouterr().out
    with h5py.File(tmp_path / "trace.h5") as file:
        assert file["steps/step"][()].tolist() == list(range(1, last + 1))
    assert inspect.main(["--repair", str(tmp_path / "trace.h5")]) == 0
    assert f"trace.h5 is in order, with {last} recorded steps" in capsys.readouterr().out


def test_a_living_writer_keeps_its_trace(writing, tmp_path: Path, capsys) -> None:
    assert inspect.main(["--repair", str(tmp_path)]) == 2
    assert (
        f"{tmp_path} is in use, by a run that goes on (process {writing.pid} on"
        in capsys.readouterr().err
    )
    assert reader.state(tmp_path / "trace.h5") is State.HELD
    assert reader.read(tmp_path / "trace.h5").header.ranks == RANKS
    writing.kill()
    writing.wait()
    assert reader.state(tmp_path / "trace.h5") is State.FREE


def test_rows_claimed_but_never_written_do_not_count(tmp_path: Path) -> None:
    """As a full disk leaves them: the numbers of the last steps are still zeros."""
    _whole(tmp_path / "trace.h5")
    with h5py.File(tmp_path / "trace.h5", "r+") as file:
        file["steps/step"][50:] = 0
    assert reader.read(tmp_path / "trace.h5").steps["loss"].shape == (50, RANKS)


def _other_schema(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = "dls-trace/2"


def _no_datasets(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["schema"] = SCHEMA


def _whole(path: Path) -> None:
    writer = Writer(path, header())
    writer.append("steps", rows(1, 60))
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


def _replaced(name: str, make: Callable[[h5py.File], object]) -> Callable[[Path], None]:
    """A whole trace in which something else stands for `name`."""

    def spoil(path: Path) -> None:
        _whole(path)
        with h5py.File(path, "r+") as file:
            del file[name]
            make(file)

    return spoil


def _elsewhere(file: h5py.File) -> None:
    """Another file's values, by a virtual dataset."""
    layout = h5py.VirtualLayout((60, RANKS), np.float64)
    layout[...] = h5py.VirtualSource("other.h5", "x", (60, RANKS))
    file.create_virtual_dataset("steps/loss", layout)


def _everything(file: h5py.File) -> None:
    """8 PB that nobody ever wrote."""
    file.create_dataset(
        "steps/loss", (10**15, RANKS), "f8", maxshape=(None, RANKS), chunks=(1000, RANKS)
    )


def _attribute(name: str, value: object) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        _whole(path)
        with h5py.File(path, "r+") as file:
            del file.attrs[name]
            file.attrs[name] = value if value is not None else file["steps"].ref

    return spoil


def _external(file: h5py.File) -> None:
    file["steps/loss"] = h5py.ExternalLink("/dev/zero", "x")


def _soft(file: h5py.File) -> None:
    file["steps"] = h5py.SoftLink("/evals")


def _stored_elsewhere(file: h5py.File) -> None:
    file.create_dataset("steps/loss", (60, RANKS), "f8", external=[("/etc/passwd", 0, 960)])


def _packed(file: h5py.File) -> None:
    file.create_dataset(
        "steps/loss", data=np.zeros((60, RANKS)), chunks=(60, RANKS), compression="gzip"
    )


def _texts_for_numbers(file: h5py.File) -> None:
    file.create_dataset("steps/loss", data=[["a"] * RANKS] * 60)


def _pairs(file: h5py.File) -> None:
    file.create_dataset("steps/loss", data=np.zeros((60, RANKS), dtype=[("a", "f8"), ("b", "f8")]))


def _no_size(file: h5py.File) -> None:
    file.create_dataset("layers/size", data=[0] * LAYERS)


def _linked_diagnosis(file: h5py.File) -> None:
    file["diagnostics/begin"] = h5py.SoftLink("/diagnostics/end")


def _dangling(file: h5py.File) -> None:
    file["diagnostics"] = h5py.SoftLink("/nowhere")


def _other_ranks(file: h5py.File) -> None:
    file["diagnostics/global_share"] = np.zeros((0, RANKS + 1))


MALICIOUS: dict[str, Callable[[Path], object]] = {
    "an external link": _replaced("steps/loss", _external),
    "a soft link": _replaced("steps", _soft),
    "external storage": _replaced("steps/loss", _stored_elsewhere),
    "a virtual dataset": _replaced("steps/loss", _elsewhere),
    "a filter": _replaced("steps/loss", _packed),
    "petabytes": _replaced("steps/loss", _everything),
    "texts": _replaced("steps/loss", _texts_for_numbers),
    "pairs": _replaced("steps/loss", _pairs),
    "a diagnosis by a link": _replaced("diagnostics/begin", _linked_diagnosis),
    "diagnostics that are a dangling link": _replaced("diagnostics", _dangling),
    "diagnostics of other ranks": _replaced("diagnostics/global_share", _other_ranks),
    "layers of no size": _replaced("layers/size", _no_size),
    "a billion ranks": _attribute("world_size", 10**9),
    "a reference for ranks": _attribute("world_size", None),
    "texts for ranks": _attribute("world_size", "2"),
}


SPOILED = (
    MALICIOUS
    | {
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
    }
    | {f"cut to {share}": _cut(share) for share in (0.001, 0.02, 0.1, 0.5, 0.9, 0.99)}
)


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_no_trace_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.h5"
    SPOILED[case](path)
    with pytest.raises(TraceError) as caught:
        reader.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damage_beside_a_living_writer_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5's own mode for that would wait for ever."""
    monkeypatch.setattr(reader, "PAUSE", 0.001)
    path = tmp_path / "trace.h5"
    _whole(path)
    content = bytearray(path.read_bytes())
    content[10_000] ^= 255
    path.write_bytes(content)
    own = Lock()
    own.take(tmp_path)
    with pytest.raises(TraceError, match=r"trace\.h5.*incorrect metadata checksum"):
        reader.read(path)
    own.release()


def test_a_trace_names_every_commit_that_wrote_to_it(tmp_path: Path) -> None:
    for first, commit in enumerate(["a", "a", "b+1", "a"], start=1):
        own = Header({**header().attributes, "commit": commit}, header().layers)
        writer = go_on(tmp_path, first - 1, own)
        writer.append("steps", rows(first, 1))
        writer.close()
    found = reader.read(tmp_path / "trace.h5")
    assert found.header.attributes["commit"] == "a b+1"
    assert list(found.steps["step"]) == [1, 2, 3, 4]
