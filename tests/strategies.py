"""Hypothesis strategies and brute-force oracles, shared by the law tests.

The oracles say in plain Python what docs/algorithm.md says in words: lists, sorts and exact float
comparison, nothing of the code under test. A magnitude is a Python float, so comparisons with
thresholds are float64 comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

INT = np.int64
F32 = np.float32
F64 = np.float64

TINY = float(np.finfo(F32).smallest_subnormal)
SMALLEST_NORMAL = float(np.finfo(F32).smallest_normal)
LARGEST = float(np.finfo(F32).max)
LARGEST_SUBNORMAL = float(np.nextafter(F32(SMALLEST_NORMAL), F32(0)))
ABOVE_ONE = float(np.nextafter(F32(1), F32(2)))
BELOW_ONE = float(np.nextafter(F32(1), F32(0)))
FAR = float(F32(1e30))  # far from 1, yet a few of them may be added in float32

QUICK = settings(max_examples=60, deadline=None, database=None, derandomize=True)
SLOW = settings(max_examples=25, deadline=None, database=None, derandomize=True)


# ---------------------------------------------------------------- strategies


def vector(values: Sequence[float]) -> np.ndarray:
    """The float32 vector of these values."""
    return np.array(values, dtype=F32)


_SPECIAL = [0.0, TINY, 2 * TINY, LARGEST_SUBNORMAL, SMALLEST_NORMAL, BELOW_ONE, 1.0, ABOVE_ONE]


def signed(values: Sequence[float]) -> list[float]:
    return [*values, *(-x for x in values)]


TIED = st.sampled_from(signed([0.0, 1.0, 2.0, 3.0]))
SPECIAL = st.sampled_from(signed([*_SPECIAL, FAR]))
MODERATE = st.floats(-FAR, FAR, width=32)
EXTREME = st.one_of(
    st.sampled_from(signed([*_SPECIAL, LARGEST])),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
)


def vectors(
    elements: st.SearchStrategy[float] | None = None, min_size: int = 1, max_size: int = 12
) -> st.SearchStrategy[np.ndarray]:
    """float32 vectors: one with many ties, one of special values, or one of any finite values."""
    kinds = [TIED, SPECIAL, EXTREME] if elements is None else [elements]
    return st.one_of(
        *(st.lists(kind, min_size=min_size, max_size=max_size).map(vector) for kind in kinds)
    )


@st.composite
def vector_and_k(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    v = draw(vectors())
    k = draw(st.one_of(st.sampled_from([0, len(v)]), st.integers(0, len(v))))
    return v, k


@st.composite
def layers_and_k(draw: st.DrawFn, max_layers: int = 6) -> tuple[list[np.ndarray], np.ndarray]:
    """v: 1 to max_layers layers of 1 to 8 values; k: any counts, 0 and n_l more often."""
    elements = draw(st.sampled_from([TIED, SPECIAL, MODERATE, EXTREME]))
    v = draw(st.lists(vectors(elements, max_size=8), min_size=1, max_size=max_layers))
    k = [
        draw(st.one_of(st.sampled_from([0, len(layer)]), st.integers(0, len(layer)))) for layer in v
    ]
    return v, np.array(k, dtype=INT)


@st.composite
def layers_k_and_thresholds(
    draw: st.DrawFn, max_layers: int = 6
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """v, k and for every layer some threshold, not only the fresh one."""
    v, k = draw(layers_and_k(max_layers))
    t = []
    for layer, count in zip(v, k.tolist(), strict=True):
        a = magnitudes(layer)
        low = nth(a, count + 1)
        high = nth(a, count) if count else 2 * nth(a, 1) + 1
        candidates = [low, high, (low + high) / 2]
        if low < high:
            candidates += [math.nextafter(low, math.inf), math.nextafter(high, 0)]
        t.append(draw(st.sampled_from(candidates)))
    return v, k, np.array(t, dtype=F64)


# ------------------------------------------------------------- named nasty cases

NASTY_VECTORS: dict[str, np.ndarray] = {
    "one value": vector([-2.5]),
    "one zero": vector([-0.0]),
    "all zeros, both signs": vector([0.0, -0.0, -0.0, 0.0, -0.0]),
    "many equal magnitudes": vector([1, -1] * 9),
    "ties around every cut": vector([2, -1, 1, -2, 2, 0, -1]),
    "subnormals": vector([TINY, -2 * TINY, 0.0, LARGEST_SUBNORMAL, -TINY, SMALLEST_NORMAL]),
    "one ulp apart": vector([1, -ABOVE_ONE, BELOW_ONE, ABOVE_ONE, -1, -BELOW_ONE]),
    "huge range": vector([LARGEST, -TINY, 0.0, 1, -LARGEST, SMALLEST_NORMAL, 1e20, -1e-20]),
    "ascending": vector(range(33)),
    "descending": vector(range(33, 0, -1)),
}

NASTY_LAYERS: dict[str, tuple[list[np.ndarray], list[int]]] = {
    "one layer": ([vector([3, 1, 2])], [2]),
    "one layer, nothing": ([vector([3, 1, 2])], [0]),
    "one layer, everything": ([vector([3, 1, 2])], [3]),
    "ties at the global threshold": ([vector([1, 1, 1]), vector([5, 5, 5, 1, 1, 1])], [1, 3]),
    "everything equal": ([vector([1, -1, 1]), vector([-1, 1]), vector([1, 1, 1, 1])], [3, 0, 1]),
    "all zeros": ([vector([0.0, -0.0]), vector([-0.0, 0.0, 0.0])], [1, 2]),
    "zeros beside values": ([vector([0.0, 0.0, -0.0]), vector([1, 2, 3])], [3, 0]),
    "full layer beside a needy one": ([vector([1, 2, 3]), vector([10, 20, 30, 40])], [3, 0]),
    "empty share beside the richest": ([vector([9, 9, 9, 9]), vector([1, 2, 3, 4])], [0, 2]),
    "the largest of all floats": (
        [vector([0.0]) for _ in range(4)] + [vector([np.finfo(np.float32).max])],
        [0, 0, 0, 0, 1],
    ),
    "one value each": ([vector([x]) for x in (5, 1, 4, 2, 3)], [0, 1, 0, 1, 0]),
    "odd, mixed": (
        [
            vector([1, 2, 3, 4]),
            vector([10, 20, 30]),
            vector([0.1, 0.2]),
            vector([7]),
            vector([6, 8]),
        ],
        [4, 0, 1, 1, 0],
    ),
    "one ulp apart": (
        [vector([1, 1, BELOW_ONE]), vector([ABOVE_ONE, 1, 1]), vector([BELOW_ONE, ABOVE_ONE])],
        [2, 0, 1],
    ),
    "subnormals": (
        [vector([TINY, 2 * TINY, 0]), vector([SMALLEST_NORMAL, LARGEST_SUBNORMAL])],
        [2, 0],
    ),
    "huge range": (
        [vector([LARGEST, 1e30, 1]), vector([TINY, 0, 1e-30]), vector([1, LARGEST, 2])],
        [0, 3, 1],
    ),
    "needy layer last": (
        [
            vector(np.linspace(0.1, 0.9, 20)),
            vector(np.linspace(0.2, 0.8, 20)),
            vector(np.linspace(0.3, 1.0, 20)),
            vector([*np.linspace(10, 24, 15), *np.linspace(0.01, 0.05, 5)]),
        ],
        [0, 0, 10, 5],
    ),
}


# -------------------------------------------------------------------- oracles


def bits(values: np.ndarray) -> list[int]:
    """The bit patterns, so that -0.0 and 0.0 differ."""
    assert values.dtype == F32
    return np.ascontiguousarray(values).view(np.uint32).tolist()


def magnitudes(v: np.ndarray) -> list[float]:
    """a_1 >= a_2 >= ... of one layer."""
    return sorted((abs(x) for x in v.tolist()), reverse=True)


def nth(a: Sequence[float], k: int) -> float:
    """a_k, with a_0 = inf and a_{n+1} = 0."""
    return math.inf if k == 0 else 0.0 if k == len(a) + 1 else a[k - 1]


def count(v: np.ndarray, t: float) -> int:
    """N(t): how many magnitudes are at least t."""
    return sum(abs(x) >= t for x in v.tolist())


def is_threshold(v: np.ndarray, k: int, t: float) -> bool:
    """#{a > t} <= k <= #{a >= t}."""
    return sum(abs(x) > t for x in v.tolist()) <= k <= count(v, t)


def kept(v: np.ndarray, k: int) -> list[int]:
    """Indices of the k largest magnitudes, the lower index first among equals, ascending."""
    values = v.tolist()
    return sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:k])


def kept_globally(v: Sequence[np.ndarray], budget: int) -> list[list[int]]:
    """Layer-local indices of the Global Top-k selection, lower flat index first among equals."""
    flat = [
        (-abs(x), layer, i) for layer, part in enumerate(v) for i, x in enumerate(part.tolist())
    ]
    chosen = sorted(flat)[:budget]
    return [sorted(i for _, at, i in chosen if at == layer) for layer in range(len(v))]


def global_counts(v: Sequence[np.ndarray], budget: int) -> list[int]:
    return [len(indices) for indices in kept_globally(v, budget)]


def fresh(v: Sequence[np.ndarray], k: Sequence[int]) -> list[float]:
    """Fresh thresholds, with the rule for layers that send nothing or everything."""
    between = sorted(
        nth(magnitudes(part), c) for part, c in zip(v, k, strict=True) if 0 < c < len(part)
    )
    t = []
    for part, c in zip(v, k, strict=True):
        a = magnitudes(part)
        if 0 < c < len(a):
            t.append(a[c - 1])
        elif not between:
            t.append(a[0] if c == 0 else a[-1])
        else:
            lower_median = between[(len(between) - 1) // 2]
            t.append(max(a[0], lower_median) if c == 0 else min(a[-1], lower_median))
    return t


def pairs(v: Sequence[np.ndarray], k: Sequence[int], t: Sequence[float]) -> list[tuple[int, int]]:
    """(lo, hi) of every pair; with an odd number of layers the middle one is in none."""

    def rank(layer: int) -> tuple[float, int, int]:
        kind = 0 if k[layer] == len(v[layer]) else 2 if k[layer] == 0 else 1
        return t[layer], kind, layer

    order = sorted(range(len(v)), key=rank)
    return [(order[i], order[-1 - i]) for i in range(len(v) // 2)]


def one_step(
    v: Sequence[np.ndarray], k: Sequence[int], t: Sequence[float]
) -> tuple[list[int], list[float]]:
    """One adjustment, straight from its definition."""
    k_new, t_new = list(k), list(t)
    for lo, hi in pairs(v, k, t):
        t1, t2 = t[lo], t[hi]
        mid = (t1 + t2) / 2
        if not t1 < mid < t2:
            continue
        if k[lo] - count(v[lo], t2) <= count(v[hi], t1) - k[hi]:
            d = k[lo] - count(v[lo], mid)
            t_new[lo] = mid
            t_new[hi] = nth(magnitudes(v[hi]), k[hi] + d) if d > 0 else t2
        else:
            d = count(v[hi], mid) - k[hi]
            t_new[hi] = mid
            t_new[lo] = nth(magnitudes(v[lo]), k[lo] - d) if d > 0 else t1
        k_new[lo] -= d
        k_new[hi] += d
    return k_new, t_new


def largest_remainder(budget: int, sizes: Sequence[int]) -> list[int]:
    """The proportional split in Python's unbounded integers."""
    n = sum(sizes)
    k = [budget * size // n for size in sizes]
    rest = sorted(range(len(sizes)), key=lambda i: (-(budget * sizes[i] % n), i))
    for i in rest[: budget - sum(k)]:
        k[i] += 1
    return k


def reached_global(v: Sequence[np.ndarray], k: Sequence[int]) -> bool:
    """max over layers of a_{k+1} <= min over layers of a_k."""
    a = [magnitudes(part) for part in v]
    outside = max(nth(part, c + 1) for part, c in zip(a, k, strict=True))
    inside = min(nth(part, c) for part, c in zip(a, k, strict=True))
    return outside <= inside
