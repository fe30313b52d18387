"""How DLS's steps with PyTorch models stand to their targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from dls.bench.torch_names import DDP, MEMORY
from dls.bench.torch_network import TorchRow
from dls.tools.rows import Row, Title

OURS = "dls"
"""The contender that is judged; alone, on one rank, it is the dense method."""
AS_NONE = 1.10
"""The most that a step takes at NONE_RATE, beside the step without any communication."""
NONE_RATE = "1gbit"
"""The rate at which AS_NONE counts."""
WAITS, WAITS_LONG = 0.2, 0.6
"""The shares of DDP's step that are exposed from which on ours is faster than DDP with any hook,
and at least FASTER times as fast as DDP.
"""
FASTER = 2.0
"""How many times as fast."""
AS_DDP = 1.05
"""The most that a step takes between ranks that share memory, beside DDP's."""
ALONE = 1.03
"""The most that dense takes on one rank, beside the plain loop."""


@dataclass(frozen=True)
class TargetRow(Row):
    """One target in one cell: what it demands, and what was measured."""

    model: str
    batch: int
    rate: str
    hosts: int
    target: str
    limit: float
    measured: float
    reached: Annotated[str, Title("reached")]


def judge(rows: Sequence[TorchRow]) -> Iterator[TargetRow]:
    """Yield every target that applies, cell by cell."""
    cells: dict[tuple[str, int, str, int], dict[str, TorchRow]] = {}
    for row in rows:
        if row.step_ms is not None:
            cells.setdefault(row.cell, {})[row.contender] = row
    for (model, batch, rate, hosts), steps in cells.items():
        for words, limit, measured in _demanded(rate, hosts, steps):
            reached = "yes" if measured <= limit else "no"
            yield TargetRow(model, batch, rate, hosts, words, limit, measured, reached)


def _demanded(
    rate: str, hosts: int, steps: Mapping[str, TorchRow]
) -> Iterator[tuple[str, float, float]]:
    """The targets of one cell: words, the most that is allowed, what was measured."""
    if hosts == 1:
        dense = steps.get("dense")
        if dense and dense.by_none is not None:
            yield "dense on one rank / plain loop", ALONE, dense.by_none
        return
    ours = steps.get(OURS)
    if ours and ours.by_none is not None and rate == NONE_RATE:
        yield "dls / without communication", AS_NONE, ours.by_none
    if ours and DDP in steps:
        yield from _beside_ddp(rate, ours, steps)


def _beside_ddp(
    rate: str, ours: TorchRow, steps: Mapping[str, TorchRow]
) -> Iterator[tuple[str, float, float]]:
    """The targets of DLS beside DDP, dense and with its hooks."""
    assert ours.by_ddp is not None
    if rate == MEMORY:
        yield "dls / ddp, in shared memory", AS_DDP, ours.by_ddp
        return
    waits = _waits(steps[DDP])
    if waits >= WAITS_LONG:
        yield f"dls / ddp, which waits {waits:.0%} of its step", 1 / FASTER, ours.by_ddp
    if waits >= WAITS:
        yield from _beside_hooks(ours, steps)


def _waits(row: TorchRow) -> float:
    """The share of its step that is exposed."""
    return (row.exposed_ms or 0.0) / row.step_ms if row.step_ms else 0.0


def _beside_hooks(
    ours: TorchRow, steps: Mapping[str, TorchRow]
) -> Iterator[tuple[str, float, float]]:
    """DLS beside DDP with each hook, and beside DDP without one."""
    for name, row in steps.items():
        if name.split("/")[0] == DDP and ours.by_ddp is not None and row.by_ddp:
            yield f"dls / {name}", 1.0, ours.by_ddp / row.by_ddp
