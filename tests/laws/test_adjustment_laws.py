"""Laws of threshold adjustment: what holds after every step, and where repeated steps end."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import adjustment
from tests.strategies import (
    F32,
    F64,
    INT,
    LARGEST,
    NASTY_LAYERS,
    QUICK,
    SLOW,
    TINY,
    bits,
    fresh,
    global_counts,
    is_threshold,
    kept,
    kept_globally,
    layers_and_k,
    layers_k_and_thresholds,
    magnitudes,
    nth,
    one_step,
    pairs,
    reached_global,
    vector,
)

Layers = list[np.ndarray]

nasty = pytest.mark.parametrize(("v", "k"), NASTY_LAYERS.values(), ids=NASTY_LAYERS.keys())


def counts(k: list[int]) -> np.ndarray:
    return np.array(k, dtype=INT)


def thresholds(t: list[float]) -> np.ndarray:
    return np.array(t, dtype=F64)


# ------------------------------------------------------------ fresh thresholds


def check_fresh(v: Layers, k: np.ndarray) -> None:
    v_before, k_before = [bits(part) for part in v], k.tolist()
    t = adjustment.fresh_thresholds(v, k)
    assert t.dtype == F64 and t.shape == (len(v),)
    assert t.tolist() == fresh(v, k.tolist())
    for part, c, threshold in zip(v, k.tolist(), t.tolist(), strict=True):
        assert is_threshold(part, c, threshold)
    assert [bits(part) for part in v] == v_before and k.tolist() == k_before


@nasty
def test_fresh_thresholds_of_nasty_layers(v: Layers, k: list[int]) -> None:
    check_fresh(v, counts(k))


@QUICK
@given(layers_and_k())
def test_fresh_thresholds(case: tuple[Layers, np.ndarray]) -> None:
    check_fresh(*case)


def test_fresh_threshold_takes_the_lower_median() -> None:
    """Four layers in between with 2, 4, 6, 8: the lower median is 4."""
    v = [vector([x, 0.5]) for x in (8, 2, 6, 4)] + [
        vector([1, 3]),
        vector([9, 7]),
        vector([3, 5, 6]),
    ]
    t = adjustment.fresh_thresholds(v, counts([1, 1, 1, 1, 0, 2, 0]))
    assert t.tolist() == [8, 2, 6, 4, max(3, 4), min(7, 4), max(6, 4)]
    t = adjustment.fresh_thresholds(v, counts([1, 1, 1, 1, 2, 0, 3]))
    assert t.tolist() == [8, 2, 6, 4, min(1, 4), max(9, 4), min(3, 4)]


def test_fresh_threshold_takes_the_middle_of_three() -> None:
    v = [vector([x, 0.5]) for x in (8, 2, 6)] + [vector([1]), vector([7])]
    assert adjustment.fresh_thresholds(v, counts([1, 1, 1, 0, 1])).tolist() == [8, 2, 6, 6, 6]


def test_fresh_thresholds_with_no_layer_in_between() -> None:
    v = [vector([1, -3]), vector([-7, 5]), vector([2])]
    assert adjustment.fresh_thresholds(v, counts([0, 2, 0])).tolist() == [3, 5, 2]
    assert adjustment.fresh_thresholds(v, counts([2, 0, 1])).tolist() == [1, 7, 2]


def test_set_size() -> None:
    assert adjustment.set_size(thresholds([3.0])) == 0.0
    assert adjustment.set_size(thresholds([3.0, 1.0, 2.5])) == 2.0
    got = adjustment.set_size(thresholds([0.0, 5e-324]))
    assert isinstance(got, float) and got == 5e-324


# --------------------------------------------------------------------- one step


def check_step(v: Layers, k: np.ndarray, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One step: it equals its definition, and every law holds."""
    v_before, k_before, t_before = [bits(part) for part in v], k.tolist(), t.tolist()
    k_new, t_new = adjustment.one_step_adjustment(v, k, t)
    assert k_new.dtype == INT and k_new.shape == k.shape
    assert t_new.dtype == F64 and t_new.shape == t.shape

    # the arguments stay as they are, and the results are new arrays
    assert [bits(part) for part in v] == v_before
    assert k.tolist() == k_before and t.tolist() == t_before
    assert not np.shares_memory(k_new, k) and not np.shares_memory(t_new, t)

    # the budget, the bounds, the thresholds
    assert k_new.sum() == sum(k_before)
    for part, c, threshold in zip(v, k_new.tolist(), t_new.tolist(), strict=True):
        assert 0 <= c <= len(part)
        assert is_threshold(part, c, threshold)

    # Property 2, pair by pair; whoever is in no pair rests
    paired = pairs(v, k_before, t_before)
    for lo, hi in paired:
        t1, t2 = t_before[lo], t_before[hi]
        assert t1 <= t_new[lo] <= t2 and t1 <= t_new[hi] <= t2
        mid = (t1 + t2) / 2
        if t1 < mid < t2:
            rounding = Fraction(float(np.spacing(mid))) / 2
            gap = abs(Fraction(float(t_new[lo])) - Fraction(float(t_new[hi])))
            assert gap <= (Fraction(t2) - Fraction(t1)) / 2 + rounding
        else:
            assert (t_new[lo], t_new[hi]) == (t1, t2)
            assert (k_new[lo], k_new[hi]) == (k_before[lo], k_before[hi])
    for rests in set(range(len(v))) - {layer for pair in paired for layer in pair}:
        assert (k_new[rests], t_new[rests]) == (k_before[rests], t_before[rests])

    # Property 1
    assert max(t_new) - min(t_new) <= max(t_before) - min(t_before)
    assert adjustment.set_size(t_new) <= adjustment.set_size(t)

    assert (k_new.tolist(), t_new.tolist()) == one_step(v, k_before, t_before)
    return k_new, t_new


@nasty
def test_sixty_steps_on_nasty_layers(v: Layers, k: list[int]) -> None:
    counts_now, t = counts(k), thresholds(fresh(v, k))
    for _ in range(60):
        counts_now, t = check_step(v, counts_now, t)


@QUICK
@given(layers_and_k())
def test_steps_from_fresh_thresholds(case: tuple[Layers, np.ndarray]) -> None:
    v, k = case
    t = thresholds(fresh(v, k.tolist()))
    for _ in range(6):
        k, t = check_step(v, k, t)


@QUICK
@given(layers_k_and_thresholds())
def test_steps_from_any_thresholds(case: tuple[Layers, np.ndarray, np.ndarray]) -> None:
    v, k, t = case
    for _ in range(3):
        k, t = check_step(v, k, t)


@pytest.mark.parametrize("number", [1, 2, 3, 8, 9, 40, 41])
def test_steps_on_many_gaussian_layers(number: int) -> None:
    rng = np.random.default_rng(number)
    v = [
        (rng.standard_normal(rng.integers(1, 60)) * 10 ** rng.uniform(-3, 3)).astype(F32)
        for _ in range(number)
    ]
    k = counts([int(rng.integers(0, len(part) + 1)) for part in v])
    t = thresholds(fresh(v, k.tolist()))
    for _ in range(20):
        k, t = check_step(v, k, t)


def test_one_step_by_hand() -> None:
    """lo gives up 1 and 2, which lie below the middle; hi takes up 7 and 6."""
    v = [vector([1, 2, 9]), vector([8, 7, 6, 5])]
    k, t = check_step(v, counts([3, 1]), thresholds([1, 8]))
    assert (k.tolist(), t.tolist()) == ([1, 3], [4.5, 6])


def test_one_step_by_hand_where_lo_has_more_to_give() -> None:
    """hi lacks only one value, so lo gives up one."""
    v = [vector([1, 2, 3]), vector([8, 7, 0])]
    k, t = check_step(v, counts([3, 1]), thresholds([1, 8]))
    assert (k.tolist(), t.tolist()) == ([2, 2], [2, 4.5])


def test_thresholds_are_not_rounded_to_float32() -> None:
    """t2 lies just above 1; rounded to 1, lo would seem to have nothing to give."""
    v = [vector([1, 1]), vector([1, 0.125])]
    t2 = float(np.nextafter(1.0, 2.0))
    k, t = check_step(v, counts([2, 0]), thresholds([0.5, t2]))
    assert (k.tolist(), t.tolist()) == ([1, 1], [1, (0.5 + t2) / 2])


def test_the_middle_is_not_rounded_to_float32() -> None:
    """mid lies just above 1: values of 1 in lo are below it."""
    v = [vector([1, 1]), vector([2, 1.5, 1.5])]
    t2 = 1.5 + 2**-40
    k, t = check_step(v, counts([2, 1]), thresholds([0.5 + 2**-40, t2]))
    assert (k.tolist(), t.tolist()) == ([0, 3], [1 + 2**-40, 1.5])


def test_the_middle_of_three_rests() -> None:
    v = [vector([5, 4]), vector([1, 2]), vector([9, 8])]
    k, t = check_step(v, counts([1, 2, 1]), thresholds([5, 1, 9]))
    assert (k.tolist(), t.tolist()) == ([1, 1, 2], [5, 2, 5])


def test_among_equal_thresholds_full_layers_come_first_and_empty_ones_last() -> None:
    """The full layer is the lowest of 1, 1, 1, 4 and the empty one the highest of 0, 1, 1, 1."""
    full, inner, empty, top = vector([2, 2]), vector([1, 0.5]), vector([1, 1]), vector([4, 3, 3])
    k, t = check_step([empty, inner, full, top], counts([0, 1, 2, 1]), thresholds([1, 1, 1, 4]))
    assert (k.tolist(), t.tolist()) == ([0, 1, 0, 3], [1, 1, 2.5, 3])
    k, t = check_step([full, inner, empty, top], counts([2, 1, 0, 1]), thresholds([1, 1, 1, 4]))
    assert (k.tolist(), t.tolist()) == ([0, 1, 0, 3], [2.5, 1, 1, 3])
    low = vector([0.25, 0.125])
    k, _ = check_step([empty, low, full, inner], counts([0, 2, 2, 1]), thresholds([1, 0, 1, 1]))
    assert k.tolist() == [2, 0, 2, 1]


def test_equal_thresholds_stay() -> None:
    v = [vector([1, 1, 1]), vector([1, 1])]
    k, t = check_step(v, counts([1, 2]), thresholds([1, 1]))
    assert (k.tolist(), t.tolist()) == ([1, 2], [1, 1])


def test_neighbouring_thresholds_stay() -> None:
    above = float(np.nextafter(1.0, 2.0))
    k, t = check_step([vector([1]), vector([1])], counts([1, 0]), thresholds([1, above]))
    assert (k.tolist(), t.tolist()) == ([1, 0], [1, above])


def test_largest_floats_do_not_overflow() -> None:
    v = [vector([LARGEST, LARGEST / 2]), vector([LARGEST, -LARGEST]), vector([TINY, 0])]
    k, t = counts([0, 1, 2]), thresholds(fresh(v, [0, 1, 2]))
    for _ in range(20):
        k, t = check_step(v, k, t)
        assert np.isfinite(t).all()


# ---------------------------------------------------------- where steps end


def check_global(v: Layers, k: np.ndarray) -> None:
    """Once nothing outside exceeds anything inside, the selection is the global one."""
    budget = int(k.sum())
    everything = sorted((x for part in v for x in magnitudes(part)), reverse=True)
    selected = [
        abs(float(part[i])) for part, c in zip(v, k.tolist(), strict=True) for i in kept(part, c)
    ]
    assert sorted(selected, reverse=True) == everything[:budget]
    if nth(everything, budget) > nth(everything, budget + 1):
        assert k.tolist() == global_counts(v, budget)


def run_to_global(v: Layers, k: np.ndarray, t: np.ndarray, cap: int = 2000) -> np.ndarray:
    budget = k.sum()
    for _ in range(cap):
        if reached_global(v, k.tolist()):
            check_global(v, k)
            return k
        k, t = adjustment.one_step_adjustment(v, k, t)
        assert k.sum() == budget
    pytest.fail(f"no global selection after {cap} steps: k {k.tolist()}, t {t.tolist()}")


def run_until_thresholds_meet(v: Layers, k: np.ndarray, t: np.ndarray) -> np.ndarray:
    """1250 halvings lead from the largest float32 to the smallest float64.

    A halving takes one step with two layers; small nasty cases of five took 7, of six 12.
    """
    budget, size = k.sum(), t.max() - t.min()
    for _ in range(1250 * len(v) ** 2):
        if size <= np.spacing(t.max()):
            break
        k, t = adjustment.one_step_adjustment(v, k, t)
        assert t.max() - t.min() <= size
        size = t.max() - t.min()
    assert size <= np.spacing(t.max()), f"set size {size} stays"
    assert k.sum() == budget
    for part, c, threshold in zip(v, k.tolist(), t.tolist(), strict=True):
        assert is_threshold(part, c, threshold)
    assert reached_global(v, k.tolist())
    check_global(v, k)
    return k


@nasty
def test_nasty_layers_reach_the_global_selection(v: Layers, k: list[int]) -> None:
    run_to_global(v, counts(k), thresholds(fresh(v, k)))


@QUICK
@given(layers_and_k())
def test_repeated_steps_reach_the_global_selection(case: tuple[Layers, np.ndarray]) -> None:
    v, k = case
    run_to_global(v, k, thresholds(fresh(v, k.tolist())))


@QUICK
@given(layers_k_and_thresholds())
def test_the_global_selection_is_reached_from_any_thresholds(
    case: tuple[Layers, np.ndarray, np.ndarray],
) -> None:
    run_to_global(*case)


@nasty
def test_thresholds_of_nasty_layers_meet(v: Layers, k: list[int]) -> None:
    run_until_thresholds_meet(v, counts(k), thresholds(fresh(v, k)))


@SLOW
@given(layers_k_and_thresholds())
def test_repeated_steps_drive_the_set_size_to_one_spacing(
    case: tuple[Layers, np.ndarray, np.ndarray],
) -> None:
    run_until_thresholds_meet(*case)


def test_thresholds_meet_where_zeros_make_it_slow() -> None:
    """The one value wanders between layers of zeros; 6.5 steps a halving."""
    v = [vector([1]), vector([0, 0]), vector([0]), vector([0]), vector([0])]
    k = run_until_thresholds_meet(v, counts([0, 2, 0, 0, 0]), thresholds([1, 0, 0, 0, 1]))
    assert k[0] == 1


def test_the_iteration_may_pass_through_the_optimum_but_ends_there() -> None:
    """lo may give 3 away for 2.9 while the thresholds are apart; at the end it has it back."""
    v = [vector([10, 3, 0]), vector([20, 2.9])]
    k = run_until_thresholds_meet(v, counts([2, 1]), thresholds([1, 20]))
    assert k.tolist() == [2, 1]


def test_ties_at_the_global_threshold() -> None:
    v, k = [vector([1, 1, 1]), vector([5, 5, 5, 1, 1, 1])], counts([1, 3])
    t = thresholds(fresh(v, [1, 3]))
    for _ in range(100):
        k, t = check_step(v, k, t)
        assert k.sum() == 4
        assert reached_global(v, k.tolist())
        check_global(v, k)
    assert adjustment.optimal_adjustment(v, counts([1, 3])).tolist() == [1, 3]
    assert adjustment.optimal_adjustment(v, counts([0, 4])).tolist() == [1, 3]


def test_layers_that_send_nothing_and_a_needy_one() -> None:
    v, start = NASTY_LAYERS["needy layer last"]
    assert start == [0, 0, 10, 5]
    assert run_to_global(v, counts(start), thresholds(fresh(v, start))).tolist() == [0, 0, 0, 15]
    assert adjustment.optimal_adjustment(v, counts(start)).tolist() == [0, 0, 0, 15]


def test_layers_with_nothing_get_back_what_they_need() -> None:
    v = [vector([9, 8, 7, 6]), vector([5, 4, 3, 2, 1]), vector([0.5, 0.25])]
    k = run_to_global(v, counts([0, 3, 1]), thresholds(fresh(v, [0, 3, 1])))
    assert k.tolist() == [4, 0, 0]


# ------------------------------------------------------------------- the limit


def check_optimal(v: Layers, k: np.ndarray) -> None:
    v_before, k_before = [bits(part) for part in v], k.tolist()
    best = adjustment.optimal_adjustment(v, k)
    assert best.dtype == INT and best.shape == k.shape
    assert not np.shares_memory(best, k)
    assert [bits(part) for part in v] == v_before and k.tolist() == k_before
    assert best.tolist() == global_counts(v, sum(k_before))
    assert reached_global(v, best.tolist())
    assert adjustment.optimal_adjustment(v, best).tolist() == best.tolist()
    for part, c, indices in zip(v, best.tolist(), kept_globally(v, sum(k_before)), strict=True):
        assert kept(part, c) == indices


@nasty
def test_optimal_adjustment_of_nasty_layers(v: Layers, k: list[int]) -> None:
    check_optimal(v, counts(k))


@QUICK
@given(layers_and_k())
def test_optimal_adjustment_counts_the_global_selection(case: tuple[Layers, np.ndarray]) -> None:
    check_optimal(*case)


@QUICK
@given(layers_and_k(), st.randoms(use_true_random=False))
def test_optimal_adjustment_depends_on_the_budget_alone(
    case: tuple[Layers, np.ndarray], random
) -> None:
    v, k = case
    places = [layer for layer, part in enumerate(v) for _ in part]
    chosen = random.sample(places, int(k.sum()))
    other = counts([chosen.count(layer) for layer in range(len(v))])
    assert adjustment.optimal_adjustment(v, k).tolist() == (
        adjustment.optimal_adjustment(v, other).tolist()
    )
