"""A disk that is full, read-only or gone: one line, status 1, the last checkpoint untouched,
nothing half under a final name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dls.comm.world import World
from dls.record import checkpoint, reader
from dls.record.repair import go_on
from dls.record.writer import Writer
from tests.conftest import lines
from tests.launch import ROOT, launch
from tests.tools.test_trace import header, rows

ARGS = (
    "--density 0.05 --batch-size 8 --threads 1 --backend numpy --dataset synthetic"
    " --synthetic-shape 1,8,8 --synthetic-size 64"
)
CUT = "--method layerwise-topk --mlp-widths 200"
STEPWISE = """
import os, shutil, subprocess, sys
from mpi4py import MPI
from dls import train
step = train._step
def stepwise(run, recorder, reporter, number):
    if number == 5 and MPI.COMM_WORLD.rank == 0: {act}
    step(run, recorder, reporter, number)
train._step = stepwise
sys.exit(train.main(sys.argv[1:]))
"""


def mount(place: Path, *options: str) -> None:
    """A small disk of its own, which only root may have; in some containers not even root."""
    place.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", *options, "tmpfs", place]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs to mount a tmpfs, as root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    mount(tmp_path / "disk", "-o", "size=1m")
    yield tmp_path / "disk"
    subprocess.run(["umount", tmp_path / "disk"], check=True)


def fails(folder: Path, program: list[str | Path], *args: str) -> str:
    """The one line of a run on two ranks that ends with status 1."""
    done = launch([(2, [*program, *ARGS.split(), *args])], folder)
    assert done.status == 1, done
    (line,) = lines(done.err)
    return line


def is_whole(out: Path, step: int) -> None:
    """The newest checkpoint is that of the step, and verifies."""
    found, passed = checkpoint.find(out, World())
    assert found is not None
    assert (found.step, passed) == (step, [])
    for rank in range(2):
        checkpoint.load(found, rank)


def test_a_checkpoint_that_does_not_fit(disk: Path, tmp_path: Path) -> None:
    """Each takes some 320 KB, and the trace its part."""
    line = fails(
        tmp_path,
        ["-m", "dls.train"],
        *CUT.split(),
        "--steps",
        "20",
        "--checkpoint-every",
        "2",
        "--out",
        "disk/run",
    )
    found = checkpoint.latest(disk / "run")
    assert found is not None
    step = found.step + 2
    folder = f"disk/run/checkpoints/step-{step:08d}"
    assert line.endswith(
        f"step {step}: cannot write {folder}: No space left on device; earlier checkpoints are"
        " untouched"
    )
    is_whole(disk / "run", found.step)
    assert not list((disk / "run/checkpoints").glob("*.partial"))
    assert reader.read(disk / "run/trace.h5").steps["step"][-1] == step


def test_a_trace_that_does_not_fit(disk: Path, tmp_path: Path) -> None:
    args = [
        "--mlp-widths",
        ",".join(["4"] * 60),
        "--steps",
        "2000",
        "--checkpoint-every",
        "60",
        "--keep-checkpoints",
        "1",
    ]
    line = fails(tmp_path, ["-m", "dls.train"], *args, "--out", "disk/run")
    assert "cannot write disk/run/trace.h5: No space left on device" in line
    kept = reader.read(disk / "run/trace.h5").steps
    assert kept["step"].tolist() == list(range(1, len(kept["step"]) + 1))
    assert (
        len(kept["step"]) >= 50
        and (kept["seconds/total"] > 0).all()
        and (kept["k"].sum(axis=2) > 0).all()
    )
    found = checkpoint.latest(disk / "run")
    assert found is not None
    is_whole(disk / "run", found.step)


def test_checkpoints_that_become_read_only(tmp_path: Path) -> None:
    mount(tmp_path / "probe", "-o", "ro")
    subprocess.run(["umount", tmp_path / "probe"], check=True)
    program = tmp_path / "program.py"
    act = "os.rename('run/checkpoints', 'kept'), os.mkdir('run/checkpoints'), "
    act += (
        "subprocess.run(['mount', '-t', 'tmpfs', '-o', 'ro', 'tmpfs', 'run/checkpoints'],"
        " check=True)"
    )
    program.write_text(STEPWISE.format(act=act))
    try:
        line = fails(tmp_path, [program], "--steps", "9", "--checkpoint-every", "2", "--out", "run")
    finally:
        subprocess.run(["umount", tmp_path / "run/checkpoints"], check=True)
    assert "step 6: cannot write run/checkpoints/step-00000006: Read-only file system" in line
    (tmp_path / "run/checkpoints").rmdir()
    (tmp_path / "kept").rename(tmp_path / "run/checkpoints")
    is_whole(tmp_path / "run", 4)


def test_a_read_only_disk_at_the_start(tmp_path: Path, train) -> None:
    mount(tmp_path / "disk", "-o", "ro")
    try:
        done = train(2, *ARGS.split(), "--steps", "2", "--out", "disk/run")
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)
    assert done.status == 2
    assert lines(done.err) == ["dls.train: cannot write to disk/run: Read-only file system"]


@pytest.mark.parametrize(
    ("every", "words"),
    [("6", "cannot write run/trace.h5: it was removed"), ("0", "it was removed")],
)
def test_a_folder_that_is_removed(every: str, words: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(STEPWISE.format(act="shutil.rmtree('run')"))
    assert words in fails(
        tmp_path, [program], "--steps", "9", "--checkpoint-every", every, "--out", "run"
    )
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_folder_is_not_made_up(tmp_path: Path) -> None:
    about = checkpoint.Checkpoint(
        checkpoint.place(tmp_path / "gone", 3), 1, checkpoint.Position(3), "", ()
    )
    with pytest.raises(checkpoint.CheckpointError, match=r"gone.*No such file or directory"):
        checkpoint.save(about, {"w": np.zeros(3)}, {}, 0, World())
    assert not (tmp_path / "gone").exists()


FULL = """
import sys, pathlib
from dls.record.writer import Writer
from tests.tools.test_trace import header, rows
path = pathlib.Path(sys.argv[1])
writer = Writer(path, header())
try:
    for first in range(1, 10**6, 500):
        writer.append("steps", rows(first, 500))
except OSError as error:
    print(error)
writer.close()
print("closed")
"""


def test_a_writer_on_a_full_disk_ends_quietly(disk: Path) -> None:
    """HDF5 itself would raise at every further flush and close, and crash at exit."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, disk / "t.h5"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert lines(done.stdout) == [
        f"cannot write {disk / 't.h5'}: No space left on device",
        "closed",
    ]
    steps = reader.read(disk / "t.h5").steps
    assert len(steps["step"]) % 500 == 0 and (steps["payload_bytes"] == 8).all()


def test_a_trace_that_cannot_be_rewritten_stays(disk: Path) -> None:
    writer = Writer(disk / "trace.h5", header())
    writer.append("steps", rows(1, 1200))
    writer.close()
    before = (disk / "trace.h5").read_bytes()
    (disk / "filler").write_bytes(bytes(shutil.disk_usage(disk).free - 8192))
    with pytest.raises(OSError, match="No space left on device"):
        go_on(disk, 600, header())
    assert (disk / "trace.h5").read_bytes() == before
    assert not list(disk.glob("*.partial"))
    with pytest.raises(OSError, match="No space left on device"):
        Writer(disk / "new.h5", header())
    assert not (disk / "new.h5").exists()
