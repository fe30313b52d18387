"""One run has a folder, reads its configuration once, and says where it goes on otherwise than it
began.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from dls.comm.world import World
from dls.program import config, folder, heartbeat
from dls.record import checkpoint, environment, files, lock, reader
from dls.record.lock import Lock, State
from tests.conftest import lines
from tests.launch import ROOT, finish, launch, start, wait_until

TINY = [
    "--mlp-widths",
    "8",
    "--batch-size",
    "4",
    "--threads",
    "1",
    "--backend",
    "numpy",
    "--eval-every",
    "100000",
]
TRAIN = ["-m", "dls.train"]


@pytest.fixture(scope="module")
def _ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that has ended."""
    folder = tmp_path_factory.mktemp("ended")
    assert launch([(0, [*TRAIN, *TINY, "--steps", "2", "--out", "run"])], folder).status == 0
    return folder / "run"


@pytest.fixture
def ended(_ended: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(_ended, tmp_path / "run"))


def resealed(folder: Path, change: Callable[[dict], object]) -> None:
    """Change a checkpoint's manifest, and seal it anew."""
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    change(manifest)
    (folder / checkpoint.MANIFEST).write_text(
        json.dumps(manifest | {"seal": checkpoint._seal(manifest)})
    )


def test_of_two_that_resume_at_one_moment_one_goes_on(ended: Path, tmp_path: Path) -> None:
    command = [*TRAIN, "--out", "run", "--resume", "--steps", "1000000"]
    both = [start([(0, command)], tmp_path) for _ in range(2)]
    assert wait_until(lambda: any(each.poll() is not None for each in both), 60)
    (refused,) = (each for each in both if each.poll() is not None)
    (other,) = (each for each in both if each is not refused)
    done = finish(refused)
    assert done.status == 2, done
    (line,) = lines(done.err)
    assert line.startswith(
        f"dls.train: run is in use, by a run that goes on (process {other.pid} on "
    )
    assert lock.state(ended) is State.HELD
    assert wait_until(lambda: len(reader.read(ended / "trace.h5").steps["step"]) > 2, 60, other)
    other.send_signal(signal.SIGTERM)
    assert finish(other).status == os.EX_TEMPFAIL
    assert lock.state(ended) is State.FREE


def test_a_new_run_leaves_one_that_has_ended_alone(ended: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in ended.rglob("*") if path.is_file()}
    done = launch([(0, [*TRAIN, *TINY, "--steps", "2", "--out", "run"])], tmp_path)
    assert (done.status, lines(done.err)) == (
        2,
        [
            "dls.train: run already holds a run; add --resume to go on with it,"
            " or choose another --out"
        ],
    )  # fmt: skip
    assert {path: path.read_bytes() for path in ended.rglob("*") if path.is_file()} == before


def test_a_pipe_is_read_once_for_all_ranks(tmp_path: Path) -> None:
    """A FIFO here, as a shell's <(…) and /dev/stdin are; the other ranks have no standard input at
    all.
    """
    os.mkfifo(tmp_path / "pipe")
    run = start(
        [(3, [*TRAIN, *TINY, "--steps", "1", "--config", "pipe", "--out", "run"])], tmp_path
    )
    (tmp_path / "pipe").write_text('density = 0.5\nmethod = "layerwise-topk"\n')
    done = finish(run)
    assert done.status == 0, done
    assert "layerwise-topk at density 0.5: " in done.out


def test_a_resume_on_other_data_is_refused(ended: Path, tmp_path: Path) -> None:
    folder = checkpoint.place(ended, 2)
    own = checkpoint.describe(folder).data
    assert reader.read(ended / "trace.h5").header.attributes["data"] == own
    resealed(folder, lambda manifest: manifest.update(data="0badf00d"))
    done = launch([(0, [*TRAIN, "--out", "run", "--resume", "--steps", "3"])], tmp_path)
    assert done.status == 2
    (line,) = lines(done.err)
    assert (
        "is of a run on other data: its checksum is 0badf00d, that of --dataset digits here is"
        f" {own}" in line
    )


def test_what_the_bits_depend_on_is_said_where_it_differs(ended: Path, tmp_path: Path) -> None:
    folder = checkpoint.place(ended, 2)
    found = checkpoint.describe(folder).environment
    assert tuple(found) == environment.NAMES
    assert (found["numpy"], found["threads"]) == (np.__version__, "1")
    resealed(
        folder, lambda manifest: manifest["environment"].update(numpy="1.0", processor="abacus")
    )
    done = launch(
        [(0, [*TRAIN, "--out", "run", "--resume", "--steps", "3", "--threads", "2"])], tmp_path
    )
    assert done.status == 0, done
    changes = (
        f"processor abacus → {found['processor']}, numpy 1.0 → {np.__version__}, threads 1 → 2"
    )
    assert f"the bits may differ from those of an uninterrupted run: {changes}\n" in done.out
    with h5py.File(ended / "trace.h5") as file:
        assert file.attrs["threads"] == "1 → 2"
        assert file.attrs["numpy"] == np.__version__  # of the trace's own rows


def test_a_checkpoint_that_does_not_say_so_loads_without_a_word(
    ended: Path, tmp_path: Path
) -> None:
    """As those from before there was such a thing."""
    resealed(
        checkpoint.place(ended, 2),
        lambda manifest: [manifest.pop(name) for name in ("data", "environment")],
    )
    done = launch([(0, [*TRAIN, "--out", "run", "--resume", "--steps", "3"])], tmp_path)
    assert done.status == 0, done
    assert "may differ" not in done.out
    assert reader.read(ended / "trace.h5").steps["step"].tolist() == [1, 2, 3]


# --- what is not needed never ends a run ----------------------------------------------------------


def save(out: Path, step: int) -> list[str]:
    """A checkpoint of one rank; the newest alone is kept."""
    about = checkpoint.Checkpoint(checkpoint.place(out, step), 1, checkpoint.Position(step), "", ())
    return checkpoint.save(about, {"w": np.zeros(3)}, {}, 1, World())


def test_an_old_checkpoint_that_cannot_go_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, ignore_errors: bool = False) -> None:
        raise OSError(16, "Device or resource busy", str(path))

    assert save(tmp_path, 1) == []
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        for step in (2, 3):
            first, *_ = save(tmp_path, step)
            name = tmp_path / "checkpoints/step-00000001.removed.partial"
            assert first == f"{name} cannot be removed (Device or resource busy); it stays"
            assert next(iter(checkpoint.complete(tmp_path).values())) == step
    assert save(tmp_path, 4) == []  # whoever held it is gone
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_a_protected_checkpoint_keeps_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access, kept = os.access, checkpoint.place(tmp_path, 1)
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != kept and access(path, mode)
    )  # root may do all
    assert save(tmp_path, 1) == []
    assert save(tmp_path, 2) == [f"{kept} is write-protected; it stays"]
    assert save(tmp_path, 3) == [f"{kept} is write-protected; it stays"]
    assert list(checkpoint.complete(tmp_path).values()) == [3, 1]
    checkpoint.load(checkpoint.describe(kept), 0)


def test_what_stays_under_the_new_ones_name_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "checkpoints/step-00000001.partial"
    left.mkdir(parents=True)
    monkeypatch.setattr(shutil, "rmtree", lambda path: os.rmdir(path / "none"))
    assert save(tmp_path, 1) == [f"{left} cannot be removed (No such file or directory); it stays"]
    assert checkpoint.load(checkpoint.describe(checkpoint.place(tmp_path, 1)), 0)[0][
        "w"
    ].tolist() == [0, 0, 0]


def test_signs_of_life_that_cannot_be_given_end_nothing(tmp_path: Path) -> None:
    (tmp_path / "failure.txt").mkdir()
    (tmp_path / "heartbeats").write_text("in the way")
    _, report, folder = heartbeat.previous_failure(tmp_path)
    assert "failure.txt cannot be removed (Is a directory)" in report
    assert "heartbeats cannot be made anew (Not a directory)" in folder
    beat = heartbeat.Heartbeat(tmp_path, World(), 0)
    beat.beat(1)
    beat.end(1)


def test_a_configuration_that_cannot_be_replaced_ends_no_resume(
    ended: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, text: str) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(files, "write_text", refuse)
    own, found = Lock(), checkpoint.describe(checkpoint.place(ended, 2))
    own.take(ended)
    out, (note,) = folder.make(config.build({"out": str(ended)}), found, own)
    own.release()
    assert out == ended
    assert note.startswith(f"{ended / 'config.toml'} cannot be replaced (Operation not permitted)")


LOCKLESS = """
import errno, fcntl, os, sys
def refuse(descriptor, operation): raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = refuse
from dls import train
sys.exit(train.main(sys.argv[1:]))
"""


def test_a_run_on_a_file_system_without_locks_says_so_once(ended: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOCKLESS, "--out", "run", "--resume", "--steps", "3"]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done
    assert (
        done.stdout.count(
            "run has no lock (No locks available): see to it that no second run writes there\n"
        )
        == 1
    )
