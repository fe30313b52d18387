"""Exchanges, step by step, on workers, on ranks and in the reference cluster, and their laws.

What a method must give its own `meaning` says, in terms of the reference; one without a meaning
obeys the other laws.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dls.comm import local
from dls.comm.base import Comm
from dls.exchange.exchanger import Exchanger
from dls.exchange.methods._base import Sparse
from reference import collectives, methods
from reference.cluster import Cluster
from reference.collectives import Sum
from reference.ops import Vector
from tests.cases import Case

STEPS = 5
PLACES = (lambda _: True, lambda layer: layer % 2 == 0, lambda _: False)
"""Which layers' gradients are read where they lie, step after step: all, some, none."""
SKIPPED = 2
"""The step in which the last rank meets NaN, in cases that skip such steps."""
NAP = 0.002
"""Seconds by which a rank is late now and then."""
Pause = Callable[[int], None]


@dataclass(frozen=True)
class Seen:
    """What a step leaves on a rank.

    sent: k of each layer, as it was sent; share: of Global Top-k's choice; moved: bytes given and
    received; met_by: the ranks for which it was skipped, where the update is 0.
    """

    update: Vector
    state: dict[str, np.ndarray]
    sent: np.ndarray
    thresholds: np.ndarray
    share: float
    moved: tuple[int, int]
    met_by: tuple[int, ...]

    @property
    def residual(self) -> Vector:
        """All that has not been sent yet."""
        kept = [array for name, array in self.state.items() if "residual" in name]
        return sum(kept, np.zeros_like(self.update))

    @property
    def bits(self) -> list[bytes]:
        """Everything but the bytes that were moved."""
        arrays = [self.update, *self.state.values()]
        if not self.met_by:
            arrays += [self.sent, self.thresholds, np.array(self.share)]
        return [array.tobytes() for array in arrays] + [bytes(self.met_by)]


Run = Sequence[Sequence[Seen]]
"""By ranks, then by steps."""


# --- running --------------------------------------------------------------------------------------


def take(
    comm: Comm, case: Case, first: int = 0, state: dict[str, np.ndarray] | None = None
) -> list[Seen]:
    """One rank's steps; from a state on, if there is one."""
    exchanger = case.exchanger(comm)
    if state is not None:
        exchanger.restore(state)
    return [take_step(exchanger, case, step) for step in range(first, STEPS)]


def take_step(exchanger: Exchanger, case: Case, step: int, shuffled: bool = False) -> Seen:
    """One rank's step; with all that it asks of the others it is over.

    shuffled: layers are ready in random order, and one rank is late at random places.
    """
    comm, layout = exchanger.comm, exchanger.layout
    gradient, order = case.gradient(comm.rank, step), list(reversed(range(len(layout))))
    if case.on_nan == "skip" and step == SKIPPED and comm.rank == comm.size - 1:
        gradient[layout.n // 2] = np.nan
    late = random.Random(f"{step} {comm.rank}" if shuffled else "")
    if shuffled:
        late.shuffle(order)
    exchanger.clock.restart(timeline_of=len(layout))
    exchanger.begin(step)
    for layer in order:
        if shuffled and step % comm.size == comm.rank and late.random() < 0.4:
            time.sleep(NAP)
        own = gradient[layout.span(range(layer, layer + 1))]
        in_place = PLACES[step % len(PLACES)](layer)
        exchanger.ready(layer, [own[:1], own[1:]], in_place=in_place)
    arrived = [(span, exchanger.update[span].copy()) for span in exchanger.arrivals()]
    row = exchanger.end(record=True)
    update = np.zeros_like(exchanger.update) if row.met_by else exchanger.update.copy()
    check_arrivals(arrived, update, bool(row.met_by))
    state = {name: np.array(array) for name, array in exchanger.state().items()}
    moved = row.payload_bytes, row.received_bytes
    assert row.k is not None and row.threshold is not None and row.diagnosis is not None
    about = row.k, row.threshold, row.diagnosis.global_share
    return Seen(update, state, *about, moved, tuple(row.met_by))


def check_arrivals(arrived: Sequence[tuple[slice, Vector]], update: Vector, skipped: bool) -> None:
    """Every value arrives once, as it stays; none where the step is skipped."""
    places = [np.arange(update.size)[span] for span, _ in arrived]
    found = np.sort(np.concatenate([*places, np.zeros(0, dtype=np.int64)]))
    assert found.tolist() == ([] if skipped else list(range(update.size)))
    assert all(update[span].tobytes() == values.tobytes() for span, values in arrived)


def workers(case: Case, ranks: int, first: int = 0, states: Sequence[Any] = ()) -> Run:
    """The ranks as workers of this process; from states on, if there are any."""
    starts = [*states] or [None] * ranks
    return local.run(ranks, lambda comm: take(comm, case, first, starts[comm.rank]))


def sums_in_any_order(case: Case) -> bool:
    """Whether the MPI library forms sums of the method's: they are exact in whole numbers alone."""
    asked = []

    def spied(comm: Comm) -> None:
        post = comm.post
        comm.post = lambda lane, each, what: (asked.append(each), post(lane, each, what))[1]
        take_step(case.exchanger(comm), case, 0)

    local.run(1, spied)
    return any(isinstance(each, Sum) for each in asked)


# --- the reference cluster ------------------------------------------------------------------------


class Recorded:
    """A model whose backward pass copies a recorded gradient."""

    def __init__(self, case: Case, rank: int) -> None:
        self.case, self.rank, self.steps = case, rank, itertools.count()
        self.offsets = case.layout.offsets
        self.parameters, self.gradients = (np.zeros(case.layout.n, np.float32) for _ in range(2))

    def forward(self, images: np.ndarray, training: bool) -> np.ndarray:
        return np.zeros((1, 2), dtype=np.float32)

    def backward(self, dlogits: np.ndarray, on_gradient: Callable[[int], None]) -> None:
        self.gradients[...] = self.case.gradient(self.rank, next(self.steps))


class Heard:
    """A method of the reference, and how many values of each layer it has sent."""

    def __init__(self, method: methods.Method) -> None:
        self.method, self.select = method, method.select
        self.sent: list[np.ndarray] = []

    def next_k(self, v: Any, k: Any, step: int, sent: Any, gradients: Any) -> Any:
        self.sent.append(np.sum([[i.size for i, _ in each] for each in sent], axis=0))
        return self.method.next_k(v, k, step, sent, gradients)


def budget(case: Case, step: int) -> int:
    """K of the training step that follows so many finished ones."""
    own = case.settings
    density = methods.warmup_density(own.density, step, own.density_warmup)
    return methods.budget(case.layout.n, density)


def check_reference(case: Case, run: Run) -> None:
    """Update, residuals, what was sent and the next k are the reference cluster's."""
    meaning = case.kind.meaning(case.settings)
    if meaning is None:
        return
    ranks, heard = len(run), Heard(meaning)
    cluster = Cluster(
        [Recorded(case, rank) for rank in range(ranks)],
        heard,
        _first_k(case),
        value_dtype=case.settings.value_dtype,
        collective=case.collective,
        buckets=case.buckets,
    )
    nothing = [(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))] * ranks
    for step in range(len(run[0])):
        if run[0][step].met_by:
            cluster.step_count += 1
            for model in cluster.models:
                next(model.steps)
        else:
            cluster.step(nothing, 1.0, budget(case, step))
            _check_step(step, cluster, heard.sent[-ranks:], [seen[step] for seen in run])


def _first_k(case: Case) -> np.ndarray:
    """As the method splits its first budget over the layers, where it chooses among these."""
    k = local.run(1, lambda comm: case.exchanger(comm).state()["k"])[0]
    whole = k.size != len(case.sizes)
    return methods.split_budget(int(k.sum()), case.sizes) if whole else k.copy()


def _check_step(step: int, cluster: Cluster, sent: Sequence[Any], seen: Sequence[Seen]) -> None:
    for rank, own in enumerate(seen):
        where = f"step {step}, rank {rank}"
        assert own.update.tobytes() == cluster.momentum.tobytes(), where
        assert own.residual.tobytes() == cluster.residuals[rank].tobytes(), where
        assert own.sent.tolist() == sent[rank].tolist(), where
        k, theirs = own.state["k"], cluster.k[rank]
        theirs = theirs if k.size == theirs.size else theirs.sum(keepdims=True)
        assert k.tolist() == theirs.tolist(), where


# --- laws -----------------------------------------------------------------------------------------


def check(case: Case, ranks: int) -> Run:
    """All laws of workers in this process; what they saw."""
    run = workers(case, ranks)
    check_agreement(case, run)
    check_conservation(case, run)
    check_budget(case, run)
    check_reference(case, run)
    check_resume(case, run)
    return run


def check_agreement(case: Case, run: Run) -> None:
    """All ranks have the same update, and skip the same steps, after which all is as before."""
    for step, seen in enumerate(zip(*run, strict=True)):
        met_by = (len(run) - 1,) if case.on_nan == "skip" and step == SKIPPED else ()
        assert {own.update.tobytes() for own in seen} == {seen[0].update.tobytes()}, step
        assert {own.met_by for own in seen} == {met_by}, step
    if case.on_nan == "skip":
        for own in run:
            before, after = own[SKIPPED - 1].state, own[SKIPPED].state
            assert before.keys() == after.keys()
            assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def check_conservation(case: Case, run: Run) -> None:
    """Σ residual' + P · update = Σ v, in whole numbers exactly.

    Nothing waits where all is sent as it is, and no collective chooses among it: then the update is
    the dense mean.
    """
    ranks = len(run)
    as_it_is = getattr(case.settings, "value_dtype", "float32") == "float32"
    exact = as_it_is and case.collective not in collectives.BY_BUCKET
    for step, seen in enumerate(zip(*run, strict=True)):
        if seen[0].met_by:
            continue
        total = seen[0].update.astype(np.float64) * ranks
        total = np.rint(total) if case.whole else total
        kept = sum(own.residual.astype(np.float64) for own in seen)
        v = sum(case.gradient(rank, step).astype(np.float64) for rank in range(ranks))
        if step:
            v += sum(own[step - 1].residual.astype(np.float64) for own in run)
        tolerance = 0 if case.whole else 1e-5 * np.abs(v).max()
        np.testing.assert_allclose(kept + total, v, rtol=0, atol=tolerance, err_msg=f"step {step}")
        everything = all(own.sent.tolist() == list(case.sizes) for own in seen)
        if everything and exact:
            assert not any(own.residual.any() for own in seen), step


def check_budget(case: Case, run: Run) -> None:
    """Every rank sends as many values as its budget, and no more than there are in any layer."""
    for own in run:
        for step, seen in enumerate(own):
            if not seen.met_by:
                assert ((seen.sent >= 0) & (seen.sent <= case.sizes)).all()
                if issubclass(case.kind, Sparse):
                    assert seen.sent.sum() == budget(case, step), step
                assert 0 <= seen.share <= 1


def check_resume(case: Case, run: Run) -> None:
    """What goes on from a state has the bits of a run never interrupted; the step depends on P."""
    first = len(run)
    again = workers(case, len(run), first, [own[first - 1].state for own in run])
    for own, whole in zip(again, run, strict=True):
        assert [seen.bits for seen in own] == [seen.bits for seen in whole[first:]]
        assert [seen.moved for seen in own] == [seen.moved for seen in whole[first:]]
