"""Collectives on lanes, under mpirun: many in flight at once have the bits of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.launch import ROOT, Finished, launch

PROGRAM = ROOT / "tests" / "mpi" / "lanes.py"
SEEDS = 20


def lanes(ranks: int, folder: Path, *args: str) -> Finished:
    return launch([(ranks, [PROGRAM, *args])], folder)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_buckets_in_flight_at_once_have_the_bits_of_mail(ranks: int, tmp_path: Path) -> None:
    done = lanes(ranks, tmp_path, "bits", str(SEEDS))
    assert done.status == 0, done.err
    assert done.out.replace("\n", "") == "well" * ranks


@pytest.mark.timeout(120)
def test_order_errors_and_a_rank_that_never_comes(tmp_path: Path) -> None:
    done = lanes(3, tmp_path, "ends")
    assert done.out.replace("\n", "") == "well" * 3, done.err
    assert done.status == 3
