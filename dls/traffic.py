"""How many bytes a sparse exchange moves, compared with a ring Allreduce of the whole gradient.

In an allgather every rank receives the messages of all others, so its bytes grow with P; those of a
ring Allreduce hardly do. The figures are the payloads that cross a rank's link, without packet
headers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reference import methods, wire

VALUE_BYTES = 4
"""Bytes of a gradient value in an Allreduce, float32."""
DENSITIES = (0.1, 0.01, 0.001, 0.0003)
"""The densities in the table of docs/cluster.md."""
RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
"""The numbers of ranks in that table."""
VALUES = 25_600_000
"""The size of the gradient in that table."""


def ring_bytes(values: int, ranks: int) -> int:
    """Bytes that a rank sends, and also receives, in a ring Allreduce of so many float32 values.

    The gradient is cut into P pieces. Each rank passes on P − 1 pieces while they are summed and
    P − 1 while the sums are distributed: 2 · 4n · (P − 1) / P bytes. No Allreduce made of messages
    between ranks moves less (Patarasuk and Yuan, 2009).
    """
    return 2 * VALUE_BYTES * values * (ranks - 1) // ranks


def allgather_bytes(message: int, ranks: int) -> int:
    """Bytes that a rank receives if every other rank sends it a message of that size."""
    return message * (ranks - 1)


def gtopk_bytes(message: int, ranks: int) -> int:
    """The most bytes that a rank receives in gTop-k: one message of that size in each round."""
    inside = ranks.bit_length() - 1
    return message * (inside + (ranks > 1 << inside))


COLLECTIVES = {"allgather": allgather_bytes, "gtopk": gtopk_bytes}
"""Bytes that a rank receives in each collective, from message size and number of ranks."""


def share_of_ring(values: int, density: float, ranks: int, value_dtype: str = "float32") -> float:
    """What a rank receives in an allgather, as a multiple of a ring Allreduce.

    That is P · m / 8n for messages of m bytes and at least 2 ranks.
    """
    message = wire.payload_size(values, methods.budget(values, density), value_dtype)
    return allgather_bytes(message, ranks) / (2 * VALUE_BYTES * values * (ranks - 1) / ranks)


def break_even(values: int, density: float, value_dtype: str = "float32") -> int:
    """The smallest P at which a rank receives more than in a ring Allreduce: P > 8n / m."""
    message = wire.payload_size(values, methods.budget(values, density), value_dtype)
    return max(2, 2 * VALUE_BYTES * values // message + 1)


def readable(count: float) -> str:
    """A number of bytes as text, in the largest unit (kB, MB, GB, …) that it reaches."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    unit = min(len(units) - 1, (len(str(int(count))) - 1) // 3)
    return f"{count / 1000**unit:.{2 if unit else 0}f} {units[unit]}"


def table(
    densities: Sequence[float] = DENSITIES, ranks: Sequence[int] = RANKS, values: int = VALUES
) -> Iterator[str]:
    """The lines of a table in Markdown: received bytes as multiples of a ring Allreduce.

    Multiples above 1 are bold.
    """
    heads = ["density", "bytes an entry", *(f"{each:,}" for each in ranks), "more from"]
    yield f"| {' | '.join(heads)} |"
    yield "| --- " * len(heads) + "|"
    for density in densities:
        k = methods.budget(values, density)
        shares = [share_of_ring(values, density, each) for each in ranks]
        cells = [f"{density:g}", f"{wire.payload_size(values, k) / k:.2f}"]
        cells += [f"**{share:.3g}**" if share > 1 else f"{share:.2g}" for share in shares]
        cells += [f"{break_even(values, density):,} ranks"]
        yield f"| {' | '.join(cells)} |"
