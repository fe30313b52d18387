"""Laws of the primitives on one layer: selection, conservation, exact thresholds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import ops
from tests.strategies import (
    ABOVE_ONE,
    F32,
    F64,
    FAR,
    INT,
    LARGEST,
    LARGEST_SUBNORMAL,
    NASTY_VECTORS,
    QUICK,
    TINY,
    bits,
    count,
    kept,
    magnitudes,
    nth,
    vector,
    vector_and_k,
    vectors,
)

nasty = pytest.mark.parametrize("v", NASTY_VECTORS.values(), ids=NASTY_VECTORS.keys())


# ------------------------------------------------------------------ top_k


def check_top_k(v: np.ndarray, k: int) -> None:
    before = bits(v)
    index, values = ops.top_k(v, k)
    assert index.dtype == INT and index.shape == (k,)
    assert values.dtype == F32 and values.shape == (k,)
    assert index.tolist() == kept(v, k)
    assert bits(values) == [before[i] for i in index.tolist()]
    assert bits(v) == before


@nasty
def test_top_k_at_every_k(v: np.ndarray) -> None:
    for k in range(len(v) + 1):
        check_top_k(v, k)


@QUICK
@given(vector_and_k())
def test_top_k_is_the_sorted_selection(case: tuple[np.ndarray, int]) -> None:
    check_top_k(*case)


@pytest.mark.parametrize("levels", [1, 2, 7, 1000])
def test_top_k_of_long_vectors_with_ties(levels: int) -> None:
    rng = np.random.default_rng(levels)
    v = (rng.integers(-levels, levels + 1, 3000)).astype(F32)
    for k in (0, 1, 2, 30, 1500, 2999, 3000):
        check_top_k(v, k)


def test_lower_index_first_among_equals() -> None:
    index, values = ops.top_k(vector([1, -2, 2, -1, 2, 1]), 4)
    assert index.tolist() == [0, 1, 2, 4]
    assert values.tolist() == [1, -2, 2, 2]


def test_zeros_of_both_signs_are_equal_and_keep_their_sign() -> None:
    index, values = ops.top_k(vector([-0.0, 0.0, -0.0, 0.0]), 3)
    assert index.tolist() == [0, 1, 2]
    assert bits(values) == bits(vector([-0.0, 0.0, -0.0]))


def test_subnormals_are_not_zeros() -> None:
    index, _ = ops.top_k(vector([0, 0, TINY, -2 * TINY]), 2)
    assert index.tolist() == [2, 3]


@QUICK
@given(vector_and_k())
def test_selection_is_idempotent(case: tuple[np.ndarray, int]) -> None:
    v, k = case
    index, values = ops.top_k(v, k)
    again = np.zeros_like(v)
    again[index] = values
    kept_magnitudes = magnitudes(values)
    _, values_again = ops.top_k(again, k)
    assert magnitudes(values_again) == kept_magnitudes


@nasty
def test_top_k_reads_only(v: np.ndarray) -> None:
    frozen = v.copy()
    frozen.flags.writeable = False
    for k in (0, len(v) // 2, len(v)):
        assert ops.top_k(frozen, k)[0].tolist() == kept(v, k)
    assert ops.all_finite(frozen)
    assert ops.count_at_least(frozen, 1.0) == count(v, 1.0)
    assert ops.kth_largest(frozen, 1) == magnitudes(v)[0]


@nasty
def test_selected_values_survive_what_happens_to_the_residual(v: np.ndarray) -> None:
    """A message under way must not change when its layer is cleared, not even at k = n."""
    for k in range(len(v) + 1):
        residual = v.copy()
        index, values = ops.top_k(residual, k)
        sent = bits(values)
        ops.scatter_subtract(residual, index, values)
        residual += 1
        assert bits(values) == sent


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("position", [0, 2, 4])
def test_non_finite_is_refused_for_any_k(bad: float, position: int) -> None:
    v = vector([1, -2, 0, 3, -0.0])
    assert ops.all_finite(v)
    v[position] = bad
    assert not ops.all_finite(v)
    for k in range(len(v) + 1):
        with pytest.raises(ops.NonFiniteError):
            ops.top_k(v, k)
    assert issubclass(ops.NonFiniteError, ValueError)


def test_the_largest_float_is_finite() -> None:
    """A sum of squares would overflow here."""
    v = vector([LARGEST, -LARGEST, LARGEST])
    assert ops.all_finite(v)
    assert ops.top_k(v, 2)[0].tolist() == [0, 1]


@pytest.mark.parametrize("k", [-1, -3, 4, 100])
def test_k_out_of_range_is_refused(k: int) -> None:
    with pytest.raises(ValueError):
        ops.top_k(vector([1, 2, 3]), k)


# ------------------------------------------------ accumulate, clear, scatter_add


@QUICK
@given(st.data())
def test_nothing_is_lost_over_several_steps(data: st.DataObject) -> None:
    """scatter(S) + r == v, exactly, after every step."""
    elements = st.one_of(
        st.sampled_from([0.0, -0.0, 1.0, -1.0, TINY, -TINY, LARGEST_SUBNORMAL, FAR]),
        st.floats(-FAR, FAR, width=32),
    )
    n = data.draw(st.integers(1, 10))
    residual = np.zeros(n, dtype=F32)
    for _ in range(data.draw(st.integers(1, 5))):
        gradient = vector(data.draw(st.lists(elements, min_size=n, max_size=n)))
        gradient_before = bits(gradient)
        expected = residual + gradient
        assert ops.accumulate(residual, gradient) is None
        assert bits(residual) == bits(expected)
        assert bits(gradient) == gradient_before

        v = residual.copy()
        index, values = ops.top_k(residual, data.draw(st.integers(0, n)))
        ops.scatter_subtract(residual, index, values)
        sent = np.zeros(n, dtype=F32)
        ops.scatter_add(sent, index, values)
        assert (sent + residual).tolist() == v.tolist()
        assert not np.any((sent != 0) & (residual != 0))
        back = residual.copy()
        ops.scatter_add(back, index, values)
        assert back.tolist() == v.tolist()


@QUICK
@given(st.data())
def test_everything_is_sent_sooner_or_later(data: st.DataObject) -> None:
    """In whole numbers, exact in float32: what was sent and what is left make up all gradients."""
    n, steps = data.draw(st.integers(1, 8)), data.draw(st.integers(1, 6))
    whole = st.lists(st.integers(-1000, 1000), min_size=n, max_size=n)
    residual, sent, total = (np.zeros(n, dtype=F32) for _ in range(3))
    for _ in range(steps):
        gradient = vector(data.draw(whole))
        total += gradient
        ops.accumulate(residual, gradient)
        index, values = ops.top_k(residual, data.draw(st.integers(0, n)))
        ops.scatter_subtract(residual, index, values)
        ops.scatter_add(sent, index, values)
    assert (sent + residual).tolist() == total.tolist()


def test_scatter_subtract_of_the_very_values_writes_positive_zeros_and_nothing_else() -> None:
    v = vector([-1, -0.0, 3, -0.0, -TINY])
    index = np.array([0, 1, 4], dtype=INT)
    assert ops.scatter_subtract(v, index, v[index]) is None
    assert bits(v) == bits(vector([0.0, 0.0, 3, -0.0, 0.0]))
    ops.scatter_subtract(v, np.array([], dtype=INT), vector([]))
    assert bits(v) == bits(vector([0.0, 0.0, 3, -0.0, 0.0]))


def test_scatter_add_adds_in_float32() -> None:
    target = vector([1, 16777216, 3, 4])
    index, values = np.array([1, 3], dtype=INT), vector([1, -4])
    assert ops.scatter_add(target, index, values) is None
    assert target.dtype == F32
    assert target.tolist() == [1, 16777216, 3, 0]
    assert index.tolist() == [1, 3] and values.tolist() == [1, -4]


# --------------------------------------------------------- magnitudes and counts


@nasty
def test_kth_largest_at_every_k(v: np.ndarray) -> None:
    a = magnitudes(v)
    for k in range(len(v) + 2):
        got = ops.kth_largest(v, k)
        assert isinstance(got, float)
        assert got == nth(a, k)
        assert math.copysign(1, got) == 1


@QUICK
@given(vectors())
def test_kth_largest_descends(v: np.ndarray) -> None:
    before = bits(v)
    a = [ops.kth_largest(v, k) for k in range(len(v) + 2)]
    assert a == [math.inf, *magnitudes(v), 0.0]
    assert bits(v) == before


def around(t: float) -> list[float]:
    return [math.nextafter(t, -math.inf), t, math.nextafter(t, math.inf)]


@nasty
def test_counts_compare_exactly(v: np.ndarray) -> None:
    """Just above a float32 value is above it, though it rounds to it in float32."""
    for a in magnitudes(v):
        for t in around(a):
            expected = count(v, t)
            assert ops.count_at_least(v, t) == expected, t
            assert ops.count_at_least(v, F64(t)) == expected, t


@QUICK
@given(vectors(), st.floats(allow_nan=False))
def test_counts_at_any_float64(v: np.ndarray, t: float) -> None:
    before = bits(v)
    assert ops.count_at_least(v, t) == count(v, t)
    assert bits(v) == before


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (-math.inf, 6),
        (-1.0, 6),
        (-0.0, 6),
        (0.0, 6),
        (5e-324, 4),
        (1e-300, 4),
        (TINY / 2, 4),
        (TINY, 4),
        (math.nextafter(TINY, 1), 3),
        (math.nextafter(1.0, 0), 3),
        (1.0, 3),
        (math.nextafter(1.0, 2), 2),
        (ABOVE_ONE, 2),
        (math.nextafter(ABOVE_ONE, 2), 1),
        (LARGEST, 1),
        (math.nextafter(LARGEST, math.inf), 0),
        (1e300, 0),
        (math.inf, 0),
    ],
)
def test_counts_by_hand(t: float, expected: int) -> None:
    v = vector([0.0, -0.0, -TINY, 1, -ABOVE_ONE, LARGEST])
    assert ops.count_at_least(v, t) == expected


@nasty
def test_the_norm_neither_overflows_nor_underflows(v: np.ndarray) -> None:
    scale = max(magnitudes(v))
    expected = (
        0.0 if scale == 0 else scale * math.sqrt(math.fsum((x / scale) ** 2 for x in v.tolist()))
    )
    got = ops.l2_norm(v)
    assert isinstance(got, float)
    assert got == pytest.approx(expected, rel=1e-6, abs=0)


def test_the_norm_by_hand() -> None:
    assert ops.l2_norm(vector([3, -4])) == 5.0
    assert ops.l2_norm(vector([0.0, -0.0])) == 0.0
    assert ops.l2_norms(vector([9, 3, -4, 0, 5]), np.array([1, 3, 3, 4, 5])).tolist() == [
        5.0,
        0.0,
        0.0,
        5.0,
    ]
