"""What a run's step would take elsewhere: its computing as recorded, a method's work as rehearsed,
its messages under the clock.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from dls.backends import Backend, processor
from dls.cost.network import Network, Range
from dls.cost.replay import Plan, Step, play_all
from dls.exchange.settings import fields_of
from dls.predict import rehearse
from dls.predict.recording import Run
from dls.predict.rehearse import Setup, Work

STEPS = 40
"""Steps that are drawn from the recorded ones, and replayed."""
SEED = 0
"""Of the draw."""
MEASURABLE = 5e-4
"""Seconds of recorded work from which on it tells how fast the recorded machine is."""
SLOWER = 5.0
"""The recorded machine is at most so many times slower or faster than this one is taken for."""
LOW, HIGH = 10, 90
"""Percentiles of the steps between which an interval lies."""
RATES = np.logspace(5, 13, 33)
"""Bits per second at which methods are compared to find where two take the same time."""
WITHOUT = Network((Range(0, 0.0, 0.0),), "no network at all")
"""What a step takes there is computing, and waiting for ranks that compute longer."""
FEW_STEPS = 6
"""Steps that are replayed at each of these rates."""


@dataclass(frozen=True)
class Choice:
    """A method as it could run: its settings, and the size of its buckets in values."""

    method: str
    settings: object
    bucket_size: int

    @property
    def density(self) -> float:
        """The share of the gradient that is sent; 1 where the method knows none."""
        return float(getattr(self.settings, "density", 1.0))

    @property
    def collective(self) -> str:
        """The collective's name; that of the library's sum where the method does not choose one."""
        return str(getattr(self.settings, "collective", "allreduce"))

    @property
    def value_dtype(self) -> str:
        """The type of values in messages."""
        return str(getattr(self.settings, "value_dtype", "float32"))

    def with_settings(self, **values: object) -> Choice:
        """With other settings, as far as the method knows them."""
        known = {
            key: value for key, value in values.items() if key in fields_of(type(self.settings))
        }
        return replace(self, settings=replace(self.settings, **known))  # type: ignore[type-var]

    @property
    def words(self) -> str:
        """For people."""
        if "density" not in fields_of(type(self.settings)):
            return self.method
        return f"{self.method} at density {self.density:g} by {self.collective}"


@dataclass(frozen=True)
class Answer:
    """A method's step on a network: the median, and an interval from the spread of steps, in
    seconds; what it computes alone; bytes of the rank that has most; where it is as fast as dense.
    """

    choice: Choice
    step: float
    low: float
    high: float
    computing: float
    sent: int
    received: int
    break_even: float | None = None


class Forecast:
    """A recorded run, replayed elsewhere. backend: on which methods are rehearsed."""

    def __init__(self, run: Run, backend: Backend) -> None:
        self.run, self._backend = run, backend
        self._work: dict[tuple[Choice, int], Work] = {}
        self._plans: dict[tuple[Choice, int], Plan] = {}

    @property
    def recorded(self) -> Choice:
        """What was recorded."""
        return Choice(self.run.method, self.run.settings, self.run.bucket_size)

    def answer(self, choice: Choice, ranks: int, network: Network) -> Answer:
        """A method's step on P ranks of a network."""
        return self.answer_for(choice, list(self.steps(choice, ranks)), ranks, network)

    def answer_for(
        self, choice: Choice, steps: Sequence[Step], ranks: int, network: Network, skip: int = 0
    ) -> Answer:
        """The same for steps that are given, of which the first ones are replayed and not
        counted.
        """
        plan = self.plan(choice, ranks)
        taken = play_all(steps, plan, network)[skip:]
        low, middle, high = np.percentile(taken, [LOW, 50, HIGH]).tolist()
        computing = float(np.median(play_all(steps, plan, WITHOUT)[skip:]))
        sent, received = int(plan.sent().max()), int(plan.received().max())
        return Answer(choice, middle, low, high, computing, sent, received)

    def replayed(self, network: Network) -> list[float]:
        """Seconds of the recorded steps, replayed as they were on this network."""
        plan = self.plan(self.recorded, self.run.ranks)
        return play_all(self.run.steps, plan, network)

    # --- what is sent ----------------------------------------------------------------------------

    def plan(self, choice: Choice, ranks: int) -> Plan:
        """The rounds of P ranks."""
        if (choice, ranks) not in self._plans:
            setup = self._setup(choice, ranks)
            asked, told = rehearse.demand(setup, self._backend)
            rounds = [rehearse.expand(each, setup) for each in asked]
            layers = [bucket.layers for bucket in setup.buckets]
            adjustment = rehearse.expand(told, setup)
            self._plans[choice, ranks] = Plan(layers, rounds, adjustment, self.run.overlap)
        return self._plans[choice, ranks]

    def _setup(self, choice: Choice, ranks: int) -> Setup:
        return Setup(choice.method, self.run.layout, choice.settings, ranks, choice.bucket_size)

    # --- what is computed ------------------------------------------------------------------------

    def steps(self, choice: Choice, ranks: int, count: int = STEPS) -> Iterator[Step]:
        """So many steps of P ranks: recorded ones, drawn at random, with the method's own work.

        Up to as many ranks as were recorded share a step, so that what slowed all of them does so
        again; with more ranks each such group has a step of its own.
        """
        rng = np.random.default_rng(SEED)
        of_choice = self._with_work(choice, ranks)
        recorded = self.run.ranks
        for _ in range(count):
            groups = -(-ranks // recorded)
            drawn = rng.integers(len(of_choice), size=groups)
            parts = [of_choice[number] for number in drawn]
            places = np.arange(ranks) if groups > 1 else rng.permutation(recorded)[:ranks]
            fields = zip(*parts, strict=True)
            yield Step(*(np.concatenate(each)[places] for each in fields))

    def _with_work(self, choice: Choice, ranks: int) -> list[Step]:
        """The recorded steps, with this method's work in place of the recorded one's."""
        work = self._work_of(choice)
        received = float(self.plan(choice, ranks).received().mean())
        decode = work.decode(received)
        if choice == self.recorded and self.run.worked:
            before = work.decode(self.run.received)
            grown = decode / before if before else 1.0
            return [step._replace(decode=step.decode * grown) for step in self.run.steps]
        shares = self._shares(choice, ranks)
        return [self._replaced(step, work, decode * shares) for step in self.run.steps]

    def _shares(self, choice: Choice, ranks: int) -> NDArray[np.float64]:
        """Of the decoding each bucket's share."""
        plan = self.plan(choice, ranks)
        brought = [sum(each.received().mean() for each in rounds) for rounds in plan.rounds]
        total = sum(brought)
        return np.array(brought) / total if total else np.full(len(brought), 1 / len(brought))

    def _replaced(self, step: Step, work: Work, decode: NDArray[np.float64]) -> Step:
        selected = step.select.sum(axis=1)
        speed = np.ones_like(selected)
        if self.run.worked and self.run.processors != processor():
            speed = _speed(selected, sum(self._own_work.select))
        return step._replace(
            select=speed[:, None] * np.array(work.select)[None, :],
            decode=speed[:, None] * decode[None, :],
            adjust=speed * work.adjust,
        )

    @cached_property
    def _own_work(self) -> Work:
        return self._work_of(self.recorded)

    def _work_of(self, choice: Choice) -> Work:
        """A method's work, as rehearsed here on this run's layers."""
        if (choice, 0) not in self._work:
            self._work[choice, 0] = rehearse.work(self._setup(choice, 2), self._backend)
        return self._work[choice, 0]

    # --- where two take the same time ------------------------------------------------------------

    def break_even(
        self, choice: Choice, other: Choice, ranks: int, network: Network
    ) -> float | None:
        """The highest rate, in bits per second, up to which a method's step is shorter than the
        other's; None where one is shorter at all rates.
        """
        ours, theirs = (self._over_rates(each, ranks, network) for each in (choice, other))
        gain = theirs - ours
        crossings = np.flatnonzero((gain[:-1] > 0) & (gain[1:] <= 0))
        if not crossings.size:
            return None
        last = int(crossings[-1])
        share = gain[last] / (gain[last] - gain[last + 1])
        exponents = np.log(RATES[last : last + 2])
        return float(np.exp(exponents[0] + share * (exponents[1] - exponents[0])))

    def _over_rates(self, choice: Choice, ranks: int, network: Network) -> NDArray[np.float64]:
        key = (choice, ranks, network)
        if key not in self._rates:
            steps = list(self.steps(choice, ranks, FEW_STEPS))
            plan = self.plan(choice, ranks)
            taken = [np.mean(play_all(steps, plan, network.at_rate(rate))) for rate in RATES]
            self._rates[key] = np.array(taken)
        return self._rates[key]

    @cached_property
    def _rates(self) -> dict[tuple[Choice, int, Network], NDArray[np.float64]]:
        return {}


def _speed(recorded: NDArray[np.float64], rehearsed: float) -> NDArray[np.float64]:
    """How many times longer each rank (P) works than this machine, of what both have selected; 1
    where it is too short to tell.
    """
    if rehearsed < MEASURABLE:
        return np.ones_like(recorded)
    return np.clip(recorded / rehearsed, 1 / SLOWER, SLOWER)


def best(answers: Sequence[Answer]) -> Answer:
    """The one with the shortest step."""
    return min(answers, key=lambda answer: answer.step)
