"""What a step gives back, the next one takes again without fetching pages from the kernel."""

from __future__ import annotations

import subprocess
import sys

from tests.launch import ROOT

STEPS = """
import resource
import numpy as np
from dls.program import memory

def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [np.ones(400_000, dtype=np.float32) for _ in range(8)]
    del arrays
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults_of_a_step()
before = min(faults_of_a_step() for _ in range(3))
known = memory.keep_freed()
faults_of_a_step()
after = min(faults_of_a_step() for _ in range(3))
print(int(known), before, after)
"""


def test_freed_memory_stays_with_the_process() -> None:
    """Twelve megabytes in blocks of 1.6: some 3,000 pages of 4 kB."""
    command = [sys.executable, "-c", STEPS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    known, before, after = map(int, done.stdout.split())
    if known:
        assert after < 100 < before
