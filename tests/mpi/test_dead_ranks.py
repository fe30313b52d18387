"""Ranks that are killed or frozen: the others end within seconds, nothing is left over, and the
next resume says who it was.
"""

from __future__ import annotations

import json
import random
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dls.program import heartbeat
from tests.conftest import lines
from tests.launch import launch, train_all, wait_until
from tests.mpi.test_bits import loaded

STEPS = 60
COMMON = [
    "--mlp-widths",
    "16",
    "--batch-size",
    "4",
    "--threads",
    "1",
    "--backend",
    "numpy",
    "--steps",
    str(STEPS),
]

STRUCK = """
import os, signal, sys
from dls import train
from mpi4py import MPI
name, rank, number = sys.argv[1].split(",")
step = train._step
def struck(run, recorder, reporter, this):
    if this == int(number) and MPI.COMM_WORLD.rank == int(rank):
        os.kill(os.getpid(), signal.Signals[name])
    step(run, recorder, reporter, this)
train._step = struck
sys.exit(train.main(sys.argv[2:]))
"""


def struck(folder: Path, name: str, rank: int, step: int, *args: str):
    """Train on three ranks, one of which sends itself this signal at the beginning of a step."""
    program = folder / "struck.py"
    program.write_text(STRUCK)
    return launch(
        [(3, [program, f"{name},{rank},{step}", *COMMON, *args, "--out", str(folder / "run")])],
        folder,
    )


def left_over(folder: Path) -> Iterator[bytes]:
    """The processes that still speak of this folder in their command lines: ranks and guardians
    alike.
    """
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if str(folder / "run").encode() in command:
            yield command


def all_end(folder: Path, seconds: float = 30.0) -> bool:
    return wait_until(lambda: not list(left_over(folder)), seconds)


def go_on(folder: Path) -> str:
    """Resume, and resume what is complete then."""
    return train_all(3, ["--resume --out run"] * 2, folder).out


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    done = train_all(3, [shlex.join([*COMMON, "--out", "run"])], folder)
    assert "the run before" not in done.out
    return folder / "run"


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_killed_rank_is_named_by_the_resume(rank: int, whole: Path, tmp_path: Path) -> None:
    step = random.randint(11, STEPS)
    struck_run = struck(tmp_path, "SIGKILL", rank, step, "--checkpoint-every", "10")
    assert struck_run.status not in (0, 75), step
    assert all_end(tmp_path)
    beat = json.loads((tmp_path / "run" / "heartbeats" / f"rank-{rank:05d}.json").read_text())
    assert beat["step"] < step
    who = f"rank {rank} (process {beat['pid']} on {beat['host']})"
    words = f"the run before broke off: {who} was the first to die, "
    said = go_on(tmp_path)
    assert f"{words}last heard of after step {beat['step']} at {beat['time']}\n" in said
    assert said.count("the run before") == 1
    for one, two in zip(loaded(tmp_path / "run", 3), loaded(whole, 3), strict=True):
        assert all(one[name].tobytes() == two[name].tobytes() for name in one), step
    paths = sorted((tmp_path / "run" / "heartbeats").iterdir())
    beats = [json.loads(path.read_text()) for path in paths]
    ends = [(beat["rank"], beat["step"], beat["state"]) for beat in beats]
    assert ends == [(r, STEPS, "ended") for r in range(3)]
    assert all_end(tmp_path)


def test_a_frozen_rank_is_named_and_ended(tmp_path: Path) -> None:
    done = struck(tmp_path, "SIGSTOP", 1, 37, "--timeout", "5", "--checkpoint-every", "10")
    assert done.status == 1
    (line,) = lines(done.err)
    assert ", step 37: " in line
    assert "no word from rank 1" in line
    assert "after 5 s of waiting (--timeout)" in line
    assert all_end(tmp_path)
    assert f"the run before failed: {line.removeprefix('dls.train: ')}\n" in go_on(tmp_path)


FROZEN = """
import os, signal, sys
def freeze():
    if "1" in (os.environ.get("PMI_RANK"), os.environ.get("OMPI_COMM_WORLD_RANK")):
        os.kill(os.getpid(), signal.SIGSTOP)
if sys.argv[1] == "before": freeze()
from dls import train
from dls.program import startup
prepare = startup.prepare
def frozen(command, comm):
    freeze()
    return prepare(command, comm)
if sys.argv[1] == "in": startup.prepare = frozen
status = train.main(sys.argv[2:])
if sys.argv[1] == "after": freeze()
sys.exit(status)
"""


@pytest.mark.parametrize(
    ("when", "words"),
    [
        ("before", "dls: no word from other ranks at the start after 5 s of waiting (--timeout)"),
        ("after", "dls: no word from other ranks at the end after 5 s of waiting (--timeout)"),
        (
            "in",
            (
                ", at the start: the other ranks to get ready: no word from rank 1 after 5 s of"
                " waiting (--timeout)"
            ),
        ),
    ],
)
def test_a_rank_that_is_frozen_at_the_start_or_end_ends_the_others(
    when: str, words: str, tmp_path: Path
) -> None:
    """Also where the library waits for it, in which no Python runs."""
    program = tmp_path / "frozen.py"
    program.write_text(FROZEN)
    done = launch(
        [(3, [program, when, *COMMON, "--timeout", "5", "--out", str(tmp_path / "run")])], tmp_path
    )
    assert done.status
    assert words in done.err
    assert all_end(tmp_path)


def test_where_no_guardian_spoke_the_rank_that_is_furthest_behind_is_named(tmp_path: Path) -> None:
    """A whole machine went down; one heartbeat was never finished."""
    folder = tmp_path / "heartbeats"
    folder.mkdir()
    for rank, step, state in ((0, 9, "running"), (1, 7, "running"), (2, 8, "ended")):
        beat = {
            "rank": rank,
            "host": "here",
            "pid": 7,
            "step": step,
            "time": "noon",
            "state": state,
        }
        (folder / f"rank-{rank:05d}.json").write_text(json.dumps(beat))
    (folder / "rank-00003.json").write_text("{")
    words = (
        "the run before broke off: rank 1 (process 7 on here) was the furthest behind, last heard"
        " of after step 7 at noon"
    )
    assert heartbeat.previous_failure(tmp_path) == [words]
    assert heartbeat.previous_failure(tmp_path) == []
