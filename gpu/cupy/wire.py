"""`reference.wire` for a GPU: values are rounded on the device, indices are encoded on the host."""

from __future__ import annotations

from gpu.cupy import device
from gpu.numba import wire
from reference.ops import Index, Vector
from reference.wire import Bytes


class Wire(wire.Wire):
    """Messages on the host from entries on the device."""

    def encode(self, index: Index, values: Vector, n: int, value_dtype: str = "float32") -> Bytes:
        """See `reference.wire.encode`; the message is on the host, as is `decode`'s selection."""
        return super().encode(device.to_host(index), device.to_host(values), n, value_dtype)
