"""Networks that one may have, as assumptions: nobody has measured them for you.

Rates are those of the links less what the headers of Ethernet, IP and TCP take (5 %); latencies are
what MPI needs for a small message over such a network, on hosts that are not busy.
"""

from __future__ import annotations

from dls.cost.network import Network

PAYLOAD = 0.95
"""Of a link's rate, the share that messages have."""
MPICH_DOUBLING = 512 * 1024
"""Bytes in sum up to which MPICH gathers in ⌈log2 P⌉ messages, by default."""
TICK = 0.002
"""Seconds between two looks at what is under way while a rank computes; see `dls.comm.mover`."""


def network(rate: float, latency: float, name: str) -> Network:
    """An assumed network of this rate (bits per second) and latency (seconds)."""
    return Network.of(
        PAYLOAD * rate,
        latency,
        name=name,
        assumed=True,
        doubling=MPICH_DOUBLING,
        poll=TICK / 2,
    )


PROFILES = {
    "ethernet-1g": network(1e9, 50e-6, "1 Gbit/s Ethernet"),
    "ethernet-10g": network(10e9, 30e-6, "10 Gbit/s Ethernet"),
    "infiniband-100g": network(100e9, 2e-6, "100 Gbit/s InfiniBand"),
    "internet": network(100e6, 30e-3, "internet, 100 Mbit/s and 30 ms"),
}
"""By the names that `--network` takes."""
