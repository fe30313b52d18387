"""DLS trains the embedded digits to the accuracy that it promises, over MPI."""

from __future__ import annotations

from pathlib import Path

from dls.record import reader
from tests.launch import ROOT


def test_dls_reaches_the_accuracy_of_dense_training(tmp_path: Path, train) -> None:
    """Other methods, densities and seeds are the study's: runs/study/1-digits-mlp.toml."""
    options = ["--config", ROOT / "runs" / "digits.toml", "--threads", "1", "--backend", "numpy"]
    done = train(2, *options, "--method", "dls", "--density", "0.05", "--out", "run")
    assert done.status == 0, done.err
    assert reader.read(tmp_path / "run" / "trace.h5").evals["accuracy"][-1] >= 0.97
