"""Student's t: how far a mean of few values may be from the truth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

CONFIDENCE = 0.95


def t_quantile(p: float, freedom: int) -> float:
    """Student's t below which a share p ≥ 1/2 lies, by bisection on its integral. ValueError outside 1/2 ≤ p < 1, freedom ≥ 1."""
    if not (0.5 <= p < 1 and freedom >= 1):
        raise ValueError(f"no quantile {p} of Student's t with {freedom} degrees of freedom")
    low, high = 0.0, math.pi / 2
    while high - low > 1e-13:
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < p else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


def _t_share(angle: float, freedom: int) -> float:
    """The share below t = √freedom · tan(angle): there the density is a power of the cosine, which sums exactly by parts."""
    cosine, sine = math.cos(angle), math.sin(angle)
    term, total = (cosine if freedom % 2 else 1.0), 0.0
    for j in range(2 if freedom % 2 else 1, freedom, 2):
        total += term
        term *= cosine * cosine * j / (j + 1)
    if freedom % 2:
        return 0.5 + (angle + sine * total) / math.pi
    return 0.5 + sine * total / 2


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of the confidence interval of a sample; the width is infinite where there are fewer than two."""
    if len(values) < 2:
        return fmean(values), math.inf
    return fmean(values), t_quantile((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / math.sqrt(len(values))
