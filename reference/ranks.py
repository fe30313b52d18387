"""How the residuals and k of P ranks are distributed over P' ranks [ours].

Think of the old ranks as P equal pieces of a line, and of the new ones as P' equal pieces of the
same line. A new rank takes the mean of the old ranks whose pieces overlap its own, weighted by the
overlap. So the mean over the ranks does not change, and the updates u = (1/P) Σ_p … receive the
same gradient in total. With twice as many ranks each old rank is copied to two; with half as many
two ranks become their mean; 3 → 2 gives (2 r_0 + r_1) / 3 and (r_1 + 2 r_2) / 3.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.methods import largest_remainder

State = Mapping[str, NDArray[Any]]
"""What one rank holds, by name.

Integers are counts whose sum is the same on all ranks, such as k.
"""


def shares(old: int, new: int, rank: int) -> dict[int, int]:
    """The old ranks that new rank number `rank` takes over, each with its share.

    The shares sum to `old`. On a line of length old·new, old rank p covers p·new … (p + 1)·new and
    new rank q covers q·old … (q + 1)·old; the share is the length of the overlap.
    """
    start, stop = rank * old, (rank + 1) * old
    return {
        p: min(stop, (p + 1) * new) - max(start, p * new)
        for p in range(start // new, -(-stop // new))
    }


def merge(parts: Iterable[tuple[int, State]]) -> State:
    """The mean of states, weighted by their shares; they are read one after the other.

    A single state is returned unchanged, bit by bit. Floats are summed in float64 and rounded to
    their own type: a mean over the ranks of float32 changes by at most 2⁻²⁴ of the mean of the new
    magnitudes. Counts are divided by largest remainders: their sum does not change, and none
    exceeds its largest old value.
    """
    parts = iter(parts)
    first, second = next(parts), next(parts, None)
    if second is None:
        return first[1]
    kinds = {name: array.dtype for name, array in first[1].items()}
    sums: dict[str, NDArray[Any]] = {
        name: np.zeros(array.shape, np.int64 if array.dtype.kind == "i" else np.float64)
        for name, array in first[1].items()
    }
    whole = 0
    for share, state in chain([first, second], parts):
        whole += share
        for name, weighted in sums.items():
            weighted += share * state[name].astype(weighted.dtype)
    return {name: _mean(weighted, whole, kinds[name]) for name, weighted in sums.items()}


def _mean(weighted: NDArray[Any], whole: int, kind: np.dtype[Any]) -> NDArray[Any]:
    """Σ share·x turned into the mean of x, in its own type."""
    if kind.kind != "i":
        return (weighted / whole).astype(kind)
    counts = weighted.tolist()
    return np.array(
        largest_remainder(sum(counts) // whole, counts) if any(counts) else counts, dtype=kind
    )
