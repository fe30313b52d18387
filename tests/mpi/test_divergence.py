"""Ranks whose weights drift apart without a word: the run ends and names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dls.record import checkpoint
from tests.conftest import lines
from tests.launch import launch

COMMON = ["--mlp-widths", "16", "--batch-size", "4", "--threads", "1", "--backend", "numpy"]

FLIPPED = """
import sys
import numpy as np
from dls import train
from mpi4py import MPI
step = train._step
def flipped(run, recorder, reporter, number):
    if number == 7 and str(MPI.COMM_WORLD.rank) in sys.argv[1]:
        run.task.model.parameters.view(np.uint32)[100] ^= 1 << 20
    step(run, recorder, reporter, number)
train._step = flipped
sys.exit(train.main(sys.argv[2:]))
"""


def flipped(folder: Path, ranks: int, which: str, *args: str):
    """Train while one bit of one weight flips on these ranks, in step 7."""
    program = folder / "flipped.py"
    program.write_text(FLIPPED)
    return launch([(ranks, [program, which, *COMMON, *args, "--out", "run"])], folder)


@pytest.mark.parametrize(
    ("ranks", "which", "method", "words"),
    [
        (3, "0", "dls", "rank 0 are not those of most ranks"),
        (3, "2", "dense", "rank 2 are not those of most ranks"),
        (2, "0", "global-topk", "rank 1 are not those of rank 0"),
        (4, "13", "layerwise-topk", "ranks 1, 3 are not those of rank 0"),
    ],
)
def test_a_flipped_bit_ends_the_run(
    ranks: int, which: str, method: str, words: str, tmp_path: Path
) -> None:
    done = flipped(
        tmp_path, ranks, which, "--method", method, "--check-every", "5", "--steps", "30"
    )
    assert done.status == 1
    (line,) = lines(done.err)
    assert re.fullmatch(rf"dls.train: rank \d, step 11: after step 10 the weights of {words}", line)


def test_no_checkpoint_is_written_of_weights_that_differ(tmp_path: Path) -> None:
    done = flipped(tmp_path, 3, "1", "--checkpoint-every", "3", "--steps", "30")
    assert done.status == 1
    assert "step 9: after step 9 the weights of rank 1 are not those of most ranks" in done.err
    found = checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert found.step == 6


def test_without_the_check_nobody_looks(tmp_path: Path) -> None:
    assert flipped(tmp_path, 2, "1", "--check-every", "0", "--steps", "9").status == 0
