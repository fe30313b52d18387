"""`python -m dls.bench model`: what a training step's forward and backward pass costs, with each
backend and with PyTorch.

Every contender computes in a process of its own: the thread pools of numpy, numba and PyTorch go on
spinning for a while after their work, and would slow down each other's measurements.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import perf_counter
from typing import Annotated

import numpy as np

from dls.bench import steps
from dls.tools import turns
from dls.tools.rows import Row, Title

CONTENDERS = ("numpy", "numba", "torch")
"""Our backends on the CPU, and PyTorch."""
NOT_INSTALLED = "not installed"
"""What stands in a row for PyTorch where it is missing."""
SECONDS = 0.1
"""The least length of a turn, which so outlasts the spinning threads of the one before."""


@dataclass(frozen=True)
class ModelRow(Row):
    """Milliseconds of each contender's step, and the backends' as multiples of PyTorch's."""

    model: str
    batch: int
    threads: int
    numpy_ms: Annotated[float, Title("numpy, ms")]
    numba_ms: Annotated[float, Title("numba, ms")]
    torch_ms: Annotated[float | str, Title("torch, ms")]
    numpy_by_torch: Annotated[float | None, Title("numpy / torch")] = None
    numba_by_torch: Annotated[float | None, Title("numba / torch")] = None


@dataclass(frozen=True)
class Task:
    """What every contender computes: a model, the size of a mini-batch, and how many threads."""

    model: str
    batch: int
    threads: int


def measure(
    models: Sequence[str], batch: int, threads: Sequence[int], turn_count: int
) -> Iterator[ModelRow]:
    """Yield a row for each model and number of threads: medians over the turns."""
    present = [name for name in CONTENDERS if name != "torch" or _has_torch()]
    for model in models:
        for count in threads:
            task = Task(model, batch, count)
            yield _row(task, _medians(present, task, turn_count))


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _row(task: Task, medians: Mapping[str, float]) -> ModelRow:
    torch = medians.get("torch")
    return ModelRow(
        model=task.model,
        batch=task.batch,
        threads=task.threads,
        numpy_ms=1000 * medians["numpy"],
        numba_ms=1000 * medians["numba"],
        torch_ms=NOT_INSTALLED if torch is None else 1000 * torch,
        numpy_by_torch=None if torch is None else medians["numpy"] / torch,
        numba_by_torch=None if torch is None else medians["numba"] / torch,
    )


def _medians(names: Sequence[str], task: Task, turn_count: int) -> dict[str, float]:
    """Let the contenders take turns; return the median of each one's seconds per step."""
    with ExitStack() as stack:
        lines = {name: _start(name, task, stack) for name in names}
        losses = [line.recv() for line in lines.values()]
        words = "the contenders compute different things"
        np.testing.assert_allclose(losses, losses[0], rtol=1e-3, err_msg=words)
        turn_of = {name: _turn_of(line) for name, line in lines.items()}
        taken = turns.take(turn_of, range(turn_count), warm_up=0)  # each has had its own
    return {name: turns.median(seconds) for name, seconds in taken.items()}


def _turn_of(line: Connection) -> Callable[[int], float]:
    """A turn of the contender at the other end of the line: its seconds per step."""

    def turn(_: int) -> float:
        line.send(SECONDS)
        seconds: float = line.recv()
        return seconds

    return turn


def _start(name: str, task: Task, stack: ExitStack) -> Connection:
    """Start a contender's process, which ends with the stack; our end of the line to it."""
    spawn = multiprocessing.get_context("spawn")
    near, far = spawn.Pipe()
    process = spawn.Process(target=_serve, args=(far, name, task), daemon=True)
    process.start()
    far.close()
    stack.callback(process.join)
    stack.callback(near.close)
    return near


def _serve(line: Connection, name: str, task: Task) -> None:
    """Send the first step's loss; then, for each number of seconds received, the seconds per step
    over that time.
    """
    step = steps.build(name, task.model, task.batch, task.threads)
    line.send(step())
    for _ in range(turns.WARM_UP):
        step()
    while True:
        try:
            least = line.recv()
        except EOFError:
            return
        line.send(_seconds_per_step(step, least))


def _seconds_per_step(step: Callable[[], float], least: float) -> float:
    """Take steps for at least so many seconds, after one that does not count."""
    step()
    start, taken = perf_counter(), 0
    while perf_counter() - start < least:
        step()
        taken += 1
    return (perf_counter() - start) / taken
