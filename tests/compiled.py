"""What numba compiles is compiled once, before workers and ranks would all do so at once.

Numba keeps it on disk: this takes time in a fresh checkout alone, and after a change of gpu/.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from tests.launch import ROOT

STEPS = """
import sys
from dls.bench.__main__ import main as measure
from dls.train import main as train
small = ["--steps", "1", "--threads", "2", "--densities", "0.01"]
for what, sizes in (("select", "1000000,vgg16"), ("adjust", "resnet20")):
    assert measure([what, "--backend", "numba", "--sizes", sizes, *small]) == 0
common = ["--backend", "numba", "--steps", "2", "--threads", "1", "--mlp-widths", "8"]
for number, dtype in enumerate(("float32", "bfloat16")):
    own = ["--value-dtype", dtype, "--out", f"{sys.argv[1]}/{number}"]
    assert train([*common, *own, "--nesterov", "--clip-norm", "1"]) == 0
"""
LAYERS = """
import numpy as np
from gpu import numba
from tests.backends.test_backend_nn import build, train_once
for dtype in (np.float32, np.float64):
    for name in ("resnet20", "lenet"):
        train_once(build(name, numba.Nn(), dtype), numba.Nn())
"""
"""Programs that call most of it, to be run side by side."""


def fingerprint() -> str:
    """Of all that is compiled, and by what."""
    sources = b"".join(path.read_bytes() for path in sorted((ROOT / "gpu").rglob("*.py")))
    return hashlib.sha256(sources + metadata.version("numba").encode()).hexdigest()


def compile_all() -> None:
    """Run the programs. Where one fails, tests will show it, and say more."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [sys.executable, "-c", program, folder],
                cwd=Path(folder), env=environment,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for program in (STEPS, LAYERS)
        ]  # fmt: skip
        for program in started:
            program.wait()
