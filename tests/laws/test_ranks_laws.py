"""Laws of a change of ranks: the mean over the ranks stays, the budget stays, and copies are
copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import ranks
from reference.ranks import State
from tests.strategies import QUICK

CHANGES = [(1, 3), (2, 4), (3, 2), (4, 1), (3, 3), (5, 7), (2, 3), (4, 3)]


def changed(states: Sequence[State], new: int) -> list[State]:
    shares = [ranks.shares(len(states), new, rank) for rank in range(new)]
    return [ranks.merge((share, states[p]) for p, share in own.items()) for own in shares]


def exact_mean(arrays: Sequence[np.ndarray]) -> list[Fraction]:
    return [
        sum(map(Fraction, column), Fraction(0)) / len(arrays)
        for column in np.stack(arrays).T.tolist()
    ]


def check_mean_stays(old: Sequence[np.ndarray], new: Sequence[np.ndarray]) -> None:
    """Each new value is rounded once: by half a unit in its last place, 2⁻²⁴ of it, or half the
    least subnormal, 2⁻¹⁵⁰.
    """
    bounds = [
        sum(max(abs(Fraction(x)) / 2**24, Fraction(1, 2**150)) for x in column)
        for column in np.stack(new).T.tolist()
    ]
    slack = 1 + Fraction(1, 2**20)  # the sums of float64 on the way
    for before, after, bound in zip(exact_mean(old), exact_mean(new), bounds, strict=True):
        assert abs(before - after) <= slack * bound / len(new)


@pytest.mark.parametrize(("old", "new"), CHANGES)
def test_shares_are_the_common_part_of_two_divisions(old: int, new: int) -> None:
    everything = [ranks.shares(old, new, rank) for rank in range(new)]
    assert all(sum(own.values()) == old and min(own.values()) > 0 for own in everything)
    assert [sum(own.get(p, 0) for own in everything) for p in range(old)] == [new] * old


@QUICK
@given(
    st.integers(1, 6), st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 2**32)
)
def test_the_mean_stays_through_any_number_of_changes(
    first: int, changes: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal((first, 7)) * 10.0 ** rng.integers(-44, 37, (first, 7))).astype(
        np.float32
    )
    states: list[State] = [{"residual": value} for value in values]
    for new in changes:
        before, states = states, changed(states, new)
        assert all(state["residual"].dtype == np.float32 for state in states)
        check_mean_stays(
            [state["residual"] for state in before], [state["residual"] for state in states]
        )


@QUICK
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 30), st.integers(0, 2**32))
def test_every_new_rank_has_the_whole_budget_and_no_more_than_a_layer_holds(
    old: int, new: int, budget: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sizes = np.array([1, 3, 4, 9, 13])
    states = [{"k": rng.multivariate_hypergeometric(sizes, budget)} for _ in range(old)]
    for state in changed(states, new):
        assert state["k"].dtype == np.int64
        assert state["k"].sum() == budget
        assert (state["k"] >= 0).all() and (state["k"] <= sizes).all()


@pytest.mark.parametrize(("old", "new"), [(1, 3), (2, 4), (3, 3)])
def test_more_ranks_by_a_whole_number_are_copies_to_the_bit(old: int, new: int) -> None:
    odd = np.array([-0.0, 0.0, 1e-45, -1e-45, 3.4e38, 1 / 3], dtype=np.float32)
    states = [
        {
            "residual": np.roll(odd, p),
            "k": np.array([p, 9 - p]),
            "thresholds": np.array([0.1, 1 / 3]),
        }
        for p in range(old)
    ]
    for rank, state in enumerate(changed(states, new)):
        source = states[rank * old // new]
        assert all(state[name].tobytes() == source[name].tobytes() for name in source)


def test_three_become_two_as_documented() -> None:
    states = [{"residual": np.array([x], dtype=np.float32)} for x in (3, 6, 30)]
    assert [state["residual"].tolist() for state in changed(states, 2)] == [[4.0], [22.0]]
