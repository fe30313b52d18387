"""`reference.wire` for a GPU: entries are rounded on the device; the code of the indices, bit by bit, is the host's work."""

from __future__ import annotations

from reference.ops import Index, Selection, Vector
from reference.wire import (  # arithmetic on single numbers, what works on any array, and the message's bytes on the host
    CHECKSUM,
    DAMAGED,
    MAX_RANGE,
    VALUE_BYTES,
    Bytes,
    MessageError,
    bytes_to_values,
    checksum,
    low_bits,
    payload_size,
    pieces,
    round_values,
    seal,
    unseal,
    values_to_bytes,
)

from gpu import numba_wire as host
from gpu.cupy_ops import to_host

__all__ = [
    "CHECKSUM",
    "DAMAGED",
    "MAX_RANGE",
    "VALUE_BYTES",
    "Bytes",
    "MessageError",
    "bytes_to_values",
    "checksum",
    "decode",
    "encode",
    "low_bits",
    "payload_size",
    "pieces",
    "round_values",
    "seal",
    "unseal",
    "values_to_bytes",
]


def encode(index: Index, values: Vector, n: int, value_dtype: str = "float32") -> Bytes:
    """See `reference.wire.encode`; the message lies on the host."""
    return host.encode(to_host(index), to_host(values), n, value_dtype)


def decode(payload: Bytes, n: int, k: int, value_dtype: str = "float32") -> Selection:
    """See `reference.wire.decode`; the selection lies on the host until `scatter_add` takes it."""
    return host.decode(payload, n, k, value_dtype)
