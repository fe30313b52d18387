"""A run as it is looked into: its traces joined, its ranks reduced to their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.program.sources import State
from dls.tools.rows import Row

Columns = Mapping[str, NDArray[Any]]
"""Columns of a table, by their names."""


@dataclass(frozen=True)
class About(Row):
    """What a run was; None for what its traces do not say. `dls.inspect` describes the fields."""

    path: str
    method: Any
    density: Any
    dls_steps: Any
    model: Any
    dataset: Any
    backend: Any
    lr: Any
    seed: Any
    ranks: Sequence[int]
    steps: int
    hosts: Sequence[str]
    version: Any
    commit: Any
    started: Any
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """A run: T recorded steps, E evaluations, D diagnosed steps, L layers.

    layers: name, kind, size, … [L]. steps: step, loss, payload_bytes, received_bytes, ring_bytes,
    set_size, threshold_ratio, residual, warm, seconds/PHASE [T], k, k_rank0, threshold,
    residual_norm [T, L]. evals: step, loss, accuracy, and what was spent until then, sent_bytes and
    seconds [E]. diagnostics: step, global_share, hidden_share [D]. closest: the last diagnosed
    step. sources: what its training read of the program, state by state.
    """

    about: About
    layers: Mapping[str, Sequence[Any]]
    steps: Columns
    evals: Columns
    diagnostics: Columns
    closest: Timeline | None
    sources: Sequence[State] = ()


@dataclass(frozen=True)
class Timeline:
    """When each layer had its phases in one step.

    begin, end: seconds since the step began [P, L, phases].
    """

    step: int
    begin: NDArray[np.float64]
    end: NDArray[np.float64]
