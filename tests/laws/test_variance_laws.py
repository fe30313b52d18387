"""Laws of the variance ratios and of the sparsity ratios that follow from variances."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference import variance
from tests.strategies import F64, INT, QUICK, largest_remainder

# -------------------------------------------------------------------- the ratios


@pytest.mark.parametrize(
    ("c", "d", "kernel", "kernel_previous", "expected"),
    [
        (16, 32, 3, 3, 0.5),
        (64, 64, 3, 3, 1.0),
        (64, 32, 3, 3, 2.0),
        (1, 1, 5, 3, 25 / 9),
        (1, 1, 3, 5, 9 / 25),
        (16, 32, 5, 3, 25 / 18),
        (32, 32, 1, 5, 1 / 25),
        (32, 16, 3, 1, 18.0),
        (6, 16, 5, 5, 0.375),
    ],
)
def test_eq8_by_hand(c: int, d: int, kernel: int, kernel_previous: int, expected: float) -> None:
    assert variance.eq8_ratio(c, d, kernel, kernel_previous) == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("c", "d", "expected"),
    [(400, 120, 10 / 3), (120, 84, 10 / 7), (84, 10, 8.4), (10, 10, 1.0), (1, 4, 0.25)],
)
def test_eq9_and_the_corrected_form_by_hand(c: int, d: int, expected: float) -> None:
    assert variance.eq9_ratio(c, d) == pytest.approx(expected, rel=1e-14)
    assert variance.corrected_ratio(c, d) == pytest.approx(expected, rel=1e-14)


width = st.integers(1, 10_000)
kernel_size = st.integers(1, 15)


@QUICK
@given(width, width, kernel_size, kernel_size)
def test_the_forms_agree_where_they_should(c: int, d: int, kernel: int, other: int) -> None:
    assert variance.eq8_ratio(c, d, kernel, kernel) == pytest.approx(variance.eq9_ratio(c, d))
    assert variance.corrected_ratio(c, d) == pytest.approx(variance.eq9_ratio(c, d))
    assert variance.eq8_ratio(c, d, kernel, other) == pytest.approx(
        variance.eq9_ratio(c, d) * (kernel / other) ** 2
    )
    there = variance.eq8_ratio(c, d, kernel, other)
    back = variance.eq8_ratio(d, c, other, kernel)
    assert there * back == pytest.approx(1)


# ---------------------------------------------------- sparsity from variances


def shares(sizes: list[int], sigmas: list[float], budget: int) -> list[float]:
    """n_l * 2 (1 - Phi(t / sigma_l)) at the common threshold t, which bisection finds."""

    def at(t: float) -> list[float]:
        return [
            n * (math.erfc(t / s / math.sqrt(2)) if s > 0 else 0.0)
            for n, s in zip(sizes, sigmas, strict=True)
        ]

    low, high = 0.0, 40 * max(sigmas)
    for _ in range(300):
        mid = (low + high) / 2
        low, high = (mid, high) if math.fsum(at(mid)) > budget else (low, mid)
    return at(high)


def check_sparsity(sizes: list[int], sigmas: list[float], budget: int) -> list[int]:
    sizes_given, sigmas_given = np.array(sizes, dtype=INT), np.array(sigmas, dtype=F64)
    k = variance.sparsity_from_variances(sizes_given, sigmas_given, budget)
    assert k.dtype == INT and k.shape == (len(sizes),)
    assert sizes_given.tolist() == sizes and sigmas_given.tolist() == sigmas
    k = k.tolist()
    assert sum(k) == budget
    assert all(0 <= c <= n for c, n in zip(k, sizes, strict=True))
    return k


def check_near_shares(sizes: list[int], sigmas: list[float], budget: int) -> list[int]:
    k = check_sparsity(sizes, sigmas, budget)
    for c, share in zip(k, shares(sizes, sigmas, budget), strict=True):
        assert abs(c - share) <= 1.01, (k, shares(sizes, sigmas, budget))
    return k


@st.composite
def sizes_sigmas_and_budget(
    draw: st.DrawFn, ratio: float = 1e3
) -> tuple[list[int], list[float], int]:
    number = draw(st.integers(1, 8))
    size = st.one_of(st.integers(1, 5), st.integers(1, 100_000))
    sizes = draw(st.lists(size, min_size=number, max_size=number))
    exponent = st.floats(-math.log10(ratio), math.log10(ratio))
    sigmas = [10**x for x in draw(st.lists(exponent, min_size=number, max_size=number))]
    n = sum(sizes)
    budget = draw(st.one_of(st.sampled_from([1, n, max(1, n - 1)]), st.integers(1, n)))
    return sizes, sigmas, budget


@QUICK
@given(sizes_sigmas_and_budget())
def test_counts_lie_near_the_gaussian_shares(case: tuple[list[int], list[float], int]) -> None:
    check_near_shares(*case)


@QUICK
@given(sizes_sigmas_and_budget())
def test_equal_sigmas_give_the_proportional_split(case: tuple[list[int], list[float], int]) -> None:
    sizes, sigmas, budget = case
    k = check_sparsity(sizes, [sigmas[0]] * len(sizes), budget)
    proportional = largest_remainder(budget, sizes)
    assert all(abs(c - p) <= 1 for c, p in zip(k, proportional, strict=True))


@QUICK
@given(sizes_sigmas_and_budget())
def test_a_larger_sigma_gets_a_larger_share(case: tuple[list[int], list[float], int]) -> None:
    """Up to the rounding of each count."""
    sizes, sigmas, budget = case
    k = check_sparsity(sizes, sigmas, budget)
    layers = sorted(zip(sigmas, k, sizes, strict=True))
    for (s1, k1, n1), (s2, k2, n2) in pairwise(layers):
        if s1 < s2:
            assert k2 / n2 >= k1 / n1 - 1.01 * (1 / n1 + 1 / n2)


@QUICK
@given(sizes_sigmas_and_budget(), st.floats(1, 100))
def test_a_layer_whose_sigma_grows_loses_nothing(
    case: tuple[list[int], list[float], int], factor: float
) -> None:
    sizes, sigmas, budget = case
    before = check_sparsity(sizes, sigmas, budget)
    after = check_sparsity(sizes, [sigmas[0] * factor, *sigmas[1:]], budget)
    assert after[0] >= before[0] - 1


@QUICK
@given(sizes_sigmas_and_budget(), st.sampled_from([2.0**-40, 1e-6, 1e6, 2.0**40]))
def test_only_the_ratios_of_sigmas_matter(
    case: tuple[list[int], list[float], int], factor: float
) -> None:
    sizes, sigmas, budget = case
    k = check_sparsity(sizes, sigmas, budget)
    scaled = check_sparsity(sizes, [s * factor for s in sigmas], budget)
    assert all(abs(a - b) <= 1 for a, b in zip(k, scaled, strict=True))


@QUICK
@given(sizes_sigmas_and_budget(ratio=1e6), st.data())
def test_extreme_sigmas_keep_the_budget(
    case: tuple[list[int], list[float], int], data: st.DataObject
) -> None:
    sizes, sigmas, budget = case
    if len(sizes) > 1:
        sigmas[data.draw(st.integers(0, len(sizes) - 1))] = data.draw(
            st.sampled_from([0.0, 1e-300, 1e-30, 1e6])
        )
    check_sparsity(sizes, sigmas, budget)


@pytest.mark.parametrize(
    ("sizes", "sigmas", "budget", "expected"),
    [
        ([7], [1.0], 3, [3]),
        ([1], [0.5], 1, [1]),
        ([3, 1, 2], [1.0, 1e-6, 1e6], 6, [3, 1, 2]),
        ([100, 100], [1.0, 1e6], 1, [0, 1]),
        ([100, 100], [1e6, 1.0], 50, [50, 0]),
        ([100, 100], [0.0, 1.0], 60, [0, 60]),
        ([100, 100], [0.0, 1.0], 100, [0, 100]),
        ([100, 100], [0.0, 1.0], 130, [30, 100]),
        ([100, 100], [0.0, 1.0], 200, [100, 100]),
        ([100, 100], [1e-300, 1.0], 60, [0, 60]),
        ([100, 100], [1.0, 1.0], 50, [25, 25]),
        ([300, 100], [2.0, 2.0], 40, [30, 10]),
    ],
)
def test_sparsity_by_hand(
    sizes: list[int], sigmas: list[float], budget: int, expected: list[int]
) -> None:
    assert check_sparsity(sizes, sigmas, budget) == expected


def test_a_worked_threshold() -> None:
    """t = 2 with sigmas 1 and 2: 2 (1 - Phi(2)) = 0.0455, 2 (1 - Phi(1)) = 0.3173."""
    assert check_near_shares([100_000, 100_000], [1.0, 2.0], 4550 + 31731) == pytest.approx(
        [4550, 31731], abs=2
    )


@pytest.mark.parametrize("budget", [1, 2, 10, 1000, 1110, 1111])
def test_ratios_of_a_million(budget: int) -> None:
    sizes = [1, 10, 100, 1000]
    for sigmas in ([1e-6, 1.0, 1e-6, 1.0], [1e6, 1.0, 1e-6, 1e-12], [1e-12, 1e-6, 1.0, 1e6]):
        check_near_shares(sizes, sigmas, budget)
