"""How many bytes an exchange moves: the sparse allgather beside the ring Allreduce of the whole
gradient.

In an allgather every rank gets the messages of all others, so what it receives grows with P; what a
ring Allreduce moves hardly does. Both are what must cross a rank's link, without the headers of
packets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reference import methods, wire

VALUE_BYTES = 4
"""Of a gradient's value in an Allreduce, float32."""
DENSITIES = (0.1, 0.01, 0.001, 0.0003)
RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
VALUES = 25_600_000
"""What the table of docs/cluster.md is about."""


def ring_bytes(values: int, ranks: int) -> int:
    """Bytes that a rank sends in a ring Allreduce of so many float32 values, and as many that it
    receives.

    The gradient travels in P pieces, each to be summed and each to be told, and every rank passes
    on P − 1 of them both times: 2 · 4n · (P − 1) / P. No Allreduce that is made of messages between
    ranks moves less (Patarasuk and Yuan 2009).
    """
    return 2 * VALUE_BYTES * values * (ranks - 1) // ranks


def allgather_bytes(message: int, ranks: int) -> int:
    """Bytes that a rank receives where every other rank gives it a message of that size."""
    return message * (ranks - 1)


def gtopk_bytes(message: int, ranks: int) -> int:
    """Bytes that a rank receives at most in gTop-k, where messages have that size: one in each of
    its rounds.
    """
    inside = ranks.bit_length() - 1
    return message * (inside + (ranks > 1 << inside))


COLLECTIVES = {"allgather": allgather_bytes, "gtopk": gtopk_bytes}
"""About what a rank receives in each, of a message's size and the number of ranks."""


def share_of_ring(values: int, density: float, ranks: int, value_dtype: str = "float32") -> float:
    """What a rank receives in an allgather of one message a rank, as a multiple of what a ring
    Allreduce brings it.

    That is P · m / 8n for a message of m bytes; from 2 ranks on.
    """
    message = wire.payload_size(values, methods.budget(values, density), value_dtype)
    return allgather_bytes(message, ranks) / (2 * VALUE_BYTES * values * (ranks - 1) / ranks)


def break_even(values: int, density: float, value_dtype: str = "float32") -> int:
    """The least number of ranks at which a rank receives more than in a ring Allreduce: the first
    above 8n / m.
    """
    message = wire.payload_size(values, methods.budget(values, density), value_dtype)
    return max(2, 2 * VALUE_BYTES * values // message + 1)


def readable(count: float) -> str:
    """So many bytes, as people read them: in kB, MB, GB, … of which at least one is full."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    place = min(len(units) - 1, (len(str(int(count))) - 1) // 3)
    return f"{count / 1000**place:.{2 if place else 0}f} {units[place]}"


def table(
    densities: Sequence[float] = DENSITIES, ranks: Sequence[int] = RANKS, values: int = VALUES
) -> Iterator[str]:
    """The lines of a table in Markdown: received bytes as multiples of a ring Allreduce's, those
    above 1 in bold.
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
