"""The primitives on one layer: the definition that every backend reproduces bit for bit.

A vector is a one-dimensional float32 array; an index array is int64, ascending, without repeats.
Functions named by a verb that changes something (`accumulate`, `scatter_add`, `scale`) work in
place; all others do not change their arguments. This is sections 1 and 2 of `docs/algorithm.md` as
code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""Values (n)."""
Index = NDArray[np.int64]
"""Where entries are, ascending, without repeats (k); also offsets and other integers."""
Gradient = Vector | Sequence[Vector]
"""A gradient (n), or the vectors that make it up, one after another."""
Selection = tuple[Index, Vector]
"""The index and the values of selected entries."""


class Head(NamedTuple):
    """The largest entries of a layer that a selection has come across.

    positions: where they are in the layer, ascending; an empty array if the selection was not told
    what to expect. values: their values. chosen: how many of them were selected: the largest, with
    the lower position first among equals. threshold: the smallest selected magnitude, infinity if
    none was selected. floor: every value with a larger magnitude is among the entries.
    """

    positions: NDArray[np.integer[Any]]
    values: Vector
    chosen: int
    threshold: float
    floor: float


class NonFiniteError(ValueError):
    """A vector that must be finite holds NaN or infinity."""


def zeros(n: int) -> Vector:
    """A new vector of n times +0.0."""
    return np.zeros(n, dtype=np.float32)


def to_host(array: NDArray[Any]) -> NDArray[Any]:
    """The array as a numpy array, for work outside these primitives; here the same object."""
    return array


def from_host(array: NDArray[Any]) -> NDArray[Any]:
    """A numpy array as an array for these primitives; here the same object."""
    return array


def accumulate(residual: Vector, gradient: Vector) -> None:
    """residual += gradient: the residual becomes v, the accumulated gradient. Shapes (n), (n)."""
    np.add(residual, gradient, out=residual)


def all_finite(v: Vector) -> bool:
    """Whether v (n) holds neither NaN nor infinity."""
    return bool(np.isfinite(v).all())


def top_k(v: Vector, k: int) -> Selection:
    """Select exactly k entries of v (n): larger |v| first, the lower index first among equals.

    Returns (index, values), both of length k, sorted by index; values are bit-identical to
    v[index]. −0.0 and 0.0 are equal magnitudes. Raises NonFiniteError if v holds NaN or
    infinity, ValueError unless 0 <= k <= n.
    """
    if not 0 <= k <= v.size:
        raise ValueError(f"k must lie in 0..{v.size}, not {k}")
    if not all_finite(v):
        raise NonFiniteError("NaN or infinity in the accumulated gradient")
    magnitude = np.abs(v)
    threshold = kth_largest(v, k)
    above = np.flatnonzero(magnitude > threshold)
    ties = np.flatnonzero(magnitude == threshold)[: k - above.size]
    index = np.sort(np.concatenate([above, ties])).astype(np.int64, copy=False)
    return index, v[index]


def select(residual: Vector, gradient: Vector, k: int, hint: float) -> tuple[Index, Vector, float]:  # noqa: ARG001
    """One layer's step: accumulate, then select. Returns index (k), values (k) and threshold a_k.

    Afterwards residual (n) holds v, so that its counts and thresholds can still be computed;
    `scatter_subtract` ends the step. `hint`, any float, is an estimate of a_k (that of the last
    step); it may save work and never changes the result. Errors as in `top_k`.
    """
    accumulate(residual, gradient)
    index, values = top_k(residual, k)
    return index, values, kth_largest(values, k)


def select_layers(
    residual: Vector,
    gradient: Gradient,
    offsets: Index,
    k: Index,
    hints: NDArray[np.float64],
    expected: Index | None = None,  # noqa: ARG001
) -> tuple[Index, Vector, NDArray[np.float64], list[Head]]:
    """`select` on m neighbouring layers in one call.

    Layer i lies at offsets[i]..offsets[i+1] of residual and gradient. Shapes: offsets (m + 1), k
    and hints (m). Returns index (Σk), which counts from the start of residual, values (Σk),
    thresholds (m) and m heads. A layer's head holds the k selected entries and, at the backend's
    choice, the largest of those not selected; they suffice for most later questions about v.
    expected (m): about how many of each layer's entries the caller may need in the end, at least k;
    it changes no result.
    """
    whole = gradient if isinstance(gradient, np.ndarray) else np.concatenate(gradient)
    chosen = [
        select(residual[start:stop], whole[start:stop], int(kl), float(hint))
        for start, stop, kl, hint in zip(offsets[:-1], offsets[1:], k, hints, strict=True)
    ]
    indices, values, thresholds = zip(*chosen, strict=True)
    positions = [index + start for index, start in zip(indices, offsets[:-1], strict=True)]
    heads = [
        Head(index, chosen, index.size, t, t)
        for index, chosen, t in zip(indices, values, thresholds, strict=True)
    ]
    return np.concatenate(positions), np.concatenate(values), np.array(thresholds), heads


def top_k_of_rest(v: Vector, offsets: Index, heads: Sequence[Head], k: int) -> Selection:
    """The k largest of what `select_layers` has not selected from m neighbouring layers.

    v (n): as `select_layers` left it; offsets (m + 1); a head for each layer. The index counts from
    the start of v, ascending; the lower index comes first among equals. ValueError unless at least
    k values are left.
    """
    left = np.ones(v.size, dtype=np.bool_)
    for start, head in zip(offsets, heads, strict=False):
        left[start + head.positions[top_k(head.values, head.chosen)[0]]] = False
    positions = np.flatnonzero(left)
    index, values = top_k(v[positions], k)
    return positions[index], values


def kth_largest(v: Vector, k: int) -> float:
    """a_k, the k-th largest magnitude of v (n), with a_0 = inf and a_{n+1} = 0.

    ValueError unless 0 <= k <= n + 1.
    """
    if not 0 <= k <= v.size + 1:
        raise ValueError(f"k must lie in 0..{v.size + 1}, not {k}")
    if k == 0:
        return math.inf
    if k == v.size + 1:
        return 0.0
    position = v.size - k
    return float(np.partition(np.abs(v), position)[position])


def float32_ceiling(t: float) -> np.float32:
    """The least float32 >= max(t, 0).

    Comparing a magnitude with it gives the same as an exact comparison with t.
    """
    if t > float(np.finfo(np.float32).max):
        return np.float32(np.inf)
    if t <= 0:
        return np.float32(0)
    nearest = np.float32(t)
    return nearest if float(nearest) >= t else np.nextafter(nearest, np.float32(np.inf))


def count_at_least(v: Vector, t: float) -> int:
    """N(t) = #{ |v_i| >= t } over v (n), for a float64 threshold t, compared exactly."""
    return int(np.count_nonzero(np.abs(v) >= float32_ceiling(t)))


def scatter_add(target: Vector, index: Index, values: Vector) -> None:
    """target[index] += values, in place; index holds no repeats."""
    target[index] += values


def scatter_subtract(target: Vector, index: Index, values: Vector) -> None:
    """target[index] −= values, in place; index holds no repeats.

    It turns the accumulated gradient into the residual: +0.0 where a value was sent unchanged,
    otherwise what rounding dropped.
    """
    target[index] -= values


def scale(v: Vector, factor: float) -> None:
    """v *= float32(factor), in place."""
    np.multiply(v, np.float32(factor), out=v)


def l2_norm(v: Vector) -> float:
    """The L2 norm of v (n), in float64."""
    return math.sqrt(float(np.sum(np.square(v, dtype=np.float64))))


def l2_norms(v: Vector, offsets: Index) -> NDArray[np.float64]:
    """The L2 norm of each of m layers: layer i lies at offsets[i]..offsets[i+1] of v.

    Shapes: offsets (m + 1), norms (m).
    """
    return np.array([l2_norm(v[start:stop]) for start, stop in pairwise(offsets)], dtype=np.float64)


def clip_norm(gradient: Vector, limit: float) -> None:
    """Scale gradient (n), in place, to the L2 norm `limit` if its norm is larger.

    It is the gradient of the rank alone [ours].
    """
    norm = l2_norm(gradient)
    if norm > limit:
        scale(gradient, limit / norm)


def sgd_update(
    weights: Vector,
    momentum: Vector,
    update: Vector,
    lr: float,
    mu: float,
    weight_decay: float,
    nesterov: bool,
) -> None:
    """u += weight_decay·w; m = μ·m + u; w −= lr·m, in place, each operation rounded to float32.

    Shapes (n). With Nesterov w −= lr·(u + μ·m), the form of Sutskever et al. (2013) that the
    frameworks use. The momentum works on u, the mean of what the ranks sent, after error feedback;
    the learning rate is not part of the residual.
    """
    update += np.float32(weight_decay) * weights
    momentum *= np.float32(mu)
    momentum += update
    direction = update + np.float32(mu) * momentum if nesterov else momentum
    weights -= np.float32(lr) * direction
