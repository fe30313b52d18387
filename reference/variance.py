"""How gradient variance changes from layer to layer, and sparsity ratios to start from.

Under He initialisation and ReLU the paper predicts Var(∂f/∂W^l) / Var(∂f/∂W^{l-1}) for neighbouring
layers, with c inputs, d outputs and k×k kernels. Eq. 8 rests on Eq. 13, which gives ∂f/∂W a factor
k² although a weight sums over all positions of its output map, and on Eq. 14, which counts k²·d
paths out of each input value although stride and pooling reduce their number. With both corrected,
kernels and positions cancel: the corrected ratio [ours].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reference.adjustment import Counts

LEAST_SIGMA = 1e-100
"""Smaller deviations, as a share of the largest, are raised to this: the layer fills up last."""


def eq8_ratio(c: int, d: int, kernel: int, kernel_previous: int) -> float:
    """Eq. 8 [paper], convolutions: (k_l² · c_l) / (k_{l-1}² · d_l)."""
    return kernel**2 * c / (kernel_previous**2 * d)


def eq9_ratio(c: int, d: int) -> float:
    """Eq. 9 [paper], fully connected layers: c_l / d_l."""
    return c / d


def corrected_ratio(c: int, d: int) -> float:
    """The corrected form for any layer [ours]: c_l / d_l, in channels.

    For a linear layer after a flatten, c counts the channels before the flatten.
    """
    return c / d


def chain_sigmas(ratios: Sequence[float]) -> NDArray[np.float64]:
    """Relative standard deviations σ (L), σ_1 = 1, of a chain's gradients.

    ratios (L − 1): the variance ratios of neighbouring layers.
    """
    return np.sqrt(np.cumprod([1.0, *ratios], dtype=np.float64))


def two_sided_tail(t: float, sigma: float) -> float:
    """P(|x| > t) = 2(1 − Φ(t/σ)) for a normal x with standard deviation sigma > 0."""
    return math.erfc(t / (sigma * math.sqrt(2)))


def common_threshold(sizes: Sequence[int], sigmas: Sequence[float], total: int) -> float:
    """The t that solves Σ n_l · 2(1 − Φ(t/σ_l)) = K, by bisection to float64's last bit."""
    low, high = 0.0, 40.0 * max(sigmas)
    while low < (mid := (low + high) / 2) < high:
        expected = sum(
            n * two_sided_tail(mid, sigma) for n, sigma in zip(sizes, sigmas, strict=True)
        )
        low, high = (mid, high) if expected > total else (low, mid)
    return low


def sparsity_from_variances(sizes: Sequence[int], sigmas: Sequence[float], total: int) -> Counts:
    """k (L) of Gaussian layers with standard deviations sigmas (L) under one threshold [ours].

    k_l is close to n_l · 2(1 − Φ(t/σ_l)), rounded so that the sum is exactly the budget K and
    0 <= k_l <= n_l: by largest remainders, the lower layer first among equals. ValueError for a
    budget outside 0..n, a negative or infinite sigma, or none above 0.
    """
    limits = [int(n) for n in sizes]
    deviations = [float(s) for s in sigmas]
    if not 0 <= total <= sum(limits):
        raise ValueError(f"a budget of {total} does not fit into {sum(limits)} values")
    if not all(0 <= s < math.inf for s in deviations) or max(deviations) == 0:
        raise ValueError("every sigma must be finite and not negative, and one above 0")
    deviations = [max(s, LEAST_SIGMA * max(deviations)) for s in deviations]
    t = common_threshold(limits, deviations, total)
    return _round_to_budget(
        [n * two_sided_tail(t, s) for n, s in zip(limits, deviations, strict=True)], limits, total
    )


def _round_to_budget(shares: Sequence[float], limits: Sequence[int], total: int) -> Counts:
    """Whole numbers near shares, at most limits, that sum to total: by largest remainders."""
    k = [min(math.floor(share), n) for share, n in zip(shares, limits, strict=True)]
    by_remainder = sorted(range(len(k)), key=lambda i: (k[i] - shares[i], i))
    while (left := total - sum(k)) > 0:
        for i in [i for i in by_remainder if k[i] < limits[i]][:left]:
            k[i] += 1
    return np.array(k, dtype=np.int64)
