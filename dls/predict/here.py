"""A step measured on this machine, for whoever has recorded no run."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dls.cli import UsageError
from dls.predict import recording
from dls.tools import networks
from dls.tools.programs import python

STEPS = 12
"""Steps that are measured."""
WORKERS = 2
"""Ranks that take turns in one process."""
IMAGES = 4
"""Mini-batches of each rank in the data, which are noise."""


def measured(model: str | None, torch: str | None, batch: int) -> recording.Run:
    """A few steps of a model, recorded here in one process, without a network. UsageError."""
    if torch is not None:
        raise UsageError("--torch is not available yet")
    assert model is not None
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
        raise UsageError(f"the step could not be measured: {done.stderr.strip().splitlines()[-1]}")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
