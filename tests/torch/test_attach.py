"""dls.torch: every case on two workers of one process, and on three ranks under mpirun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tests.torch.pitfalls
import tests.torch.traces  # noqa: F401
from dls.comm import local
from dls.comm.base import Comm
from tests.launch import ROOT, launch
from tests.torch.cases import CASES
from tests.torch.going_on import Run


@pytest.mark.parametrize("name", CASES)
def test_on_two_workers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    local.run(2, CASES[name])


def test_on_three_ranks(tmp_path: Path) -> None:
    """And with DistributedDataParallel, which wants a process for each."""
    done = launch([(3, [ROOT / "tests" / "torch" / "program.py"])], tmp_path)
    assert (done.status, done.out.count("done")) == (0, 3), done.err


@pytest.mark.parametrize(("before", "after"), [(2, 3), (3, 2)])
def test_another_number_of_ranks_loses_nothing(before: int, after: int, tmp_path: Path) -> None:
    """The mean over the ranks of what has not been sent stays, and so does what is set aside."""

    def first(comm: Comm) -> tuple[Any, Any]:
        run = Run(comm, method="layerwise-topk").steps(2)
        run.model[0].requires_grad_(False)
        run.steps(1)
        run.save(tmp_path)
        found = everything(run), run.bits[:-1]
        run.sync.close()
        return found

    def then(comm: Comm) -> tuple[Any, Any]:
        run = Run(comm, method="layerwise-topk", seed=9)
        run.model[0].requires_grad_(False)
        assert run.resume(tmp_path) == 3
        found = everything(run), run.bits[:-1]
        run.steps(1)
        run.model[0].requires_grad_(True)
        run.steps(1)
        run.sync.close()
        return found

    saved, resumed = local.run(before, first), local.run(after, then)
    means = [np.mean([kept for kept, _ in each], axis=0) for each in (saved, resumed)]
    np.testing.assert_allclose(*means, rtol=0, atol=1e-6)
    assert np.abs(means[0]).min(axis=None) == 0
    assert {b"".join(bits) for _, bits in (*saved, *resumed)} == {b"".join(saved[0][1])}


def everything(run: Run) -> Any:
    """What a rank has not sent, and what it has set aside of frozen parameters."""
    aside = run.sync.state_dict()["aside"]
    assert aside.keys() == {"0.weight", "0.bias"}
    assert aside["0.weight"].any()
    pieces = [aside[name].reshape(-1).numpy() for name in sorted(aside)]
    return np.concatenate([run.residual, *pieces])
