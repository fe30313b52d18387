"""The rows of a study's report: what the runs of a workload, density and method reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from dls.study.experiments import BASELINES, Cell
from dls.tools.rows import Row, Title


@dataclass(frozen=True)
class RunResult:
    """What a complete run reached.

    accuracy, loss: of the test set, at the end. step_ms: the median step of the slowest rank.
    sent_kb: what a rank sent in a step, on average. overlap: the share of Global Top-k's choice
    that was sent, averaged over the ranks and the steps in which it was measured, None where it
    never was. spread: the standard deviation over the layers of the threshold's logarithm, averaged
    over ranks and steps, None where a threshold is 0. k: what each layer sent in a step (L),
    averaged over ranks and steps. commits, sources: the code. machines: backends and hosts.
    """

    accuracy: float
    loss: float
    step_ms: float
    sent_kb: float
    overlap: float | None
    spread: float | None
    k: Sequence[float]
    commits: Sequence[str]
    sources: Sequence[str]
    machines: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class StudyRow(Row):
    """The results of a cell: of all runs of a workload, a density and a method.

    density: None for a method that sets its own. planned: how many seeds there will be. seeds:
    those that are complete; the seven figures after `failed` are lists over them, see `RunResult`.
    failed: why runs failed, by their seeds. commits, sources and machines: of all runs together.
    settings: those that the report states. repeat: the command that repeats the runs.
    """

    workload: str
    density: float | None
    method: str
    planned: int
    seeds: Sequence[int]
    failed: Mapping[int, str]
    accuracy: Sequence[float]
    loss: Sequence[float]
    step_ms: Annotated[Sequence[float], Title("ms")]
    sent_kb: Annotated[Sequence[float], Title("kB")]
    overlap: Sequence[float | None]
    spread: Sequence[float | None]
    k: Sequence[Sequence[float]]
    commits: Sequence[str]
    sources: Sequence[str]
    machines: Annotated[Sequence[str], Title("places")]
    ranks: int
    settings: Mapping[str, Any]
    baselines: Sequence[str] = BASELINES
    repeat: str

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The row of a report; an older one has no `spread`, and may lack `sources`.

        KeyError and ValueError for what is no row.
        """
        older = {"spread": [None] * len(record["seeds"]), "sources": record["commits"]}
        failed = {int(seed): why for seed, why in record["failed"].items()}
        return super().from_json(older | dict(record) | {"failed": failed})

    @property
    def cell(self) -> Cell:
        """Workload, density and method."""
        return self.workload, self.density, self.method

    @property
    def goal(self) -> str:
        """The last baseline, which other methods are to reach."""
        return self.baselines[-1]

    def result(self, seed: int) -> RunResult:
        """The result of one run. ValueError where it is not complete."""
        at = list(self.seeds).index(seed)
        return RunResult(
            accuracy=self.accuracy[at],
            loss=self.loss[at],
            step_ms=self.step_ms[at],
            sent_kb=self.sent_kb[at],
            overlap=self.overlap[at],
            spread=self.spread[at],
            k=self.k[at],
            commits=self.commits,
            sources=self.sources,
            machines=self.machines,
        )


@dataclass(frozen=True)
class ComparisonRow(Row):
    """A method beside a baseline, in percentage points of accuracy, as the report's JSON has it.

    half: half the width of the mean's interval, infinite where there are too few seeds.
    """

    workload: str
    density: float | None
    method: str
    against: str
    values: Sequence[float]
    failed: int
    mean: float
    half: float
    verdict: str
