"""PyTorch computes on as many threads with the exchange as without it."""

from __future__ import annotations

from pathlib import Path

from tests.launch import launch

PROGRAM = """
import torch

import dls.torch

torch.set_num_threads(1)
model = torch.nn.Linear(2, 2)
sync = dls.torch.attach(model, backend="numba", density=0.5)
print(torch.get_num_threads())
model(torch.ones(2)).sum().backward()
sync.wait()
print(torch.get_num_threads())
"""


def test_numba_leaves_the_number_of_threads_alone(tmp_path: Path) -> None:
    """In a process of its own: numba starts its threads once."""
    done = launch([(0, ["-c", PROGRAM])], tmp_path)
    assert (done.status, done.out.split()) == (0, ["1", "1"]), done.err
