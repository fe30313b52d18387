"""`mpirun … python -m dls.predict.slept CASES RESULTS`: steps whose computing is slept.

So more ranks than cores can try a network; selection, messages and decoding are real.

CASES is a JSON file that `dls.predict.validate` writes: for each case the method and its settings,
the layers, and for each step and rank the seconds before the backward pass, of each layer, and
after the step. RESULTS receives the FIGURES of each case.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dls import backends
from dls.backends import Backend
from dls.comm.base import Comm
from dls.exchange import methods, settings
from dls.exchange.clock import PHASES
from dls.exchange.exchanger import Exchanger
from dls.exchange.layout import Layer, Layout
from dls.predict.rehearse import noise

FIGURES = ("seconds", "received", "select", "decode", "adjust", "exposed")
"""Of a step: its seconds, the bytes that came, the seconds of the method's own work, and those that
it waited. In the results each is a table with a row for each rank.
"""


class _Sleeper:
    """Sleeps in place of computing. What passes outside the exchange's own phases counts as slept:
    the recorded computing holds it as well.
    """

    def __init__(self, exchanger: Exchanger) -> None:
        exchanger.clock.restart()
        self._seconds = exchanger.clock.seconds
        self._owed = 0.0
        self._since = time.perf_counter()

    def sleep(self, seconds: float) -> None:
        """Let so much time pass in sum since the beginning."""
        self._owed += seconds
        left = self._owed - self._passed()
        if left > 0:
            time.sleep(left)

    def _passed(self) -> float:
        """Seconds outside the phases since the beginning."""
        in_phases = sum(self._seconds[phase] for phase in PHASES)
        return time.perf_counter() - self._since - in_phases


def run(case: Mapping[str, Any], comm: Comm, backend: Backend) -> list[list[float]]:
    """Of each step of this rank its FIGURES."""
    method = methods.load(case["method"])
    own = settings.build(method.Settings, case["settings"])
    layout = Layout([Layer(name, size) for name, size in case["layers"]])
    exchanger = Exchanger(
        layout, method, own, comm, backend, bucket_size=case["bucket_size"], overlap=case["overlap"]
    )
    exchanger.gradients[...] = noise(layout.n, comm.rank)
    figures = []
    for number, of_ranks in enumerate(case["steps"]):
        if number == 0:
            comm.together(lambda: None)
        begin = time.perf_counter()
        row = _step(exchanger, number, of_ranks[comm.rank])
        taken, seconds = time.perf_counter() - begin, row.seconds
        select = seconds["select"] + seconds["exchange"]
        work = select, seconds["decode"], seconds["adjust"], seconds["exposed"]
        figures.append([taken, row.received_bytes, *work])
    exchanger.finish()
    return figures


def _step(exchanger: Exchanger, number: int, of_rank: Sequence[Any]) -> Any:
    """One step: its computing as [before, seconds of each layer, after]."""
    before, backward, after = of_rank
    sleeper = _Sleeper(exchanger)
    sleeper.sleep(before)
    exchanger.begin(number)
    for layer in reversed(range(len(backward))):
        sleeper.sleep(backward[layer])
        exchanger.ready(layer)
    for _ in exchanger.arrivals():
        pass
    row = exchanger.end()
    sleeper.sleep(after)
    return row


def main(argv: Sequence[str]) -> int:
    """Run all cases of a file; rank 0 writes what they took."""
    from dls.comm.world import World

    comm = World()
    cases = json.loads(Path(argv[0]).read_text(encoding="utf-8"))
    backend = backends.load("numba")
    backend.ops.set_threads(1)
    results = []
    for case in cases:
        figures = comm.gather(np.array(run(case, comm, backend)))
        if figures is not None:
            results.append(dict(zip(FIGURES, np.moveaxis(figures, 2, 0).tolist(), strict=True)))
    if comm.rank == 0:
        Path(argv[1]).write_text(json.dumps(results), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
