"""`reference.wire` for a GPU: entries are rounded on the device, the indices' code is the host's
work.
"""

from __future__ import annotations

from gpu.cupy import device
from gpu.numba import wire
from reference.ops import Index, Vector
from reference.wire import Bytes


class Wire(wire.Wire):
    """The host's messages of entries on the device."""

    def encode(self, index: Index, values: Vector, n: int, value_dtype: str = "float32") -> Bytes:
        """See `reference.wire.encode`; the message lies on the host, as `decode`'s selection."""
        return super().encode(device.to_host(index), device.to_host(values), n, value_dtype)
