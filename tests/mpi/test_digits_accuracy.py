"""The embedded digits train to the accuracy that the methods promise, over MPI."""

from __future__ import annotations

from pathlib import Path

import pytest

from dls import trace
from tests.launch import ROOT, launch

SEEDS = (0, 1, 2)


@pytest.mark.parametrize(
    ("method", "density", "least"),
    [
        ("dense", 0.05, 0.97),
        ("global-topk", 0.05, 0.97),
        ("layerwise-topk", 0.05, 0.97),
        ("dls", 0.05, 0.97),
        ("dls --dls-steps optimal", 0.05, 0.97),
        ("dls", 0.01, 0.96),
    ],
)
def test_mean_test_accuracy_of_three_seeds(method: str, density: float, least: float, tmp_path: Path) -> None:
    config = ROOT / "runs" / "digits.toml"
    command = [
        f"--config {config} --method {method} --density {density} --seed {seed} --threads 1 --out {tmp_path}/{seed}"
        for seed in SEEDS
    ]
    done = launch([(2, [ROOT / "tests" / "mpi" / "many.py", *command])], tmp_path)
    assert done.status == 0, done.err
    final = [trace.read(tmp_path / str(seed) / "trace.h5").evals["accuracy"][-1] for seed in SEEDS]
    assert sum(final) / len(final) >= least, final
