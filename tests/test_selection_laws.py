"""Laws of the primitives on one layer: selection, conservation, exact thresholds, the message."""

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
    SMALLEST_NORMAL,
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
        ops.clear(residual, index)
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
        ops.clear(residual, index)
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
        ops.clear(residual, index)
        ops.scatter_add(sent, index, values)
    assert (sent + residual).tolist() == total.tolist()


def test_clear_writes_positive_zeros_and_nothing_else() -> None:
    v = vector([-1, -0.0, 3, -0.0, -TINY])
    assert ops.clear(v, np.array([0, 1, 4], dtype=INT)) is None
    assert bits(v) == bits(vector([0.0, 0.0, 3, -0.0, 0.0]))
    ops.clear(v, np.array([], dtype=INT))
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


# ---------------------------------------------------------------- the message


def check_round_trip(index: np.ndarray, values: np.ndarray, n: int) -> None:
    k = len(index)
    index_before, values_before = index.tolist(), bits(values)
    payload = ops.encode(index, values, n)
    assert payload.dtype == np.uint8
    assert payload.shape == (ops.payload_size(n, k),)
    assert index.tolist() == index_before and bits(values) == values_before
    payload_before = payload.tolist()
    got_index, got_values = ops.decode(payload, n, k)
    assert got_index.dtype == INT and got_values.dtype == F32
    assert got_index.tolist() == index_before
    assert bits(got_values) == values_before
    assert payload.tolist() == payload_before


@nasty
def test_message_round_trip_at_every_k(v: np.ndarray) -> None:
    for k in range(len(v) + 1):
        index = np.array(kept(v, k), dtype=INT)
        check_round_trip(index, v[index], len(v))


@QUICK
@given(vector_and_k())
def test_message_round_trip(case: tuple[np.ndarray, int]) -> None:
    v, k = case
    check_round_trip(*ops.top_k(v, k), len(v))


@pytest.mark.parametrize("n", [255, 256, 257, 65535, 65536, 65537, 2**24 + 3, 2**31 - 1, 2**31 + 5])
def test_message_keeps_large_indices(n: int) -> None:
    """Indices survive beyond 2^24, where float32 ends, and beyond 2^31, where int32 ends."""
    index = np.unique(np.array([0, 1, 127, 200, n // 2, n - 2, n - 1], dtype=INT))
    check_round_trip(index, np.arange(len(index), dtype=F32) - 2, n)


def test_indices_beyond_the_format_are_refused_or_kept() -> None:
    n = 2**33 + 1
    index, values = np.array([0, 2**32, 2**33], dtype=INT), vector([1, 2, 3])
    try:
        payload = ops.encode(index, values, n)
    except ValueError:
        return
    got_index, got_values = ops.decode(payload, n, 3)
    assert got_index.tolist() == index.tolist() and bits(got_values) == bits(values)


@pytest.mark.parametrize("n", [1, 2, 7, 256, 1000, 10**6])
def test_payload_size_is_a_count_of_bytes_that_holds_the_values(n: int) -> None:
    sizes = [ops.payload_size(n, k) for k in range(min(n, 300) + 1)]
    assert all(isinstance(size, int) for size in sizes)
    assert all(size >= 4 * k for k, size in enumerate(sizes))


@pytest.mark.parametrize("k", [0, 1, 3])
def test_a_message_of_another_length_is_refused(k: int) -> None:
    n = 10
    payload = ops.encode(np.arange(k, dtype=INT), np.ones(k, dtype=F32), n)
    for extra in range(1, 33):
        with pytest.raises(ValueError):
            ops.decode(np.append(payload, np.zeros(extra, dtype=np.uint8)), n, k)
    for cut in range(len(payload)):
        with pytest.raises(ValueError):
            ops.decode(payload[:cut].copy(), n, k)


def test_a_message_of_another_k_is_refused() -> None:
    n = 10
    for k in range(n + 1):
        payload = ops.encode(np.arange(k, dtype=INT), np.ones(k, dtype=F32), n)
        for other in range(n + 1):
            if ops.payload_size(n, other) != len(payload):
                with pytest.raises(ValueError):
                    ops.decode(payload, n, other)


@pytest.mark.parametrize("k", [1, 3])
def test_a_message_with_an_index_out_of_range_is_refused(k: int) -> None:
    n = 10
    nonsense = np.full(ops.payload_size(n, k), 255, dtype=np.uint8)
    with pytest.raises(ValueError):
        ops.decode(nonsense, n, k)


def test_a_message_for_a_longer_layer_is_refused() -> None:
    values = vector([1])
    for n in range(2, 40):
        payload = ops.encode(np.array([n - 1], dtype=INT), values, n)
        with pytest.raises(ValueError):
            ops.decode(payload, n - 1, 1)


def test_smallest_normal_and_below_travel_unchanged() -> None:
    values = vector([SMALLEST_NORMAL, -LARGEST_SUBNORMAL, TINY, -0.0, 0.0])
    check_round_trip(np.array([3, 5, 8, 9, 11], dtype=INT), values, 12)
