"""How the ranks' columns come to rank 0: packed together, in few messages of limited size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dls.comm.base import Comm

LIMIT = 2**25
"""Bytes that rank 0 receives at once, of all ranks together; it holds them twice for a moment."""


@dataclass(frozen=True)
class Piece:
    """A part of a column: its name, and which layers of it, its second axis."""

    name: str
    layers: slice


def gathered(
    comm: Comm, columns: Mapping[str, NDArray[Any]], limit: int = LIMIT
) -> Iterator[tuple[str, slice, NDArray[Any]]]:
    """Bring columns to rank 0, piece by piece.

    columns: arrays [rows, …] by name, of the same shapes on all ranks. Yields on rank 0 a column's
    name, where the piece lies along its second axis, and the piece of every rank [P, rows, …].
    Every rank goes through all of it; the others get nothing.
    """
    for pieces in _batches(columns, comm.size, limit):
        parts = [_cut(columns[piece.name], piece.layers) for piece in pieces]
        received = comm.gather(np.concatenate([_bytes(part) for part in parts]))
        if received is None:
            continue
        begin = 0
        for piece, part in zip(pieces, parts, strict=True):
            own = received[:, begin : begin + part.nbytes]
            values = np.ascontiguousarray(own).view(part.dtype)
            yield piece.name, piece.layers, values.reshape(comm.size, *part.shape)
            begin += part.nbytes


def _batches(
    columns: Mapping[str, NDArray[Any]], ranks: int, limit: int
) -> Iterator[Sequence[Piece]]:
    """Pieces that travel together: as many as come to `limit` bytes of all ranks, at least one."""
    batch: list[Piece] = []
    held = 0
    for piece, size in _pieces(columns, ranks, limit):
        if batch and held + size > limit:
            yield batch
            batch, held = [], 0
        batch.append(piece)
        held += size
    if batch:
        yield batch


def _pieces(
    columns: Mapping[str, NDArray[Any]], ranks: int, limit: int
) -> Iterator[tuple[Piece, int]]:
    """Every column's pieces of at most `limit` bytes of all ranks, and their sizes."""
    for name, column in columns.items():
        total = column.nbytes * ranks
        if column.ndim == 1 or total <= limit:
            yield Piece(name, slice(None)), total
            continue
        layers = column.shape[1]
        width = max(1, layers * limit // total)
        for start in range(0, layers, width):
            stop = min(start + width, layers)
            yield Piece(name, slice(start, stop)), total * (stop - start) // layers


def _cut(column: NDArray[Any], layers: slice) -> NDArray[Any]:
    return column if column.ndim == 1 else np.ascontiguousarray(column[:, layers])


def _bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    return array.reshape(-1).view(np.uint8)
