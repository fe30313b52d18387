"""The rows that `dls.theory` measures, one class for each of its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar

from dls.theory.forms import FORMS
from dls.tools.rows import Row, Spread, Title

NAMES = tuple(FORMS)
"""The names of the forms."""


@dataclass(frozen=True)
class SettingsRow(Row):
    """What was asked for. record: training steps of the run on which Algorithm 2 is repeated."""

    table: str = field(default="settings", init=False)
    record: int
    dataset: str
    seeds: int
    batches: int
    batch_size: int
    steps: Sequence[int]
    lr: float


@dataclass(frozen=True)
class RatioRow(Row):
    """The ratio Var(∂f/∂W^l) / Var(∂f/∂W^{l−1}) of two neighbouring layers after so many steps.

    loss: in nats, the mean over the seeds, None where training diverged. measured: the geometric
    mean over the seeds, None where a layer has no gradient or training diverged. log2_error: the
    standard error of its log2 over the seeds, None of one seed. predicted: by each of FORMS.
    """

    table: str = field(default="ratio", init=False)
    network: str
    step: int
    layer: str
    previous: str
    kinds: str
    where: Sequence[str]
    loss: float | None
    measured: float | None
    log2_error: Annotated[float | None, Title("log2 error")]
    predicted: Annotated[Mapping[str, float], Spread(NAMES)]


@dataclass(frozen=True)
class FormError(Row):
    """How far a form is off over some pairs, in doublings.

    mean: of |log2(measured / predicted)|. factor: the geometric mean of measured / predicted, that
    is what the form misses in the same direction everywhere. worst: the pair that is farthest off,
    and worst_by: how far.
    """

    mean: Annotated[float, Title("")]
    factor: float
    worst: str
    worst_by: Annotated[float, Title("worst by")]


@dataclass(frozen=True)
class ErrorRow(Row):
    """The errors of all forms after so many steps, over the pairs that share something.

    of: what they share: all, network, kinds or place; name: which. noise: the mean of the pairs'
    log2_error, None of one seed. forms: empty where there is no pair.
    """

    table: str = field(default="error", init=False)
    step: int
    of: str
    name: str
    pairs: int
    noise: float | None
    forms: Annotated[Mapping[str, FormError], Spread(NAMES, FormError)]


@dataclass(frozen=True)
class FixedRow(Row):
    """Repeated adjustments of one gradient, which stays as it is.

    Lists are over the adjustments, the start first; pair_factors is one shorter. The last three are
    the numbers of adjustments until the overlap with Global Top-k is that large for the first time.
    See `dls.theory.properties.Adjustments` for the others.
    """

    table: str = field(default="fixed", init=False)
    network: str
    density: float
    layers: int
    budget: Annotated[int, Title("K")]
    step: int
    set_sizes: Annotated[Sequence[float], Title("set size")]
    overlaps: Annotated[Sequence[float], Title("overlap")]
    pair_factors: Annotated[Sequence[float | None], Title("pair factor")]
    equal_from: Annotated[int | None, Title("equal from")]
    adjustments: int
    largest_pair_factor: Annotated[float | None, Title("largest pair factor")]
    grew: int
    slower_than_half: Annotated[int, Title("slower than half")]
    mean_factor: Annotated[float | None, Title("mean factor")]
    reached_90: Annotated[int | None, Title("90 %")]
    reached_99: Annotated[int | None, Title("99 %")]
    reached_all: Annotated[int | None, Title("equal first")]


@dataclass(frozen=True)
class RunRow(Row):
    """DLS(1) on the changing gradients of a run; lists are over its training steps.

    equal_at: adjustments until the overlap is 1 for the first time, None for never.
    """

    table: str = field(default="run", init=False)
    network: str
    density: float
    layers: int
    budget: Annotated[int, Title("K")]
    steps: Annotated[Sequence[int], Title("step")]
    set_sizes: Annotated[Sequence[float], Title("set size")]
    set_sizes_after: Annotated[Sequence[float], Title("set size after")]
    set_sizes_layerwise: Annotated[Sequence[float], Title("set size, layer-wise")]
    overlaps: Annotated[Sequence[float], Title("overlap")]
    overlaps_after: Annotated[Sequence[float], Title("overlap after")]
    overlaps_layerwise: Annotated[Sequence[float], Title("overlap, layer-wise")]
    pair_factors: Annotated[Sequence[float | None], Title("pair factor")]
    equal_at: Annotated[int | None, Title("equal at")]


KINDS: Mapping[str, type[Row]] = {
    "settings": SettingsRow,
    "ratio": RatioRow,
    "error": ErrorRow,
    "fixed": FixedRow,
    "run": RunRow,
}
"""The class of a row by the name of its table."""
R = TypeVar("R", bound=Row)


def of_kind(rows: Iterable[Row], kind: type[R]) -> list[R]:
    """The rows of one table."""
    return [row for row in rows if isinstance(row, kind)]


def from_json(records: Iterable[Mapping[str, Any]]) -> list[Row]:
    """The rows of a report that was written as JSON."""
    return [KINDS[record["table"]].from_json(record) for record in records]
