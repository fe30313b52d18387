"""A step measured on this machine, for whoever has recorded no run."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dls.cli import UsageError
from dls.cost.replay import Step
from dls.exchange import methods
from dls.exchange.layout import Layout
from dls.predict import recording
from dls.tools import networks
from dls.tools.programs import python

STEPS = 12
"""Steps that are measured."""
WORKERS = 2
"""Ranks that take turns in one process."""
IMAGES = 4
"""Mini-batches of each rank in the data, which are noise."""
DENSE = "dense"
"""The method whose step is measured of a PyTorch model, which sends nothing."""


def of_model(model: str, batch: int) -> recording.Run:
    """A few steps of a model, recorded here in one process, without a network. UsageError."""
    with tempfile.TemporaryDirectory(prefix="dls-predict-") as folder:
        out = Path(folder) / "run"
        settings = networks.network(model).settings() | {
            "synthetic_size": IMAGES * WORKERS * batch,
            "batch_size": batch,
            "steps": STEPS,
            "method": "layerwise-topk",
            "diagnose_every": STEPS // 2,
        }
        _train(settings, out)
        return recording.read(out)


def _train(settings: Mapping[str, Any], out: Path) -> None:
    flags = [f"--{name.replace('_', '-')}={_text(value)}" for name, value in settings.items()]
    command = [*python(), "-m", "dls.train", f"--workers={WORKERS}", *flags, f"--out={out}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip().splitlines()[-1:] or ["without a word"]
        raise UsageError(f"the step could not be measured: {words[0]}")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def of_torch(where: str) -> recording.Run:
    """A few steps of a PyTorch model, without its optimizer. where: MODULE:FUNCTION, which returns
    the model and a function that gives the loss of a mini-batch. UsageError.
    """
    sys.path.insert(0, "")
    try:
        from dls.torch import measured, setup
    except ImportError as error:
        raise UsageError(f"--torch needs PyTorch: {error}") from None
    layers, taken = measured.measure(*measured.built(where), STEPS)
    layout = Layout(layers)
    config = {"bucket_size": setup.BUCKET_SIZE}
    buckets = layout.buckets(setup.BUCKET_SIZE)
    steps = [_step(each.forward, each.backward, len(buckets)) for each in taken]
    seconds = np.array([step.computing for step in steps])
    settings = methods.load(DENSE).Settings()
    return recording.Run(
        where, layout, DENSE, settings, config, buckets, steps, seconds, 0.0, 0.0, worked=False
    )


def _step(forward: float, backward: list[float], buckets: int) -> Step:
    """A measured step as one of WORKERS ranks that are alike."""
    none, of_buckets = np.zeros(WORKERS), np.zeros((WORKERS, buckets))
    layers = np.tile(backward, (WORKERS, 1))
    return Step(np.full(WORKERS, forward), layers, of_buckets, of_buckets, none, none, none)
