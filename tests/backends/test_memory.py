"""What a step of the selection needs in memory beyond gradient and residual, measured by the kernel in a fresh process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.launch import ROOT

STEPS = """
import ctypes, re, sys
from pathlib import Path
import numpy as np
from dls import backends
from reference import methods

density, threads = float(sys.argv[1]), int(sys.argv[2])
sizes = [6_000_000, 1_990_000, 10_000]
n, backend, rng = sum(sizes), backends.load("numba"), np.random.default_rng(0)
backend.ops.set_threads(threads)
k = methods.split_budget(methods.budget(n, density), sizes)
offsets, hints, residual = np.cumsum([0, *sizes]), np.zeros(len(sizes)), backend.ops.zeros(n)
gradient = rng.standard_t(3, n).astype(np.float32)

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def step():
    global hints
    index, values, hints, heads = backend.ops.select_layers(residual, gradient, offsets, k, hints)
    payload = backend.wire.encode(index, values, n)
    next_k = backend.adjustment.adjust(np.split(residual, offsets[1:-1]), k, hints, 1, heads)
    backend.ops.scatter_subtract(residual, index, values)
    backend.wire.decode(payload, n, index.size)
    return next_k.sum()

for warm_up in range(3):
    step()
ctypes.CDLL(None).malloc_trim(0)  # what steps gave back stays with the process otherwise
Path("/proc/self/clear_refs").write_text("5")  # the highest use begins again
before = memory("VmRSS")
for _ in range(3):
    assert step() == k.sum()
print(memory("VmHWM") - before)
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("density", [0.01, 0.001])
def test_a_step_needs_a_tenth_of_the_model_beyond_its_payloads(density: float, threads: int) -> None:
    """A payload: index (8 bytes), value and message of each entry, as sent and as it comes back."""
    command = [sys.executable, "-c", STEPS, str(density), str(threads)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    n = 8_000_000
    payload = 2 * (8 + 4) * density * n + 5.6 * density * n
    assert int(done.stdout) <= 0.1 * 4 * n + payload
