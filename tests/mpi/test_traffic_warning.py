"""The first lines of a run say where its ranks receive more than a ring Allreduce would bring; its
last what was moved.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from dls import traffic
from dls.exchange import methods
from dls.record import reader
from tests import cases
from tests.launch import launch

SETTINGS = "--mlp-widths 24,12 --batch-size 4 --steps 2 --threads 1 --backend numpy"
VALUES = 1990
METHODS = [(name, values) for name in methods.names() for values in cases.by_collective(name)]


def test_the_first_and_the_last_lines_tell_of_the_bytes(tmp_path: Path) -> None:
    """At density 0.9 a message is larger than half of the gradient: with three ranks that is more
    than a ring's.
    """
    runs = {
        (method, density): f"{number}-{density}"
        for number, method in enumerate(METHODS)
        for density in (0.9, 0.1)
    }
    many = Path(__file__).with_name("many.py")
    command = [
        f"{cases.flags(*method)} --density {density} {SETTINGS} --out {out}"
        for (method, density), out in runs.items()
    ]
    done = launch([(3, [many, *command])], tmp_path)
    assert done.status == 0, done.err
    told = re.split(r"\n(?=\S+ at density)", "\n" + done.out)[1:]
    for (((method, _), density), out), words in zip(runs.items(), told, strict=True):
        steps = reader.read(tmp_path / out / "trace.h5").steps
        ring = traffic.ring_bytes(VALUES, 3)
        assert ("warning: of 3 ranks each receives" in words) is (
            "density" in cases.settings_of(method) and density == 0.9
        )
        sent, received = (
            traffic.readable(steps[name][:, 0].sum())
            for name in ("payload_bytes", "received_bytes")
        )
        assert f"rank 0 sent {sent} and received {received}" in words
        assert f"a dense ring Allreduce would move {traffic.readable(2 * ring)} each way" in words
        all_received = np.unique(steps["received_bytes"])
        if all_received.size == 1:  # on every rank, in every step
            warned = re.search(r"receives about (.*) a step", words)
            assert not warned or warned[1] == traffic.readable(all_received.item())
