"""Laws of the replay: of a step under a clock, and of what collectives ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dls.comm import local
from dls.comm.base import Comm
from dls.comm.lanes import Tally
from dls.cost import rounds
from dls.cost.clock import Clocks, Pattern
from dls.cost.fit import FitError, fit
from dls.cost.network import Network, NetworkError, Range, bits_per_second, seconds
from dls.cost.replay import Plan, Step, play, play_all
from reference.collectives import COLLECTIVES, COUNT, Chosen, Gather, Sum
from tests.parts import choose

NOTHING = Network((Range(0, 0.0, 0.0),))
LATENCY, PER_BYTE = 1e-3, 1e-6
PLAIN = Network((Range(0, LATENCY, PER_BYTE),))
SELECT, DECODE, ADJUST, BEFORE, AFTER = 0.002, 0.003, 0.001, 0.020, 0.004


def gather(sizes: list[int]) -> Pattern:
    return Pattern("gather", np.array(sizes))


def step(ranks: int, layers: int, buckets: int, seed: int | None = None) -> Step:
    """Every layer takes 10 ms, unless a seed says otherwise."""
    rng = np.random.default_rng(seed)
    scale = np.ones(ranks) if seed is None else rng.uniform(0.5, 1.5, ranks)
    return Step(
        BEFORE * scale,
        0.010 * scale[:, None] * np.ones((ranks, layers)),
        np.full((ranks, buckets), SELECT),
        np.full((ranks, buckets), DECODE),
        np.full(ranks, ADJUST),
        np.full(ranks, AFTER),
        np.zeros(ranks),
    )


def plan(ranks: int, size: int, overlap: bool = True) -> Plan:
    """Two buckets of two layers each, from the last."""
    both = [[gather([size] * ranks)], [gather([size] * ranks)]]
    return Plan([range(2, 4), range(2)], both, (), overlap)


def played(of: Step, how: Plan, network: Network, count: int = 1) -> float:
    return play_all([of] * count, how, network)[-1]


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("ranks", [2, 3, 70])
def test_without_a_network_a_step_is_its_computing(ranks: int, overlap: bool) -> None:
    alike = step(ranks, 4, 2)
    found = played(alike, plan(ranks, 10**6, overlap), NOTHING)
    assert found == pytest.approx(alike.computing[0], rel=1e-12)


def test_without_a_network_nobody_is_faster_than_the_slowest_up_to_the_last_message() -> None:
    uneven = step(8, 4, 2, seed=1)
    computed = uneven.computing - AFTER - 2 * DECODE
    ends = play(uneven, plan(8, 0), NOTHING, np.zeros(8), np.zeros(8)).end
    last = (computed - ADJUST).max()
    assert ends.min() == pytest.approx(last + AFTER + 2 * DECODE, abs=ADJUST + DECODE)


@given(
    latency=st.floats(0, 1e-2),
    rate=st.floats(1e5, 1e10),
    slower=st.floats(1, 100),
    size=st.integers(0, 10**6),
    seed=st.integers(0, 9),
)
def test_a_slower_network_never_makes_a_step_shorter(
    latency: float, rate: float, slower: float, size: int, seed: int
) -> None:
    uneven, how = step(4, 4, 2, seed=seed), plan(4, size)
    base = played(uneven, how, Network.of(rate, latency))
    less_rate = played(uneven, how, Network.of(rate / slower, latency))
    more_latency = played(uneven, how, Network.of(rate, latency * slower))
    assert less_rate >= base * (1 - 1e-9)
    assert more_latency >= base * (1 - 1e-9)


def test_two_ranks_by_hand() -> None:
    """An allgather of two ranks is one message each way: the first bucket's is through before the
    second one is posted, the second one's is waited for.
    """
    size = 20_000
    message = LATENCY + PER_BYTE * size
    posted = BEFORE + 4 * 0.010 + 2 * SELECT
    expected = posted + message + DECODE + AFTER
    assert message > ADJUST + DECODE
    found = played(step(2, 4, 2), plan(2, size), PLAIN)
    assert found == pytest.approx(expected, rel=1e-12)


def test_buckets_share_a_link() -> None:
    """The second bucket's message waits until the first one's has left the link."""
    size = 100_000
    first = BEFORE + 2 * 0.010 + SELECT
    expected = first + 2 * PER_BYTE * size + LATENCY + DECODE + AFTER
    assert played(step(2, 4, 2), plan(2, size), PLAIN) == pytest.approx(expected, rel=1e-12)


def test_messages_are_late_while_ranks_compute() -> None:
    """Not where they are waited for."""
    hidden = plan(2, 100)
    late = replace(PLAIN, poll=0.002)
    assert played(step(2, 4, 2), hidden, late) >= played(step(2, 4, 2), hidden, PLAIN)


def test_a_tax_is_paid_for_more_bytes_than_were_recorded() -> None:
    size, taxed = 5000, replace(PLAIN, tax=1e-7)
    base = step(2, 4, 2)
    recorded = base._replace(moved=np.full(2, 2.0 * size))
    free, paid = (played(each, plan(2, size), taxed) for each in (recorded, base))
    assert free == pytest.approx(played(base, plan(2, size), PLAIN), rel=1e-12)
    assert paid == pytest.approx(free + 1e-7 * 2 * size, rel=1e-12)


@pytest.mark.parametrize("kind", ["gather", "sum", "reduce"])
@pytest.mark.parametrize("ranks", [2, 3, 5, 8])
def test_many_ranks_are_timed_as_few_are(
    kind: str, ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages of one size: following each of them and not gives the same."""
    pattern = Pattern(kind, np.full(ranks, 400 * ranks))
    start = np.linspace(0, 0.01, ranks)
    found = []
    for exact in (0, 100):
        monkeypatch.setattr("dls.cost.clock.EXACT", exact)
        clocks = Clocks(ranks, PLAIN, start)
        clocks.take(pattern)
        found.append((clocks.now, clocks.received, clocks.busy))
    for many, few in zip(*found, strict=True):
        np.testing.assert_allclose(many, few)


@pytest.mark.parametrize("ranks", [1, 2, 4, 5, 8])
def test_doubling_moves_the_same_bytes_in_fewer_messages(ranks: int) -> None:
    pattern = gather([3000] * ranks)
    ring, doubled = (Clocks(ranks, replace(PLAIN, doubling=most)) for most in (0, 10**6))
    ring.take(pattern)
    doubled.take(pattern)
    assert doubled.received.tolist() == ring.received.tolist()
    saved = (ranks - 1) - int(ranks - 1).bit_length()
    assert doubled.now.max() == pytest.approx(ring.now.max() - saved * LATENCY)


@pytest.mark.parametrize("ranks", [2, 3, 4, 5, 8])
def test_a_sum_that_halves_and_doubles(ranks: int) -> None:
    """As many bytes as in a ring where the ranks are a power of two, else the whole twice more."""
    values, inside = 840, ranks.bit_length() - 1
    clocks = Clocks(ranks, replace(PLAIN, doubling=1))
    clocks.take(Pattern("sum", np.full(ranks, 4 * values)))
    folded = 2 if ranks != 1 << inside else 0
    block = 4 * values / (1 << inside)
    expected = 2 * inside * LATENCY + 2 * ((1 << inside) - 1) * PER_BYTE * block
    expected += folded * (LATENCY + PER_BYTE * 4 * values)
    assert clocks.now.max() == pytest.approx(expected)


# --------------------------------------------------------------------------- bytes


def carried(name: str, ranks: int, chosen: list[Chosen], vectors: list[Any]) -> list[Tally]:
    """Bytes that a carrier counts on each rank."""

    def work(comm: Comm) -> Tally:
        comm.lanes.open(1)
        generator = COLLECTIVES[name](chosen[comm.rank], vectors[comm.rank], comm.net)
        flight = comm.lanes.launch(0, generator, "all")
        comm.lanes.wait(flight)
        return Tally.of_all(flight.messages)

    return local.run(ranks, work)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("ranks", [2, 3, 4, 6])
@pytest.mark.parametrize("k", [0, 1, 40, 300])
@pytest.mark.parametrize("name", COLLECTIVES)
def test_patterns_have_the_bytes_of_the_messages(
    name: str, k: int, ranks: int, known: bool
) -> None:
    """Also of so many entries that the collective is run with fewer."""
    n = 6000
    rng = np.random.default_rng(k)
    vectors = [np.zeros(n, dtype=np.float32) for _ in range(ranks)]
    for v in vectors:
        v[rng.choice(n, k, replace=False)] = rng.standard_normal(k)
    chosen = choose(vectors, [k] * ranks, known, "float32")
    patterns = rounds.of_collective(name, ranks, n, k, "float32", known)
    counted = carried(name, ranks, chosen, vectors)
    sent = np.sum([each.sent() for each in patterns], axis=0)
    received = np.sum([each.received() for each in patterns], axis=0)
    np.testing.assert_allclose(sent, [each.sent for each in counted], rtol=0.01, atol=2)
    np.testing.assert_allclose(received, [each.received for each in counted], rtol=0.01, atol=2)


def test_sections_travel_together() -> None:
    parts = [rounds.of_collective("allgather", 3, 1000, k, "float32") for k in (5, 9)]
    joined = rounds.together(parts)
    assert len(joined) == 1
    assert joined[0].sizes.tolist() == (parts[0][0].sizes + parts[1][0].sizes).tolist()


def test_one_rank_stands_for_all_where_they_are_alike() -> None:
    values = np.ones(12, dtype=np.float32)
    sizes = [values.nbytes] * 4

    def make(rank: int) -> Any:
        yield Gather(values.view(np.uint8), sizes)
        yield Gather(values.view(np.uint8))
        yield Sum(values)

    first, second, third = rounds.observe(make, 4)
    assert first.received().tolist() == [3 * 48] * 4
    assert second.received().tolist() == [3 * (48 + COUNT)] * 4
    assert third.sent().tolist() == [48] * 4


# --------------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("text", "rate"), [("100mbit", 1e8), ("1gbit", 1e9), ("2.5gbit", 2.5e9), ("9600bit", 9600.0)]
)
def test_rates(text: str, rate: float) -> None:
    assert bits_per_second(text) == rate
    assert Network.of(rate, 0.0).rate == pytest.approx(rate)


@pytest.mark.parametrize("text", ["0gbit", "-1gbit", "1 furlong", "", "1e99gbit", "9999999tbit"])
def test_impossible_rates(text: str) -> None:
    with pytest.raises(NetworkError, match="impossible"):
        bits_per_second(text)


@pytest.mark.parametrize("text", ["-5us", "50", "2h", "100s", ""])
def test_impossible_latencies(text: str) -> None:
    with pytest.raises(NetworkError, match="impossible"):
        seconds(text)


def test_ranges_take_over_where_they_begin() -> None:
    network = Network((Range(0, 1.0, 0.0), Range(100, 2.0, 0.5)))
    found = network.seconds(np.array([0, 99, 100, 200]))
    assert found.tolist() == [1.0, 1.0, 52.0, 102.0]


def test_another_rate_keeps_what_a_range_adds() -> None:
    network = Network((Range(0, 0.0, 3e-8), Range(100, 0.0, 1e-8)))
    other = network.at_rate(4e8)
    assert [each.seconds_per_byte for each in other.ranges] == pytest.approx([4e-8, 2e-8])


# --------------------------------------------------------------------------- fits

SIZES = [2**exponent for exponent in range(4, 23)]


def measured(noise: float, cut: int = 2**16) -> list[float]:
    """Eager messages below `cut`, and dearer ones from there."""
    rng = np.random.default_rng(3)
    small = [3e-5 + 2e-8 * size for size in SIZES]
    large = [4e-4 + 1e-8 * size for size in SIZES]
    times = [
        few if size < cut else many for size, few, many in zip(SIZES, small, large, strict=True)
    ]
    return [time * float(np.exp(noise * rng.standard_normal())) for time in times]


def test_a_fit_finds_both_ranges() -> None:
    found = fit(SIZES, measured(0.01))
    small, large = found.ranges
    assert large.least == 2**16
    assert small.latency == pytest.approx(3e-5, rel=0.1)
    assert large.seconds_per_byte == pytest.approx(1e-8, rel=0.1)
    assert np.abs(found.residuals).max() < 0.05


def test_a_fit_of_one_range() -> None:
    found = fit(SIZES, [1e-4 + 8e-9 * size for size in SIZES])
    assert len(found.ranges) == 1
    assert found.ranges[0].latency == pytest.approx(1e-4)


def test_a_fit_that_does_not_describe_its_data_is_refused() -> None:
    with pytest.raises(FitError, match="do not describe"):
        fit(SIZES, measured(1.0))


@pytest.mark.parametrize(
    ("sizes", "times", "words"),
    [
        ([1, 1, 1, 1], [1.0] * 4, "at least 3 sizes"),
        ([1, 2, 4], [1.0, 0.0, 1.0], "took no time"),
        ([1, 2, 4], [1.0, 1.0, float("nan")], "no number"),
        ([1, 2, 4, 8], [1.0] * 4, "larger ones"),
    ],
)
def test_data_that_allow_no_fit(sizes: list[int], times: list[float], words: str) -> None:
    with pytest.raises(FitError, match=words):
        fit(sizes, times)
