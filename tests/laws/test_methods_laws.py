"""Laws of the methods over all layers: budget, split, Global, Layer-wise and DLS selection."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dls.exchange.methods import load
from reference import adjustment, methods
from tests.strategies import (
    F32,
    INT,
    NASTY_LAYERS,
    QUICK,
    bits,
    fresh,
    global_counts,
    kept,
    kept_globally,
    largest_remainder,
    layers_and_k,
    one_step,
    vector,
)

Layers = list[np.ndarray]
Selection = list[tuple[np.ndarray, np.ndarray]]

nasty = pytest.mark.parametrize(("v", "k"), NASTY_LAYERS.values(), ids=NASTY_LAYERS.keys())


def counts(k: list[int]) -> np.ndarray:
    return np.array(k, dtype=INT)


# ------------------------------------------------------------------ the budget


@pytest.mark.parametrize(
    ("n", "density", "expected"),
    [
        (5, 0.5, 2),
        (7, 0.5, 4),
        (3, 0.5, 2),
        (10, 0.25, 2),
        (14, 0.25, 4),
        (6, 0.25, 2),
        (11, 0.25, 3),
        (1, 1.0, 1),
        (1, 0.75, 1),
        (1000, 0.001, 1),
        (2**40 + 1, 1.0, 2**40 + 1),
        (2**40 + 1, 0.5, 2**39),
        (2**40 + 3, 0.5, 2**39 + 2),
    ],
)
def test_budget_rounds_half_to_even(n: int, density: float, expected: int) -> None:
    budget = methods.budget(n, density)
    assert isinstance(budget, int)
    assert budget == expected


@QUICK
@given(st.integers(1, 2**40), st.floats(0, 1, exclude_min=True))
def test_budget_is_the_nearest_whole_number(n: int, density: float) -> None:
    exact = Fraction(density) * n
    if exact <= Fraction(499, 1000):
        with pytest.raises(ValueError):
            methods.budget(n, density)
    elif exact >= Fraction(501, 1000):
        budget = methods.budget(n, density)
        assert 1 <= budget <= n
        assert abs(budget - exact) <= Fraction(501, 1000)


@pytest.mark.parametrize(
    ("n", "density"),
    [(1, 0.5), (10, 0.05), (10, 0.04), (1000, 1e-9), (2, 0.25), (10**6, 1e-300), (5, 5e-324)],
)
def test_a_budget_below_one_is_refused(n: int, density: float) -> None:
    with pytest.raises(ValueError):
        methods.budget(n, density)


@pytest.mark.parametrize(
    "density", [0.0, -0.0, -0.1, -1.0, math.nextafter(1, 2), 1.5, math.inf, -math.inf, math.nan]
)
def test_a_density_outside_its_range_is_refused(density: float) -> None:
    with pytest.raises(ValueError):
        methods.budget(1000, density)


# ------------------------------------------------------------- the even split


def check_split(budget: int, sizes: list[int]) -> None:
    given_sizes = counts(sizes)
    k = methods.split_budget(budget, given_sizes)
    assert k.dtype == INT and k.shape == (len(sizes),)
    assert given_sizes.tolist() == sizes
    n = sum(sizes)
    assert sum(k.tolist()) == budget
    for c, size in zip(k.tolist(), sizes, strict=True):
        assert 0 <= c <= size
        assert abs(c - Fraction(budget * size, n)) < 1
    assert k.tolist() == largest_remainder(budget, sizes)
    assert methods.split_budget(budget, sizes).tolist() == k.tolist()


@QUICK
@given(st.data())
def test_split_is_by_largest_remainder(data: st.DataObject) -> None:
    size = st.one_of(st.integers(1, 5), st.integers(1, 1000), st.integers(1, 2**59))
    sizes = data.draw(st.lists(size, min_size=1, max_size=12))
    check_split(data.draw(st.integers(1, sum(sizes))), sizes)


@pytest.mark.parametrize(
    ("budget", "sizes", "expected"),
    [
        (1, [3, 3, 3], [1, 0, 0]),
        (2, [3, 3, 3], [1, 1, 0]),
        (4, [3, 3, 3], [2, 1, 1]),
        (3, [1, 2, 3], [1, 1, 1]),
        (1, [1, 10, 1], [0, 1, 0]),
        (1, [1, 1], [1, 0]),
        (5, [7], [5]),
        (5, [1, 2, 2, 1], [1, 2, 1, 1]),
        (3, [2**40, 2**40], [2, 1]),
        (2**40 + 1, [2**40, 2**40], [2**39 + 1, 2**39]),
        (2**40, [2**40, 2**40 + 1, 2**40 - 1], None),
        (2**41, [2**40 + 1, 3, 2**40 - 1, 1, 2**40], None),
        (2**53 + 1, [2**53, 2**53 + 2, 1, 1], None),
        (3 * 2**60, [2**60, 2**60, 2**60], [2**60, 2**60, 2**60]),
        ((2**59 + 2**58 + 8) // 3, [2**59, 2**58 + 1, 7], None),
        (2**58 + 12345, [3 * 2**57 + 1, 2**59 - 1, 5], None),
    ],
)
def test_split_by_hand(budget: int, sizes: list[int], expected: list[int] | None) -> None:
    if expected is not None:
        assert methods.split_budget(budget, counts(sizes)).tolist() == expected
    check_split(budget, sizes)


@pytest.mark.parametrize("sizes", [[1], [3, 1, 2], [2**40, 1, 2**40 + 7]])
def test_the_whole_budget_gives_the_sizes(sizes: list[int]) -> None:
    assert methods.split_budget(sum(sizes), counts(sizes)).tolist() == sizes


# ------------------------------------------------------------------- selection


def check_selection(selection: Selection, v: Layers, expected: list[list[int]]) -> None:
    assert len(selection) == len(v)
    for (index, values), part, indices in zip(selection, v, expected, strict=True):
        assert index.dtype == INT and values.dtype == F32
        assert index.tolist() == indices
        assert bits(values) == bits(part[indices])


@nasty
def test_global_selection_of_nasty_layers(v: Layers, k: list[int]) -> None:
    before = [bits(part) for part in v]
    for budget in range(1, sum(len(part) for part in v) + 1):
        check_selection(methods.global_topk(v, budget), v, kept_globally(v, budget))
    assert [bits(part) for part in v] == before


@QUICK
@given(layers_and_k())
def test_global_selection_is_one_selection_over_the_flat_buffer(
    case: tuple[Layers, np.ndarray],
) -> None:
    v, k = case
    budget = max(1, int(k.sum()))
    check_selection(methods.global_topk(v, budget), v, kept_globally(v, budget))


def test_global_selection_takes_the_lower_flat_index_among_equals() -> None:
    v = [vector([0, 1, -1]), vector([2, 1]), vector([1, -2])]
    selection = methods.global_topk(v, 4)
    assert [index.tolist() for index, _ in selection] == [[1, 2], [0], [1]]
    assert [values.tolist() for _, values in selection] == [[1, -1], [2], [-2]]


@nasty
def test_layerwise_selection_of_nasty_layers(v: Layers, k: list[int]) -> None:
    expected = [kept(part, c) for part, c in zip(v, k, strict=True)]
    check_selection(methods.layerwise_topk(v, counts(k)), v, expected)


@QUICK
@given(layers_and_k())
def test_layerwise_selection_is_one_selection_a_layer(case: tuple[Layers, np.ndarray]) -> None:
    v, k = case
    before, k_before = [bits(part) for part in v], k.tolist()
    expected = [kept(part, c) for part, c in zip(v, k_before, strict=True)]
    check_selection(methods.layerwise_topk(v, k), v, expected)
    assert [bits(part) for part in v] == before and k.tolist() == k_before


@QUICK
@given(layers_and_k())
def test_layerwise_selection_with_the_optimal_k_is_the_global_selection(
    case: tuple[Layers, np.ndarray],
) -> None:
    v, k = case
    best = counts(global_counts(v, int(k.sum())))
    check_selection(methods.layerwise_topk(v, best), v, kept_globally(v, int(k.sum())))


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("layer", [0, 1])
def test_non_finite_layers_are_refused(poison: float, layer: int) -> None:
    v = [vector([1, 2]), vector([3, 4, 5])]
    v[layer][1] = poison
    with pytest.raises(ValueError):
        methods.global_topk(v, 2)
    with pytest.raises(ValueError):
        methods.layerwise_topk(v, counts([0, 3]))
    with pytest.raises(ValueError):
        methods.layerwise_topk(v, counts([2, 0]))


# ---------------------------------------------------------- one budget for all


def uploaded(selection: Selection) -> int:
    return sum(len(index) for index, _ in selection)


@QUICK
@given(layers_and_k(), st.floats(0.01, 1))
def test_all_methods_upload_exactly_the_budget(
    case: tuple[Layers, np.ndarray], density: float
) -> None:
    v, _ = case
    sizes = [len(part) for part in v]
    if density * sum(sizes) < 0.75:
        density = 1.0
    budget = methods.budget(sum(sizes), density)
    assert uploaded(methods.global_topk(v, budget)) == budget
    k = methods.split_budget(budget, counts(sizes))
    assert uploaded(methods.layerwise_topk(v, k)) == budget
    for steps in (0, 1, 2, 7, "optimal"):
        adjusted = methods.dls_next_k(v, k, steps)
        assert uploaded(methods.layerwise_topk(v, adjusted)) == budget


@nasty
def test_density_one_keeps_everything(v: Layers, k: list[int]) -> None:
    sizes = [len(part) for part in v]
    budget = methods.budget(sum(sizes), 1.0)
    whole = methods.split_budget(budget, counts(sizes))
    assert whole.tolist() == sizes
    everything = [list(range(size)) for size in sizes]
    check_selection(methods.global_topk(v, budget), v, everything)
    check_selection(methods.layerwise_topk(v, whole), v, everything)
    for steps in (0, 1, 5, "optimal"):
        assert methods.dls_next_k(v, whole, steps).tolist() == sizes


# ------------------------------------------------------------------------- DLS


def check_dls(v: Layers, k: np.ndarray) -> None:
    v_before, k_before = [bits(part) for part in v], k.tolist()
    expected, t = k_before, fresh(v, k_before)
    for steps in range(6):
        got = methods.dls_next_k(v, k, steps)
        assert got.dtype == INT
        assert got.tolist() == expected
        expected, t = one_step(v, expected, t)
    best = methods.dls_next_k(v, k, "optimal")
    assert best.dtype == INT
    assert best.tolist() == global_counts(v, sum(k_before))
    assert best.tolist() == adjustment.optimal_adjustment(v, k).tolist()
    assert [bits(part) for part in v] == v_before and k.tolist() == k_before


@nasty
def test_dls_on_nasty_layers(v: Layers, k: list[int]) -> None:
    check_dls(v, counts(k))


@QUICK
@given(layers_and_k())
def test_dls_is_fresh_thresholds_and_then_its_steps(case: tuple[Layers, np.ndarray]) -> None:
    check_dls(*case)


def test_no_steps_is_layerwise_topk() -> None:
    v, k = [vector([1, 2, 3]), vector([10, 20, 30])], counts([3, 0])
    assert methods.dls_next_k(v, k, 0).tolist() == [3, 0]
    assert methods.dls_next_k(v, k, "optimal").tolist() == [0, 3]


def test_one_step_a_time_comes_near_the_optimum_on_gaussian_layers() -> None:
    """DLS(1) on a frozen v: never further off than its start, in the median within 2 % of K."""
    rng = np.random.default_rng(20230601)
    shares = []
    for _ in range(20):
        sizes = rng.integers(200, 3000, int(rng.integers(2, 9)))
        scales = 10 ** rng.uniform(-1.5, 1.5, len(sizes))
        v = [
            (rng.standard_normal(size) * scale).astype(F32)
            for size, scale in zip(sizes, scales, strict=True)
        ]
        budget = methods.budget(int(sizes.sum()), float(rng.choice([0.01, 0.05, 0.2])))
        best = methods.dls_next_k(v, methods.split_budget(budget, sizes), "optimal")
        k = methods.split_budget(budget, sizes)
        start = np.abs(k - best).sum() / 2
        for _ in range(40):
            k = methods.dls_next_k(v, k, 1)
        away = np.abs(k - best).sum() / 2
        assert away <= start
        shares.append(away / budget)
    assert np.median(shares) <= 0.02


# --- methods of one's own -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "words"),
    [
        ([4, 3, 2], "9 in sum, with a budget of 10"),
        ([4, 3], "not a whole number from 0 to the size of each part"),
        ([4.0, 3.0, 3.0], "not a whole number"),
        ([11, -1, 0], "not a whole number"),
        ([0, 0, 10], "not a whole number"),
        (None, "not a whole number"),
    ],
)
def test_a_k_that_breaks_the_budget_is_refused(k: object, words: str) -> None:
    method = object.__new__(load("layerwise-topk"))
    method.sizes = [20, 10, 5]
    assert method.checked(np.array([7, 3, 0]), 10).tolist() == [7, 3, 0]
    with pytest.raises(ValueError, match=words):
        method.checked(k, 10)
