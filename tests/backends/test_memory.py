"""What a step of the selection needs in memory beyond gradient and residual.

Measured by the kernel in fresh processes.
"""

from __future__ import annotations

import subprocess
import sys

from tests.launch import ROOT

STEPS = """
import ctypes, os, re
from itertools import product
from pathlib import Path
import numpy as np
from dls import backends
from gpu import numba  # loaded once, for all below
from reference import methods

SIZES = [6_000_000, 1_990_000, 10_000]
GRADIENT = np.random.default_rng(0).standard_t(3, sum(SIZES)).astype(np.float32)

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def measure(density, threads):
    n, backend = sum(SIZES), backends.load("numba")
    backend.ops.set_threads(threads)
    k = methods.split_budget(methods.budget(n, density), SIZES)
    offsets, hints, residual = np.cumsum([0, *SIZES]), np.zeros(len(SIZES)), backend.ops.zeros(n)

    def step():
        nonlocal hints
        chosen = backend.ops.select_layers(residual, GRADIENT, offsets, k, hints)
        index, values, hints, heads = chosen
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
    print(density, threads, memory("VmHWM") - before, flush=True)

for density, threads in product((0.01, 0.001), (1, 2)):
    if not os.fork():
        measure(density, threads)
        os._exit(0)
    assert os.wait()[1] == 0
"""


METHOD_STEPS = """
import ctypes, os, re, sys
from pathlib import Path
import numpy as np
from dls import backends
from dls.comm import local
from dls.exchange import methods
from dls.exchange.exchanger import Exchanger
from dls.exchange.layout import Layer, Layout
from dls.program import config
from gpu import numba  # loaded once, for all below

SIZES = [6_000_000, 1_990_000, 10_000]
LAYOUT = Layout([Layer(str(size), size) for size in SIZES])
GRADIENT = np.random.default_rng(0).standard_t(3, sum(SIZES)).astype(np.float32)

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

def measure(source):
    backend = backends.load("numba")
    settings = config.build({"method": "dls", "density": 0.01, "dls_from": source})
    backend.ops.set_threads(1)
    rank = local.alone()
    exchanger = Exchanger(
        LAYOUT,
        methods.load("dls"),
        settings.of_method(),
        rank,
        backend,
        gradients=GRADIENT,
        bucket_size=1,
    )

    def step(number):
        exchanger.clock.restart()
        exchanger.begin(number - 1)
        for layer in reversed(range(len(SIZES))):
            exchanger.ready(layer)
        exchanger.end()
        assert exchanger.method.sent.sum() == 80_000

    for number in range(1, 4):
        step(number)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory("VmRSS")
    for number in range(4, 7):
        step(number)
    print(source, memory("VmHWM") - before, flush=True)

for source in ("sent", "left", "ahead"):
    if not os.fork():
        measure(source)
        os._exit(0)
    assert os.wait()[1] == 0
"""


def run(script: str) -> list[list[str]]:
    """The words of each line that it prints."""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_the_reserve_and_the_guess_of_the_next_v_need_a_tenth_and_ahead_a_layer() -> None:
    """`ahead` needs the gradient added to a layer that stays as it is: a copy of one layer at a
    time.
    """
    measured = {source: int(used) for source, used in run(METHOD_STEPS)}
    assert measured.keys() == {"sent", "left", "ahead"}
    n, k, copied = 8_000_000, 80_000, {"ahead": 6_000_000}
    for source, used in measured.items():
        entries = (
            3 * (8 + 4) * k
        )  # what is chosen, and the largest of each layer that the adjustment looks at
        entries += 3 * (4 + 4) * k  # candidates of these
        assert used <= 0.1 * 4 * n + entries + 4 * copied.get(source, 0), measured


def test_a_step_needs_a_tenth_of_the_model_beyond_its_payloads() -> None:
    """A payload: index (8 bytes), value and message of each entry, as sent and as it comes back."""
    measured = run(STEPS)
    assert len(measured) == 4
    n = 8_000_000
    for density, threads, used in measured:
        payload = (2 * (8 + 4) + 5.6) * float(density) * n
        assert int(used) <= 0.1 * 4 * n + payload, (density, threads)
