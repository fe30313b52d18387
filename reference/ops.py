"""The primitives on one layer: the meaning that every backend reproduces bit for bit.

A vector is a one-dimensional float32 array; an index array is int64, ascending, without repeats.
Functions named by a verb that changes something (`accumulate`, `scatter_add`, `scale`) work in
place; all others leave their arguments alone. `docs/algorithm.md`, sections 1 and 2, is the text
this file executes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Index = NDArray[np.int64]
Selection = tuple[Index, Vector]


class Head(NamedTuple):
    """The largest entries of a layer, as a selection has come by them: places in the layer,
    ascending, and values.

    chosen: how many of them, the largest, the lower place first among equals, were selected;
    threshold: the smallest magnitude of these, infinity of none. floor: whatever has a magnitude
    above it is here. places may be missing, as an empty array, where the selection was not told
    what to expect.
    """

    places: NDArray[np.integer[Any]]
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
    """The array as numpy's, for whoever works on it without these primitives; here the same
    object.
    """
    return array


def from_host(array: NDArray[Any]) -> NDArray[Any]:
    """An array of numpy's as these primitives take it; here the same object."""
    return array


def accumulate(residual: Vector, gradient: Vector) -> None:
    """residual += gradient: the residual becomes v, the accumulated gradient. Shapes (n), (n)."""
    np.add(residual, gradient, out=residual)


def all_finite(v: Vector) -> bool:
    """Whether v (n) holds neither NaN nor infinity."""
    return bool(np.isfinite(v).all())


def top_k(v: Vector, k: int) -> Selection:
    """Choose exactly k entries of v (n): larger |v| first, the lower index first among equals.

    Returns (index, values), both of length k, sorted by index; values are bit-identical to
    v[index]. −0.0 and 0.0 are equal magnitudes. Raises NonFiniteError where v holds NaN or
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
    """One layer's step: accumulate, then choose.

    Returns index (k), values (k) and the threshold a_k.

    Afterwards residual (n) holds v, so that counts and thresholds of it may still be asked for;
    `scatter_subtract` ends the step. `hint`, any float, is a guess of a_k (last step's) that may
    save work and never changes the result. Errors as in `top_k`.
    """
    accumulate(residual, gradient)
    index, values = top_k(residual, k)
    return index, values, kth_largest(values, k)


def select_layers(
    residual: Vector,
    gradient: Vector,
    offsets: Index,
    k: Index,
    hints: NDArray[np.float64],
    expected: Index | None = None,  # noqa: ARG001
) -> tuple[Index, Vector, NDArray[np.float64], list[Head]]:
    """`select` on m neighbouring layers in one call: layer i lies at offsets[i]..offsets[i+1] of
    residual and gradient.

    Shapes: offsets (m + 1), k and hints (m). Returns index (Σk), places in residual, values (Σk),
    thresholds (m), and m heads. A layer's head holds the k chosen entries and, as it may please the
    backend, the largest of those not chosen; they answer most of what is asked of v later. expected
    (m): about how many of each layer's entries the caller may ask for in the end, k or more; it
    changes no result.
    """
    chosen = [
        select(residual[start:stop], gradient[start:stop], int(kl), float(hint))
        for start, stop, kl, hint in zip(offsets[:-1], offsets[1:], k, hints, strict=True)
    ]
    indices, values, thresholds = zip(*chosen, strict=True)
    places = [index + start for index, start in zip(indices, offsets[:-1], strict=True)]
    heads = [
        Head(index, chosen, index.size, t, t)
        for index, chosen, t in zip(indices, values, thresholds, strict=True)
    ]
    return np.concatenate(places), np.concatenate(values), np.array(thresholds), heads


def top_k_of_rest(v: Vector, offsets: Index, heads: Sequence[Head], k: int) -> Selection:
    """The k largest of what `select_layers` has not chosen of m neighbouring layers, as places in
    v, ascending.

    v (n) as `select_layers` left it, offsets (m + 1), a head each layer; the lower place first
    among equals. ValueError unless as many are left.
    """
    left = np.ones(v.size, dtype=np.bool_)
    for start, head in zip(offsets, heads, strict=False):
        left[start + head.places[top_k(head.values, head.chosen)[0]]] = False
    places = np.flatnonzero(left)
    index, values = top_k(v[places], k)
    return places[index], values


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
    """The least float32 >= max(t, 0): a magnitude compares with it as exactly as it would with t in
    float64.
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

    What is left of the accumulated gradient is the residual: +0.0 where the very value was sent,
    else what rounding dropped.
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
    """Scale gradient (n), in place, to the L2 norm `limit` where its norm is larger [ours: the
    rank's own gradient].
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

    Shapes (n).

    With Nesterov w −= lr·(u + μ·m), the form of Sutskever et al. (2013) that the frameworks use.
    The momentum works on u, the mean of what the ranks sent, after error feedback; the learning
    rate stays outside the residual.
    """
    update += np.float32(weight_decay) * weights
    momentum *= np.float32(mu)
    momentum += update
    direction = update + np.float32(mu) * momentum if nesterov else momentum
    weights -= np.float32(lr) * direction
