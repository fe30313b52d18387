"""What a run must keep to go on with the same bits.

Every part registers what it keeps, and one loop saves, loads and hashes it all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.backends import Ops

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Part:
    """What one part of a run keeps.

    save: returns it, in the host's memory. load: takes it over; None: it follows from the rest, and
    is saved for other programs only. shared: it is the same on all ranks, and saved once. hashed:
    the ranks compare it.
    """

    save: Callable[[], Arrays]
    load: Callable[[Arrays], None] | None = None
    shared: bool = False
    hashed: bool = False


class States:
    """The parts of a run, in the order in which they were registered."""

    def __init__(self) -> None:
        self._parts: list[Part] = []

    def register(self, part: Part) -> None:
        """Add a part."""
        self._parts.append(part)

    def save(self, shared: bool) -> dict[str, NDArray[Any]]:
        """The arrays that are the same on all ranks, or those of this rank alone.

        Every rank calls it: parts may communicate.
        """
        return _together(part for part in self._parts if part.shared is shared)

    def expected(self, shared: bool) -> dict[str, NDArray[Any]]:
        """The arrays that `load` takes, with their present values."""
        return _together(self._loadable(shared))

    def load(self, arrays: Arrays, shared: bool) -> None:
        """Take over the arrays that `expected` names. ValueError where a part cannot."""
        for part in self._loadable(shared):
            assert part.load is not None
            part.load({name: arrays[name] for name in part.save()})

    def _loadable(self, shared: bool) -> list[Part]:
        return [part for part in self._parts if part.shared is shared and part.load is not None]

    def hash(self) -> bytes:
        """SHA-256 of what must be the same on all ranks between two steps."""
        digest = hashlib.sha256()
        for part in self._parts:
            if part.hashed:
                for array in part.save().values():
                    digest.update(np.ascontiguousarray(array).data)
        return digest.digest()


def _together(parts: Iterable[Part]) -> dict[str, NDArray[Any]]:
    """The arrays of these parts. ValueError where two of them use the same name."""
    arrays: dict[str, NDArray[Any]] = {}
    for part in parts:
        own = part.save()
        if twice := arrays.keys() & own.keys():
            words = f"two parts of the run keep something called {min(twice)!r}"
            raise ValueError(f"{words}: rename that of your method")
        arrays |= own
    return arrays


def vector(name: str, values: Any, ops: Ops, *, shared: bool) -> Part:
    """A part that is one vector, updated in place. A shared one is also hashed."""

    def load(arrays: Arrays) -> None:
        values[...] = ops.from_host(np.asarray(arrays[name]))

    return Part(lambda: {name: ops.to_host(values)}, load, shared, hashed=shared)
