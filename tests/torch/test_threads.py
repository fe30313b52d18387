"""PyTorch computes on this rank's share of the cores."""

from __future__ import annotations

from pathlib import Path

import pytest

from dls.comm import cores
from tests.launch import launch

PROGRAM = """
import sys

import torch

import dls.torch

torch.set_num_threads(int(sys.argv[1]))
model = torch.nn.Linear(2, 2)
sync = dls.torch.attach(model, backend="numba", density=0.5)
found = [torch.get_num_threads()]
model(torch.ones(2)).sum().backward()
sync.wait()
found.append(torch.get_num_threads())
everyone = sync.comm.allgather_objects(found)
if sync.comm.rank == 0:
    print(*sum(everyone, []))
"""


def found(ranks: int, threads: int, folder: Path) -> set[int]:
    """PyTorch's threads on all ranks that had so many before they attached, and after a step."""
    done = launch([(ranks, ["-c", PROGRAM, str(threads)])], folder)
    assert done.status == 0, done.err
    return set(map(int, done.out.split()))


def test_each_rank_keeps_its_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it has less; in processes of their own: numba starts its threads once."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    grant = cores.grant()
    assert found(0, 1, tmp_path) == {1}
    assert found(2, 64, tmp_path) == {cores.share([grant, grant], 0)}


def test_what_the_environment_says_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert found(2, 3, tmp_path) == {3}
