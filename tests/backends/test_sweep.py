"""The pass over all values: at every length around a word and a tile, with every cut, full places,
and what is not finite.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from gpu import numba
from gpu.numba import search, selection
from gpu.numba import sweep as whole_pass
from gpu.numba.sweep import COMMON, INFINITE, TILE
from gpu.numba.words import WORD
from reference import ops
from tests.strategies import F32, LARGEST, TINY

LENGTHS = (1, WORD - 1, WORD, WORD + 1, TILE - 1, TILE, TILE + WORD, 2 * TILE + 5)
CUTS = (0.0, TINY, 0.5, 1.0, 2.0, LARGEST, math.inf)


def sweep(
    v: np.ndarray, gradient: np.ndarray, start: int, cut: float, room: int
) -> tuple[int, bool, np.ndarray, np.ndarray]:
    """The pass from `start` on: count, whether all are finite, positions and bits of what fits."""
    places = np.full(room + COMMON, 7, dtype=np.uint32)
    found = np.full(room + COMMON, 7, dtype=np.int32)
    marks = whole_pass.tile_marks()
    bits = v.view(np.int32)
    cut_bits = F32(cut).view(np.int32)
    count, finite = whole_pass.sweep(
        v, bits, gradient, start, v.size, cut_bits, places, found, marks
    )
    return count, finite, places[: min(count, room)], found[: min(count, room)]


def numbers(n: int, seed: int = 0) -> np.ndarray:
    """Ties, denormals and zeros of both signs."""
    values = F32([0.0, -0.0, TINY, -TINY, 0.5, -1.0, 1.0, 2.0, -LARGEST])
    return np.random.default_rng(seed).choice(values, n)


@pytest.mark.parametrize("n", LENGTHS)
@pytest.mark.parametrize("cut", CUTS)
def test_what_reaches_the_cut_is_found_in_order(n: int, cut: float) -> None:
    for start in sorted({0, min(n - 1, 3), n - 1}):
        v, gradient = numbers(n, 1) / F32(4), numbers(n, 2) / F32(4)
        expected = v.copy()
        expected[start:] += gradient[start:]
        reach = np.flatnonzero(np.abs(expected[start:]) >= F32(cut)) + start
        for addend in (gradient, gradient[:0]):  # the second time v is the sum already
            count, finite, places, found = sweep(v, addend, start, cut, n)
            assert v.tobytes() == expected.tobytes()
            assert (count, finite) == (reach.size, True)
            assert places.tolist() == reach.tolist()
            assert found.tobytes() == expected[reach].tobytes()


@pytest.mark.parametrize("marks", range(COMMON + 3))
def test_words_with_few_and_many_marks(marks: int) -> None:
    v = np.zeros(5 * WORD, dtype=F32)
    large = np.random.default_rng(marks).permutation(WORD)[:marks]
    for word in (0, 2, 4):
        v[word * WORD + large] = -1
    expected = np.flatnonzero(v)
    count, _, places, _ = sweep(v, v[:0], 0, 1.0, expected.size)
    assert count == expected.size and places.tolist() == expected.tolist()


@pytest.mark.parametrize("room", [0, 1, TILE, TILE + 1, 3 * TILE - 1])
def test_places_that_are_too_few_are_reported_and_all_is_accumulated(room: int) -> None:
    v, gradient = np.zeros(3 * TILE, dtype=F32), np.full(3 * TILE, F32(-2))
    count, finite, _, _ = sweep(v, gradient, 0, 1.0, room)
    assert (count, finite) == (room + 1, True)
    assert (v == -2).all()


@pytest.mark.parametrize(
    "bits", [0x7F800000, -0x800000, 0x7F800001, 0x7FC00000, 0x7FFFFFFF, -1], ids=hex
)
@pytest.mark.parametrize("place", [0, WORD, TILE - 1, TILE, 2 * TILE + 4])
@pytest.mark.parametrize("room", [0, 2, 3 * TILE])
def test_no_infinity_and_no_nan_escapes(bits: int, place: int, room: int) -> None:
    """Not where places run out before, in, or after its tile, nor where no candidates are
    wanted.
    """
    for others in (0.0, 2.0):
        for cut in (1.0, LARGEST, math.inf):
            v = np.full(2 * TILE + 5, F32(others))
            assert sweep(v, v[:0], 0, cut, room)[1]
            v.view(np.int32)[place] = bits
            assert not sweep(v, v[:0], 0, cut, room)[1]


def test_no_cut_is_above_infinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of nothing but NaN would give one that infinity does not reach."""
    n = search.SMALL + 1
    v = np.full(n, F32(math.nan))
    v.view(np.int32)[...] = 0x7FFFFFFF
    assert selection.guess_cut(v, v[:0], 5) == INFINITE
    assert selection.guess_cut(np.zeros(n, dtype=F32), v, 5) == INFINITE
    with pytest.raises(ops.NonFiniteError):
        numba.Ops().select(np.zeros(n, dtype=F32), v, 5, 0.0)


@pytest.mark.parametrize("share", [1e-5, 1e-3, 0.01, 0.12])
def test_without_a_hint_a_sample_of_the_sums_gives_the_cut(share: float) -> None:
    """Not of the residual alone, which here tells nothing: one pass suffices, and its candidates
    are the head.
    """
    n = 200_000
    k = max(1, int(share * n))
    residual = np.full(n, F32(1000))
    gradient = (np.random.default_rng(3).standard_t(3, n) - 1000).astype(F32)
    expected = residual + gradient
    cuts, room = selection.cuts_of(
        residual, gradient, np.array([0, n]), np.array([k]), np.zeros(1), 0.02
    )
    reach = np.count_nonzero(np.abs(expected).view(np.int32) >= cuts[0])
    assert k <= reach <= room[0]
    index, values, threshold = numba.Ops().select(residual, gradient, k, 0.0)
    again, same, a_k = ops.select(expected, np.zeros(n, dtype=F32), k, 0.0)
    assert residual.tobytes() == expected.tobytes()
    assert (
        index.tolist() == again.tolist() and values.tobytes() == same.tobytes() and threshold == a_k
    )
