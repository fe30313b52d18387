"""Every method and every collective on ranks under MPI: the bits and bytes of workers here."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests import cases, exchanging
from tests.cases import Case
from tests.exchanging import Run, Seen
from tests.launch import ROOT, launch

PROGRAM = ROOT / "tests" / "mpi" / "exchanging_ranks.py"


def on_ranks(ranks: int, jobs: Sequence[tuple[Case, bool]], folder: Path) -> list[Run]:
    """Each job's run under one mpirun, whose bytes are those that MPI itself has seen."""
    (folder / "jobs").write_bytes(pickle.dumps(jobs))
    done = launch([(ranks, [PROGRAM, folder])], folder)
    assert done.status == 0, done.err
    seen = [pickle.loads((folder / f"seen{rank}").read_bytes()) for rank in range(ranks)]
    for number, (case, _) in enumerate(jobs):
        for own in seen:
            for step, (each, moved) in enumerate(own[number]):
                assert each.moved == moved, (str(case), step)
    return [[[each for each, _ in own[number]] for own in seen] for number in range(len(jobs))]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_see_what_workers_see(ranks: int, tmp_path: Path) -> None:
    compare(ranks, [(case, False) for case in cases.every()], tmp_path)


@pytest.mark.usefixtures("newcomers_known")
def test_nor_does_it_matter_who_is_late(tmp_path: Path) -> None:
    """Layers are ready in random order, and most leave alone, so that several are under way."""
    small = [replace(each, bucket_size=1) if each.overlap else each for each in cases.every()]
    compare(3, [(case, True) for case in small], tmp_path)


def compare(ranks: int, jobs: Sequence[tuple[Case, bool]], folder: Path) -> None:
    """Ranks see what workers see; of these tests/laws/test_exchange_laws.py knows the rest."""
    for (case, shuffled), run in zip(jobs, on_ranks(ranks, jobs, folder), strict=True):
        exchanging.check_agreement(case, run)
        if shuffled:
            exchanging.check_reference(case, run)
        for own, theirs in zip(run, exchanging.workers(case, ranks), strict=True):
            for one, other in zip(own, theirs, strict=True):
                check_same(case, one, other)


def check_same(case: Case, one: Seen, other: Seen) -> None:
    """The same bits and bytes; of sums whose order is the library's, the same but for rounding."""
    assert one.moved == other.moved, case
    if case.whole or not exchanging.sums_in_any_order(case):
        assert one.bits == other.bits, case
    np.testing.assert_allclose(one.update, other.update, rtol=1e-4, atol=1e-4, err_msg=str(case))
