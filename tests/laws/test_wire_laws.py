"""Laws of the message: what is encoded arrives, in a size that is known before, near the entropy;
what is damaged does not.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dls.backends import Wire
from gpu import base, numba
from reference import ops
from reference import wire as reference_wire
from tests.strategies import (
    F32,
    INT,
    LARGEST_SUBNORMAL,
    NASTY_VECTORS,
    QUICK,
    SMALLEST_NORMAL,
    TINY,
    bits,
    kept,
    vector,
    vector_and_k,
)

DTYPES = tuple(reference_wire.VALUE_BYTES)
nasty = pytest.mark.parametrize("v", NASTY_VECTORS.values(), ids=NASTY_VECTORS.keys())


@pytest.fixture(params=[base.Wire(), numba.Wire()], ids=["numpy", "numba"], scope="module")
def wire(request: pytest.FixtureRequest) -> Wire:
    return request.param


def check_round_trip(
    wire: Wire, index: np.ndarray, values: np.ndarray, n: int, dtype: str = "float32"
) -> None:
    k = len(index)
    index_before, values_before = index.tolist(), bits(values)
    payload = wire.encode(index, values, n, dtype)
    assert payload.dtype == np.uint8
    assert payload.shape == (wire.payload_size(n, k, dtype),)
    assert payload.tobytes() == reference_wire.encode(index, values, n, dtype).tobytes()
    assert index.tolist() == index_before and bits(values) == values_before
    payload_before = payload.tolist()
    got_index, got_values = wire.decode(payload, n, k, dtype)
    assert got_index.dtype == INT and got_values.dtype == F32
    assert got_index.tolist() == index_before
    assert bits(got_values) == values_before
    assert payload.tolist() == payload_before


# ---------------------------------------------------------------- round trips


@nasty
def test_round_trip_at_every_k(wire: Wire, v: np.ndarray) -> None:
    for k in range(len(v) + 1):
        index = np.array(kept(v, k), dtype=INT)
        check_round_trip(wire, index, v[index], len(v))


@QUICK
@given(vector_and_k(), st.integers(0, 3000))
def test_round_trip(wire: Wire, case: tuple[np.ndarray, int], beyond: int) -> None:
    v, k = case
    check_round_trip(wire, *ops.top_k(v, k), len(v) + beyond)


@QUICK
@given(st.integers(1, 400), st.integers(0, 2**32), st.data())
def test_round_trip_of_any_set_of_indices(
    wire: Wire, n: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(0, n))
    rng = np.random.default_rng(seed)
    index = np.sort(rng.choice(n, k, replace=False)).astype(INT)
    check_round_trip(wire, index, rng.standard_normal(k).astype(F32), n)


@pytest.mark.parametrize(
    "n", [255, 256, 257, 65535, 65536, 65537, 2**24 + 3, 2**31 - 1, 2**31 + 5, 2**32]
)
def test_large_indices_survive(wire: Wire, n: int) -> None:
    """Indices survive beyond 2^24, where float32 ends, and beyond 2^31, where int32 ends."""
    index = np.unique(np.array([0, 1, 127, 200, n // 2, n - 2, n - 1], dtype=INT))
    check_round_trip(wire, index, np.arange(len(index), dtype=F32) - 2, n)


def test_a_range_beyond_the_format_is_refused(wire: Wire) -> None:
    for n, k in ((2**32 + 1, 1), (3, 4), (3, -1)):
        with pytest.raises(ValueError, match="0 <= k <= n"):
            wire.payload_size(n, k)


def test_smallest_normal_and_below_travel_unchanged(wire: Wire) -> None:
    values = vector([SMALLEST_NORMAL, -LARGEST_SUBNORMAL, TINY, -0.0, 0.0])
    check_round_trip(wire, np.array([3, 5, 8, 9, 11], dtype=INT), values, 12)


# ---------------------------------------------------------------- size


def test_the_size_follows_from_n_and_k_alone_and_is_near_the_entropy(wire: Wire) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 100, 5000):
        for k in {0, 1, n // 3, n // 2, n - 1, n}:
            index = np.sort(rng.choice(n, k, replace=False)).astype(INT)
            first, last = np.arange(k, dtype=INT), np.arange(n - k, n, dtype=INT)
            sizes = {wire.encode(i, np.ones(k, dtype=F32), n).size for i in (index, first, last)}
            assert sizes == {wire.payload_size(n, k)}
            if k:
                entropy = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
                code = 8 * (wire.payload_size(n, k) - 4 * k - 4)
                assert entropy / math.log(2) <= code <= entropy / math.log(2) + 2 * k + 16


@pytest.mark.parametrize(("density", "most"), [(0.001, 5.6), (0.01, 5.2)])
@pytest.mark.parametrize("k", [10_000, 153_000, 1_000_000])
def test_bytes_of_an_entry(wire: Wire, density: float, most: float, k: int) -> None:
    assert wire.payload_size(round(k / density), k) <= most * k
    assert (
        wire.payload_size(round(k / density), k, "float16")
        == wire.payload_size(round(k / density), k) - 2 * k
    )


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_flipped_bit_is_noticed(wire: Wire, dtype: str) -> None:
    index, values = np.array([0, 3, 4, 77, 99], dtype=INT), vector([1, -2, 0.5, 4, 8])
    payload = wire.encode(index, values, 100, dtype)
    for bit in range(8 * payload.size):
        broken = payload.copy()
        broken[bit // 8] ^= 1 << bit % 8
        with pytest.raises(reference_wire.MessageError, match="damaged"):
            wire.decode(broken, 100, 5, dtype)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_a_message_of_another_length_is_refused(wire: Wire, k: int) -> None:
    payload = wire.encode(np.arange(k, dtype=INT), np.ones(k, dtype=F32), 10)
    for extra in range(1, 33):
        with pytest.raises(reference_wire.MessageError, match="bytes"):
            wire.decode(np.append(payload, np.zeros(extra, dtype=np.uint8)), 10, k)
    for cut in range(len(payload)):
        with pytest.raises(reference_wire.MessageError, match="bytes"):
            wire.decode(payload[:cut].copy(), 10, k)


def test_what_no_encoder_writes_is_refused_even_with_a_right_checksum(wire: Wire) -> None:
    """Indices that repeat, descend or leave the range, too few or too many of them, and bits in the
    padding.
    """
    rng = np.random.default_rng(0)
    for n, k in ((10, 3), (40, 1), (100, 7), (1000, 3), (64, 64), (2, 1)):
        size = reference_wire.payload_size(n, k)
        for _ in range(300):
            noise = rng.integers(0, 256, size - 4, dtype=np.uint8)
            try:
                index, values = wire.decode(reference_wire.seal(noise, n, k, "float32"), n, k)
            except reference_wire.MessageError:
                continue
            assert (
                index.size == k and index[0] >= 0 and index[-1] < n and np.all(np.diff(index) > 0)
            )
            assert wire.encode(index, values, n).size == size
    for index in ([3, 2], [2, 2]):
        with pytest.raises(reference_wire.MessageError, match="damaged"):
            wire.decode(wire.encode(np.array(index, dtype=INT), vector([1, 2]), 9), 9, 2)


def test_a_message_for_another_range_or_count_is_refused(wire: Wire) -> None:
    for n in range(2, 40):
        payload = wire.encode(np.array([n - 1], dtype=INT), vector([1]), n)
        for other in {1, n - 1, n + 1, 2 * n}:
            with pytest.raises(reference_wire.MessageError):
                wire.decode(payload, other, 1)
    for k in range(11):
        payload = wire.encode(np.arange(k, dtype=INT), np.ones(k, dtype=F32), 10)
        for other in set(range(11)) - {k}:
            with pytest.raises(reference_wire.MessageError):
                wire.decode(payload, 10, other)


# ---------------------------------------------------------------- value types


@pytest.mark.parametrize("dtype", DTYPES)
@QUICK
@given(st.data())
def test_rounding_drops_nothing_that_the_residual_cannot_hold(
    wire: Wire, dtype: str, data: st.DataObject
) -> None:
    """sent + residual == v exactly, and what was rounded travels unchanged."""
    largest = 65504.0 if dtype == "float16" else float(F32(3.38e38))
    v = vector(data.draw(st.lists(st.floats(-largest, largest, width=32), min_size=1, max_size=12)))
    sent = wire.round_values(v, dtype)
    assert sent.dtype == F32
    assert bits(wire.round_values(sent, dtype)) == bits(sent)
    residual = v.copy()
    ops.scatter_subtract(residual, np.arange(v.size), sent)
    assert [float(a) + float(b) for a, b in zip(sent, residual, strict=True)] == v.astype(
        np.float64
    ).tolist()
    assert (sent + residual).tolist() == v.tolist()
    check_round_trip(wire, np.arange(v.size, dtype=INT), sent, v.size, dtype)


def test_rounding_is_to_the_nearest_and_to_even_among_equals(wire: Wire) -> None:
    half = 2.0**-9  # between 1 and the next bfloat16, 1 + 2^-7, lies 1 + 2^-8
    given_ = vector([1 + 2 * half, 1 + 3 * half, 1 + 6 * half, -1 - 2 * half - 2**-20, 1e-45, -0.0])
    assert wire.round_values(given_, "bfloat16").tolist() == [
        1,
        1 + 4 * half,
        1 + 8 * half,
        -1 - 4 * half,
        0,
        0,
    ]
    given_ = vector([1 + 2**-11, 1 + 3 * 2**-11, 65519, 2**-25, 3 * 2**-25])
    assert wire.round_values(given_, "float16").tolist() == [1, 1 + 2**-9, 65504, 0, 2**-23]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@QUICK
@given(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=12)
)
def test_of_a_value_beyond_the_range_the_rest_stays(
    wire: Wire, dtype: str, values: list[float]
) -> None:
    """Any finite v: what is sent lies between 0 and v, in the type; sent + residual == v exactly;
    the residual is no larger.
    """
    v = vector(values)
    check_cut(wire, v, dtype)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_at_the_edges_of_the_range_the_rest_stays_too(wire: Wire, dtype: str) -> None:
    powers = F32(2) ** np.arange(14, 128, dtype=F32)
    edges = np.concatenate(
        [powers, vector([65504, 65519.996, 65520, 131008, 3.3895e38, 3.3962e38, 3.4028235e38])]
    )
    near = np.concatenate(
        [edges, np.nextafter(edges, F32(0)), np.nextafter(edges, F32(3.4028235e38))]
    )
    check_cut(wire, np.concatenate([near, -near]), dtype)


def check_cut(wire: Wire, v: np.ndarray, dtype: str) -> None:
    sent = wire.round_values(v, dtype)
    assert np.isfinite(sent).all() and bits(wire.round_values(sent, dtype)) == bits(sent)
    residual = v.copy()
    ops.scatter_subtract(residual, np.arange(v.size), sent)
    assert [
        Fraction(float(s)) + Fraction(float(r)) for s, r in zip(sent, residual, strict=True)
    ] == [*map(Fraction, v.tolist())]
    assert (np.abs(residual) <= np.abs(v)).all()
    check_round_trip(wire, np.arange(v.size, dtype=INT), sent, v.size, dtype)


def test_a_value_beyond_the_range_is_sent_in_a_few_steps(wire: Wire) -> None:
    assert wire.round_values(vector([1, 65520, -1e9, 2.0**39]), "float16").tolist() == [
        1,
        65504,
        -65472,
        0,
    ]
    assert wire.round_values(vector([3.4e38, -3.4e38]), "bfloat16").tolist() == [
        2.0**128 - 2.0**120,
        2.0**120 - 2.0**128,
    ]
    left, sent = vector([-200_000.5]), []
    while left.any():
        sent.append(wire.round_values(left, "float16"))
        ops.scatter_subtract(left, np.arange(1), sent[-1])
    assert [float(values[0]) for values in sent] == [-65504, -65504, -65504, -3488, -0.5]
