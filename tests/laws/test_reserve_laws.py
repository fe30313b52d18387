"""Laws of DLS's reserve and of what its adjustment takes the next v to be (docs/algorithm.md,
section 4).
"""

from __future__ import annotations

import math
import warnings
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import adjustment, methods, ops
from tests.strategies import (
    F32,
    INT,
    NASTY_LAYERS,
    QUICK,
    bits,
    fresh,
    global_counts,
    kept,
    layers_and_k,
    one_step,
)

Layers = list[np.ndarray]
nasty = pytest.mark.parametrize(("v", "k"), NASTY_LAYERS.values(), ids=NASTY_LAYERS.keys())
reserves = st.sampled_from([0.0, 0.25, 1.0, 2.0, 1e6])


def own_in_words(k: list[int], reserve: float) -> list[int]:
    if reserve == 0:
        return k
    return [0, *(max(0, kl - math.ceil(reserve * math.sqrt(kl))) for kl in k[1:])]


def sent_places(v: Layers, sent: methods.Sent) -> list[list[int]]:
    """The places of each layer that leave; none twice."""
    places = [
        sorted(place for each in sent for place in each[layer][0].tolist())
        for layer in range(len(v))
    ]
    assert all(len(set(found)) == len(found) for found in places)
    return places


def check_reserve(v: Layers, k: np.ndarray, reserve: float) -> None:
    before = [bits(layer) for layer in v]
    own = own_in_words(k.tolist(), reserve)
    assert methods.own_k(k, reserve).tolist() == own
    sent = methods.dls_select(v, k, reserve)
    assert len(sent) == (2 if reserve else 1)
    for (index, values), layer, kl in zip(sent[0], v, own, strict=True):
        assert index.tolist() == kept(layer, kl)
        assert bits(values) == bits(layer[index])
    places = sent_places(v, sent)
    assert sum(map(len, places)) == k.sum()
    if reserve:
        check_rest(v, sent, int(k.sum()) - sum(own))
    assert [bits(layer) for layer in v] == before


def check_rest(v: Layers, sent: methods.Sent, room: int) -> None:
    """The reserve brings the largest of what the layers have not chosen, the lower flat place first
    among equals.
    """
    taken = [set(index.tolist()) for index, _ in sent[0]]
    left = [
        (-abs(float(x)), layer, i)
        for layer, own in enumerate(v)
        for i, x in enumerate(own)
        if i not in taken[layer]
    ]
    best = sorted(left)[:room]
    for layer, (index, values) in enumerate(sent[1]):
        assert index.tolist() == sorted(i for _, of, i in best if of == layer)
        assert bits(values) == bits(v[layer][index])


@nasty
@pytest.mark.parametrize("reserve", [0.0, 0.5, 2.0])
def test_nasty_layers(v: Layers, k: list[int], reserve: float) -> None:
    check_reserve(v, np.array(k, dtype=INT), reserve)


@QUICK
@given(layers_and_k(), reserves)
def test_what_leaves_alone_and_what_the_reserve_brings(
    case: tuple[Layers, np.ndarray], reserve: float
) -> None:
    check_reserve(*case, reserve)


@QUICK
@given(layers_and_k(), st.sampled_from([0.25, 1.0, 2.0]))
def test_its_threshold_is_one_of_every_layer_that_has_not_gone_below(
    case: tuple[Layers, np.ndarray], reserve: float
) -> None:
    v, k = case
    own, rest = methods.dls_select(v, k, reserve)
    brought = [abs(float(x)) for _, values in rest for x in values]
    if not brought:
        return
    t = min(brought)
    for layer, (index, values), (more, _) in zip(v, own, rest, strict=True):
        magnitudes, many = np.abs(layer.astype(np.float64)), index.size + more.size
        assert (magnitudes > t).sum() <= many
        if not any(abs(float(x)) < t for x in values):
            assert (magnitudes >= t).sum() >= many


@QUICK
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([0.0, 0.5, 1.0, 2.0, 9.0]))
def test_how_much_of_globals_choice_is_sent(seed: int, count: int, reserve: float) -> None:
    """1 − Σ max(0, own_l − g_l) / K, on layers without equal magnitudes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 300, count)
    flat = (
        rng.permutation(np.arange(1, sizes.sum() + 1)) * rng.choice([-1, 1], sizes.sum())
    ).astype(F32)
    v = np.split(flat, np.cumsum(sizes)[:-1])
    k = methods.split_budget(int(rng.integers(1, sizes.sum() + 1)), sizes.tolist())[
        rng.permutation(count)
    ]
    k = methods.rescale(k, sizes.tolist(), min(int(k.sum()), int(sizes.sum())))
    total, own, best = int(k.sum()), methods.own_k(k, reserve), global_counts(v, int(k.sum()))
    places = sent_places(v, methods.dls_select(v, k, reserve))
    chosen = [set(index.tolist()) for index, _ in methods.global_topk(v, total)]
    hit = sum(len(found & set(mine)) for found, mine in zip(chosen, places, strict=True))
    assert hit == total - np.maximum(own - best, 0).sum()


def test_a_handful_of_values_is_global_topk() -> None:
    rng = np.random.default_rng(0)
    v = [rng.standard_normal(50).astype(F32) for _ in range(4)]
    own, rest = methods.dls_select(v, np.array([4, 4, 3, 1]), 2.0)
    assert not any(index.size for index, _ in own)
    for (index, values), (expected, same) in zip(rest, methods.global_topk(v, 12), strict=True):
        assert index.tolist() == expected.tolist()
        assert bits(values) == bits(same)


@pytest.mark.parametrize("reserve", [1e19, 1e300, 1.7e308])
def test_a_reserve_beyond_all_bounds_is_everything(reserve: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert methods.own_k(np.array([0, 1, 7, 10**12]), reserve).tolist() == [0, 0, 0, 0]


def test_a_guess_beyond_float32_is_its_largest_number() -> None:
    v = [np.array([3e38, -3e38, 1], dtype=F32), np.array([1, 2], dtype=F32)]
    sent = [[(np.array([], dtype=INT), np.array([], dtype=F32))] * 2]
    (guessed, _) = methods.guess_v(v, sent, v, "ahead")
    assert guessed.tolist() == [float(np.finfo(F32).max), -float(np.finfo(F32).max), 2]


def test_the_reserve_grows_more_slowly_than_the_budget() -> None:
    for total in (100, 10_000, 1_000_000):
        k = methods.split_budget(total, [total] * 10)
        reserve = total - int(methods.own_k(k, 2.0).sum())
        assert reserve <= 2 * math.sqrt(10 * total) + 10 + k[0]


def guess_in_words(v: Layers, places: list[list[int]], gradients: Layers, source: str) -> Layers:
    guessed = []
    for layer, gone, gradient in zip(v, places, gradients, strict=True):
        left = np.array([F32(0) if i in gone else x for i, x in enumerate(layer)], dtype=F32)
        guessed.append({"sent": layer, "left": left, "ahead": left + gradient}[source])
    return guessed


@QUICK
@given(layers_and_k(), st.data(), reserves)
def test_the_next_k_is_adjusted_on_the_guessed_v(
    case: tuple[Layers, np.ndarray], data: st.DataObject, reserve: float
) -> None:
    """From the counts that were sent; both properties hold on the guessed v as on any other."""
    v, k = case
    v = [np.clip(layer, -1e30, 1e30) for layer in v]
    gradients = [layer[::-1] / F32(2) for layer in v]
    source = data.draw(st.sampled_from(get_args(methods.Source)))
    sent = methods.dls_select(v, k, reserve)
    places = sent_places(v, sent)
    guessed = guess_in_words(v, places, gradients, source)
    assert [bits(x) for x in methods.guess_v(v, sent, gradients, source)] == [
        bits(x) for x in guessed
    ]
    counts = [len(found) for found in places]
    expected, t = counts, fresh(guessed, counts)
    for steps in range(4):
        method = methods.Dls(steps, 1, source, reserve)
        assert method.next_k(v, k, 1, sent, gradients).tolist() == expected
        before = adjustment.set_size(np.array(t))
        expected, t = one_step(guessed, expected, t)
        assert sum(expected) == k.sum()
        assert adjustment.set_size(np.array(t)) <= before
    best = methods.Dls("optimal", 1, source, reserve).next_k(v, k, 1, sent, gradients)
    assert best.tolist() == global_counts(guessed, int(k.sum()))


def test_between_two_adjustments_k_stays() -> None:
    v = [np.array([3, 1, 2], dtype=F32), np.array([9, 8, 7], dtype=F32)]
    k, method = np.array([2, 1]), methods.Dls(1, 3)
    sent = method.select(v, k)
    assert method.next_k(v, k, 4, sent, v) is k
    assert method.next_k(v, k, 6, sent, v).sum() == 3


def test_more_than_is_left_is_refused() -> None:
    v, heads = (
        np.array([1, 2], dtype=F32),
        [ops.Head(np.array([1]), np.array([2], dtype=F32), 1, 2.0, 2.0)],
    )
    assert ops.top_k_of_rest(v, np.array([0, 2]), heads, 1)[0].tolist() == [0]
    with pytest.raises(ValueError):
        ops.top_k_of_rest(v, np.array([0, 2]), heads, 2)


def modulus(part: float, source: str) -> float:
    """Of the recursion of waiting values q and k, see "Why not without"."""
    k_row = {"sent": [part, 1 - part], "left": [part, 1 - 2 * part]}[source]
    return float(np.abs(np.linalg.eigvals(np.array([[1, -1], k_row]))).max())


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_only_one_guess_damps(part: float) -> None:
    assert modulus(part, "sent") == pytest.approx(1)
    assert modulus(part, "left") == pytest.approx(math.sqrt(1 - part))


def correlations(method: methods.Method) -> np.ndarray:
    """Of a layer's number of sent values with itself 1, 2, … 6 steps later; gradients are drawn
    alike, and nothing is trained.
    """
    rng, sizes, total = np.random.default_rng(1), [4000, 2000, 1000], 60
    offsets = np.cumsum([0, *sizes])
    k, residual, seen = methods.split_budget(total, sizes), np.zeros(sum(sizes), dtype=F32), []
    for step in range(1, 801):
        gradient = rng.standard_normal(sum(sizes)).astype(F32)
        residual += gradient
        v, gradients = np.split(residual, offsets[1:-1]), np.split(gradient, offsets[1:-1])
        sent = method.select(v, k)
        seen.append(np.sum([[index.size for index, _ in each] for each in sent], axis=0))
        k = method.next_k(v, k, step, sent, gradients)
        for each in sent:
            for layer, entries in zip(v, each, strict=True):
                ops.scatter_subtract(layer, *entries)
    series = np.array(seen[100:], dtype=np.float64)
    series -= series.mean(axis=0)
    return np.array(
        [(series[:-lag] * series[lag:]).mean(axis=0) / series.var(axis=0) for lag in range(1, 7)]
    ).mean(axis=1)


def test_counting_what_has_gone_makes_k_swing() -> None:
    """A period of six steps with the optimum, of eight or nine with one adjustment; a reserve of 2
    ends it.
    """
    assert np.abs(correlations(methods.GlobalTopk())).max() < 0.1
    optimum, one = (
        correlations(methods.Dls("optimal", reserve=0)),
        correlations(methods.Dls(1, reserve=0)),
    )
    assert optimum[0] > 0.2
    assert optimum[2] < -0.2
    assert one[0] > 0.4
    assert one[3] < -0.2
    for steps in (1, "optimal"):
        assert np.abs(correlations(methods.Dls(steps, reserve=2))).max() < 0.2
