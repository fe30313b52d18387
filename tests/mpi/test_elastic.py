"""`--elastic`: ranks die, and the others go on without them from the last checkpoint, to the bits
of a resume.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from mpi4py import MPI

from dls.record import reader
from tests.conftest import lines
from tests.launch import launch
from tests.mpi.test_bits import loaded

COMMON = [
    "--mlp-widths",
    "16",
    "--batch-size",
    "4",
    "--threads",
    "1",
    "--backend",
    "numpy",
    "--density",
    "0.05",
]
FAULT_TOLERANT = ["--with-ft", "ulfm"]
pytestmark = pytest.mark.skipif(
    MPI.get_vendor()[0] != "Open MPI", reason="needs Open MPI: make test MPI=openmpi"
)

STRUCK = """
import os, signal, sys
from mpi4py import MPI
from dls import train
deaths = dict(map(int, death.split(":")) for death in sys.argv[1].split(","))
me, step = MPI.COMM_WORLD.rank, train._step
def struck(run, recorder, reporter, this):
    if deaths.get(me) == this: os.kill(os.getpid(), signal.SIGKILL)
    step(run, recorder, reporter, this)
train._step = struck
sys.exit(train.main(sys.argv[2:]))
"""


def struck(folder: Path, ranks: int, deaths: str, *args: str):
    """Train while ranks, by their first numbers, kill themselves: RANK:STEP,RANK:STEP,…"""
    program = folder / "struck.py"
    program.write_text(STRUCK)
    options = [*COMMON, "--steps", "40", "--elastic", "--out", "run", *args]
    return launch([(ranks, [program, deaths, *options])], folder, options=FAULT_TOLERANT)


def spoken(err: str) -> list[str]:
    """The program's own lines."""
    return [line for line in lines(err) if line.startswith("dls.train")]


def recorded(out: Path) -> list[int]:
    return [
        step
        for path in reader.trace_files(out)
        for step in reader.read(path).steps["step"].tolist()
    ]


@pytest.mark.parametrize("method", ["dls", "layerwise-topk", "global-topk", "dense"])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_the_others_go_on_to_the_bits_of_a_resume(rank: int, method: str, tmp_path: Path) -> None:
    done = struck(tmp_path, 3, f"{rank}:27", "--method", method, "--checkpoint-every", "10")
    assert done.status == 0, done
    assert not spoken(done.err)
    assert f"lost: rank {rank} of 3\n" in done.out
    assert "12 images a step, 6 a rank" in done.out
    assert f"the run before broke off: rank {rank} " in done.out
    whole = ["-m", "dls.train", *COMMON, "--method", method, "--out", "whole"]
    assert launch([(3, [*whole, "--steps", "20"])], tmp_path).status == 0
    assert (
        launch(
            [(2, ["-m", "dls.train", "--out", "whole", "--resume", "--steps", "40"])], tmp_path
        ).status
        == 0
    )
    for one, two in zip(loaded(tmp_path / "run", 2), loaded(tmp_path / "whole", 2), strict=True):
        assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    assert recorded(tmp_path / "run") == list(range(1, 41))


@pytest.mark.parametrize(
    ("ranks", "deaths", "left"),
    [
        (3, "1:5", 2),  # before the first checkpoint
        (3, "1:40", 2),  # in the last step
        (4, "2:27,3:27", 2),  # half of them, without rank 0
        (4, "1:15,2:27,3:38", 1),  # one after the other
        (2, "1:27", 1),
    ],
)
def test_deaths_at_any_time(ranks: int, deaths: str, left: int, tmp_path: Path) -> None:
    done = struck(tmp_path, ranks, deaths, "--checkpoint-every", "10")
    assert done.status == 0, done
    assert not spoken(done.err)
    assert recorded(tmp_path / "run") == list(range(1, 41))
    assert len(loaded(tmp_path / "run", left)) == left


def test_images_that_cannot_be_shared_are_fewer(tmp_path: Path) -> None:
    done = struck(tmp_path, 4, "3:27", "--batch-size", "5", "--checkpoint-every", "10")
    assert done.status == 0, done
    assert "15 images a step, 5 a rank" in done.out


@pytest.mark.parametrize(("ranks", "deaths"), [(2, "0:27"), (4, "0:27,1:27"), (3, "1:27,2:27")])
def test_the_smaller_part_ends(ranks: int, deaths: str, tmp_path: Path) -> None:
    done = struck(tmp_path, ranks, deaths, "--checkpoint-every", "10")
    assert done.status == 1, done
    (line,) = spoken(done.err)
    left = ranks - len(deaths.split(","))
    assert line.endswith(
        f"after the loss of a rank: {left} of {ranks} ranks are left, which is not most of them"
    )


def test_without_elastic_a_death_ends_the_run(tmp_path: Path) -> None:
    done = struck(tmp_path, 3, "1:27", "--no-elastic")
    assert done.status == 1, done
    (line,) = spoken(done.err)
    assert line.endswith(": a rank is lost")
