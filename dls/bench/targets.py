"""How DLS's steps over a network stand to their targets.

The targets are those of a method that hides its communication. What cannot be hidden, as one layer
holds most of the bytes, shows as a missed target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from dls.bench.network import NetworkRow
from dls.tools.rows import Row, Title
from dls.tools.variants import AT_END

HIDDEN = "exposed / at the end"
"""Exposed communication, as a share of that of DLS without overlap."""
AS_LAYERWISE = "step / layerwise"
"""Step time beside Layer-wise Top-k's."""
AS_BOUND = "step / bound"
"""Step time beside the least that is possible: computing, or forward pass and communication."""
AS_GLOBAL = "step / global"
"""Step time beside Global Top-k's."""
LIMITS = {HIDDEN: 0.2, AS_LAYERWISE: 1.05, AS_BOUND: 1.1, AS_GLOBAL: 1.0}
"""The most that each figure may be, where it counts."""
HIDABLE = 0.8
"""HIDDEN counts where the communication takes up to this share of the backward pass."""
WAITING = 0.1
"""AS_GLOBAL counts where this share of Global Top-k's step, or more, is exposed communication."""
NEEDED = {"dls", "dls" + AT_END, "layerwise-topk", "global-topk"}
"""The methods without which there is no judgement."""


@dataclass(frozen=True)
class TargetRow(Row):
    """DLS's figures over one network, and the names of the targets that it misses there."""

    rate: str
    hosts: int
    model: str
    communication: Annotated[float, Title("communication / backward")]
    hidden: Annotated[float, Title(HIDDEN)]
    as_layerwise: Annotated[float, Title(AS_LAYERWISE)]
    as_bound: Annotated[float, Title(AS_BOUND)]
    as_global: Annotated[float, Title(AS_GLOBAL)]
    as_dense: Annotated[float | None, Title("step / dense")] = None
    missed: str = "none"


def judge(rows: Sequence[NetworkRow]) -> Iterator[TargetRow]:
    """Yield a row for each network and model that all NEEDED methods were measured with."""
    cells: dict[tuple[str, int, str], dict[str, NetworkRow]] = {}
    for row in rows:
        cells.setdefault((row.rate, row.hosts, row.model), {})[row.method] = row
    for methods in cells.values():
        if methods.keys() >= NEEDED:
            yield _judged(methods)


def _judged(methods: Mapping[str, NetworkRow]) -> TargetRow:
    dls, global_topk = methods["dls"], methods["global-topk"]
    communication = methods["dls" + AT_END].exposed_ms
    figures = {
        HIDDEN: dls.exposed_ms / communication,
        AS_LAYERWISE: dls.step_ms / methods["layerwise-topk"].step_ms,
        AS_BOUND: dls.step_ms / max(dls.compute_ms, dls.forward_ms + communication),
        AS_GLOBAL: dls.step_ms / global_topk.step_ms,
    }
    counts = dict.fromkeys(figures, True)
    counts[HIDDEN] = communication / dls.backward_ms <= HIDABLE
    counts[AS_GLOBAL] = global_topk.exposed_ms >= WAITING * global_topk.step_ms
    missed = [name for name, limit in LIMITS.items() if counts[name] and figures[name] > limit]
    dense = methods.get("dense")
    return TargetRow(
        rate=dls.rate,
        hosts=dls.hosts,
        model=dls.model,
        communication=communication / dls.backward_ms,
        hidden=figures[HIDDEN],
        as_layerwise=figures[AS_LAYERWISE],
        as_bound=figures[AS_BOUND],
        as_global=figures[AS_GLOBAL],
        as_dense=dls.step_ms / dense.step_ms if dense else None,
        missed=", ".join(missed) or "none",
    )
