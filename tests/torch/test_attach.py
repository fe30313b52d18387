"""dls.torch on workers of one process, and on ranks under mpirun: every case on 2 and on 3."""

from __future__ import annotations

from pathlib import Path

import pytest

import tests.torch.pitfalls  # noqa: F401
from dls.comm import local
from tests.launch import ROOT, launch
from tests.torch.cases import CASES


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_on_workers(name: str, ranks: int) -> None:
    local.run(ranks, CASES[name])


@pytest.mark.parametrize("ranks", [2, 3])
def test_on_ranks(ranks: int, tmp_path: Path) -> None:
    done = launch([(ranks, [ROOT / "tests" / "torch" / "program.py"])], tmp_path)
    assert (done.status, done.out.count("done")) == (0, ranks), done.err
