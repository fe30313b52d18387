"""A method rehearsed alone: one rank's real code on a gradient of noise, as if all other ranks were
like it. That tells what it asks of the network, and how long it works.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from dls.backends import Backend
from dls.cost import rounds
from dls.cost.clock import Pattern
from dls.cost.rounds import HasPartners
from dls.exchange import methods
from dls.exchange.layout import Bucket, Layer, Layout
from reference.collectives import (
    Chosen,
    Entries,
    Exchanged,
    Gather,
    Net,
    Round,
    Swap,
    deliver,
    mail,
)

LARGEST = 30_000_000
"""Values of the largest gradient that is rehearsed as it is; a larger one is scaled down."""
WARMUP = 2
"""Steps before the timed ones: thresholds of the first step are found without a hint."""
TURNS = 8
"""Steps that are timed."""
TIMED_RANKS = (2, 8)
"""Numbers of ranks whose answers are decoded, to see how decoding grows with the bytes."""


@dataclass(frozen=True)
class Setup:
    """A method as it is to run on P ranks, buckets included."""

    name: str
    layout: Layout
    settings: Any
    ranks: int
    bucket_size: int

    @property
    def method(self) -> type[methods.Method]:
        """Its class."""
        return methods.load(self.name)

    @cached_property
    def buckets(self) -> list[Bucket]:
        """The buckets, in the order of leaving."""
        return self.layout.buckets(self.bucket_size, self.method.whole)


class Sections(NamedTuple):
    """What a bucket's sections send by a collective: of each the values it ranges over, its
    entries, and whether all ranks know how many these are.
    """

    parts: tuple[tuple[int, int, bool], ...]
    value_dtype: str


Asked = Pattern | Sections


@dataclass(frozen=True)
class Work:
    """Seconds of one step's work: selection by bucket, adjusting, and decoding, of which so much
    is there whatever comes and so much for each byte that comes.
    """

    select: Sequence[float]
    adjust: float
    fixed: float
    per_byte: float

    def decode(self, received: float) -> float:
        """Seconds where so many bytes come."""
        return self.fixed + self.per_byte * received


class Scaled(NamedTuple):
    """A setup of fewer values, and how many times as many the true one has."""

    setup: Setup
    buckets: Sequence[Bucket]
    times: float


def scaled(setup: Setup, largest: int = LARGEST) -> Scaled:
    """The setup, or one with the same layers and buckets and fewer values where it is too large."""
    if setup.layout.n <= largest:
        return Scaled(setup, setup.buckets, 1.0)
    times = setup.layout.n / largest
    layers = [
        Layer(layer.name, max(1, round(layer.size / times)), layer.channels)
        for layer in setup.layout.layers
    ]
    smaller = replace(setup, layout=Layout(layers))
    buckets = [_moved(bucket, smaller.layout) for bucket in setup.buckets]
    return Scaled(smaller, buckets, setup.layout.n / smaller.layout.n)


def _moved(bucket: Bucket, layout: Layout) -> Bucket:
    """The same bucket of other sizes."""
    span = layout.span(bucket.layers)
    if len(bucket.parts) == 1:
        cuts = np.array([0, span.stop - span.start])
    else:
        first, last = bucket.layers.start, bucket.layers.stop
        cuts = layout.offsets[first : last + 1] - layout.offsets[first]
    return replace(bucket, span=span, cuts=cuts)


# What it asks for ---------------------------------------------------------------------------------


def demand(setup: Setup, backend: Backend) -> tuple[list[list[Asked]], list[Asked]]:
    """What each bucket asks for, and the adjustment, on the setup's ranks."""
    small = scaled(setup)
    probe = _Probe(small, backend)
    try:
        return probe.run()
    except HasPartners:
        return _demand_of_all(small, backend)


def expand(asked: Sequence[Asked], setup: Setup) -> list[Pattern]:
    """The rounds of all ranks; the collective's are those of its own generators."""
    patterns: list[Pattern] = []
    for each in asked:
        if isinstance(each, Pattern):
            patterns.append(each)
            continue
        parts = [
            rounds.of_collective(
                setup.settings.collective, setup.ranks, n, k, each.value_dtype, known
            )
            for n, k, known in each.parts
        ]
        patterns += rounds.together(parts)
    return patterns


class _Probe:
    """Runs rank 0 and notes what it asks for; collectives of the exchange are noted by what they
    are given.
    """

    def __init__(self, small: Scaled, backend: Backend) -> None:
        setup = small.setup
        self._small, self._ranks = small, setup.ranks
        self._method = setup.method(
            setup.layout, setup.settings, Net(0, setup.ranks), backend, small.buckets
        )
        self._noted: list[Asked] = []
        if hasattr(self._method, "collective"):
            self._method.collective = self._note

    def _note(self, chosen: Chosen, *_: Any, **__: Any) -> Generator[Round, Any, Exchanged]:
        """In place of a collective."""
        times = self._small.times
        k = round(chosen.index.size * times)
        part = (round(chosen.n * times), k, chosen.counts is not None)
        last = self._noted[-1] if self._noted else None
        if isinstance(last, Sections):
            self._noted[-1] = last._replace(parts=(*last.parts, part))
        else:
            self._noted.append(Sections((part,), chosen.value_dtype))
        entries = [Entries(chosen.index, chosen.values)]
        return Exchanged(entries, entries)
        yield

    def run(self) -> tuple[list[list[Asked]], list[Asked]]:
        """One step, after another in which k and thresholds settle. HasPartners."""
        method, gradient = self._method, noise(self._small.setup.layout.n)
        self._step(0, gradient)
        of_buckets, adjustment = self._step(1, gradient)
        del method
        return of_buckets, adjustment

    def _step(self, finished: int, gradient: Any) -> tuple[list[list[Asked]], list[Asked]]:
        method = self._method
        method.begin(finished)
        of_buckets, landed = [], []
        for bucket in self._small.buckets:
            asked, value = self._drive(method.exchange(bucket, gradient[bucket.span]))
            of_buckets.append(asked)
            landed.append(value)
        adjustment, _ = self._drive(method.adjust(finished + 1), scale=False)
        for each in landed:
            method.release(each)
        return of_buckets, adjustment

    def _drive(
        self, generator: Generator[Round, Any, Any], scale: bool = True
    ) -> tuple[list[Asked], Any]:
        """Run a generator to its end; what it asked for, and what it returned."""
        self._noted = []
        answer: Any = None
        while True:
            try:
                asked = generator.send(answer)
            except StopIteration as end:
                return self._noted, end.value
            pattern = rounds.pattern_of_all(asked, self._ranks)
            times = self._small.times if scale else 1.0
            sizes = np.rint(pattern.sizes * times).astype(np.int64)
            self._noted.append(pattern._replace(sizes=sizes))
            answer = rounds.mirrored(asked, self._ranks)


def _demand_of_all(small: Scaled, backend: Backend) -> tuple[list[list[Asked]], list[Asked]]:
    """What a method asks for whose ranks have partners: all of them are run."""
    setup = small.setup
    ranks = [
        setup.method(setup.layout, setup.settings, Net(rank, setup.ranks), backend, small.buckets)
        for rank in range(setup.ranks)
    ]
    patterns: list[Pattern] = []

    def carry(asked: Sequence[Round]) -> list[Any]:
        patterns.append(Pattern.of(asked))
        return deliver(asked)

    of_buckets: list[list[Asked]] = []
    for rank in ranks:
        rank.begin(0)
    for bucket in small.buckets:
        patterns.clear()
        gradients = [noise(setup.layout.n, rank)[bucket.span] for rank in range(setup.ranks)]
        pairs = zip(ranks, gradients, strict=True)
        mail([rank.exchange(bucket, gradient) for rank, gradient in pairs], carry)
        sizes = [np.rint(each.sizes * small.times).astype(np.int64) for each in patterns]
        pairs_of = zip(patterns, sizes, strict=True)
        of_buckets.append([each._replace(sizes=size) for each, size in pairs_of])
    patterns.clear()
    mail([rank.adjust(1) for rank in ranks], carry)
    return of_buckets, list(patterns)


def noise(n: int, seed: int = 0) -> Any:
    """A gradient (n) with heavy tails."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(n, dtype=np.float32)
    return values * np.abs(values)


# How long it works --------------------------------------------------------------------------------


def work(setup: Setup, backend: Backend) -> Work:
    """Seconds of its work here, each the least of several steps, as whatever else the machine does
    only adds to it; on answers of two numbers of ranks.
    """
    small = scaled(setup)
    few, many = (_timed(small, backend, ranks) for ranks in TIMED_RANKS)
    more = many.received - few.received
    per_byte = max(0.0, (many.decode - few.decode) / more) if more > 0 else 0.0
    fixed = max(0.0, few.decode - per_byte * few.received)
    times = small.times
    select = [times * each for each in few.select]
    return Work(select, times * few.adjust, times * fixed, per_byte)


class _Timed(NamedTuple):
    """Seconds of a step's work, and the bytes that came."""

    select: Sequence[float]
    adjust: float
    decode: float
    received: float


def _timed(small: Scaled, backend: Backend, ranks: int) -> _Timed:
    setup = small.setup
    method = setup.method(setup.layout, setup.settings, Net(0, ranks), backend, small.buckets)
    gradient = backend.ops.from_host(noise(setup.layout.n))
    update = backend.ops.zeros(setup.layout.n)
    turns = [
        _turn(method, small.buckets, gradient, update, number, ranks)
        for number in range(WARMUP + TURNS)
    ][WARMUP:]
    select = np.min([turn.select for turn in turns], axis=0).tolist()
    adjust, decode, received = (
        float(np.min([getattr(turn, name) for turn in turns]))
        for name in ("adjust", "decode", "received")
    )
    return _Timed(select, adjust, decode, received)


def _turn(
    method: Any, buckets: Sequence[Bucket], gradient: Any, update: Any, finished: int, ranks: int
) -> _Timed:
    """A step of one rank, with answers as if the others were like it."""
    method.begin(finished)
    select, started = [], []
    for bucket in buckets:
        begin = perf_counter()
        generator = method.exchange(bucket, gradient[bucket.span])
        asked = next(generator)
        select.append(perf_counter() - begin)
        started.append((bucket, generator, asked))
    begin = perf_counter()
    adjustment = method.adjust(finished + 1)
    told = next(adjustment, None)
    adjust = perf_counter() - begin
    received = 0.0
    begin = perf_counter()
    for bucket, generator, asked in started:
        landed, brought = _finish(generator, asked, ranks)
        method.complete(bucket, landed, update)
        method.release(landed)
        received += brought
    decode = perf_counter() - begin
    if told is not None:
        _finish(adjustment, told, ranks)
    return _Timed(select, adjust, decode, received)


def _finish(generator: Generator[Round, Any, Any], asked: Round, ranks: int) -> tuple[Any, float]:
    """What it returns, and the bytes that its answers brought."""
    received = 0.0
    while True:
        answer, brought = _answer(asked, ranks)
        received += brought
        try:
            asked = generator.send(answer)
        except StopIteration as end:
            return end.value, received


def _answer(asked: Round, ranks: int) -> tuple[Any, float]:
    """An answer as if the other ranks were like this one; of a partner, what this one sends."""
    if isinstance(asked, Gather):
        return (asked.payload,) * ranks, float(asked.payload.size * (ranks - 1))
    if isinstance(asked, Swap):
        size = asked.payload.size if asked.size is None else asked.size
        payload = np.resize(asked.payload, size) if asked.source is not None else asked.payload[:0]
        return payload, float(payload.size)
    return asked.values.copy(), float(asked.values.nbytes)
