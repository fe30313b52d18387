"""The message format: how the entries that a rank sends of n values become bytes, and back.

Layout, all little-endian: a CRC-32 (uint32); the k values in the type in which they are sent; then
the k indices, near their entropy, in the code of Elias (1974) and Fano (1971): the lowest
`low_bits` bits of each index, packed, and a string of bits in which bit number
(index >> low_bits) + i is set for entry i. Each of these is padded with zero bits to whole bytes.
n, k and the value type determine the size, so that sizes are never exchanged. If k is 0, the
message has 0 bytes.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from reference.ops import Index, Selection, Vector

Bytes = NDArray[np.uint8]
"""A message, or part of one."""

DAMAGED = "a damaged message: its checksum or its indices are wrong"
"""The text of a MessageError."""


VALUE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""The types in which values can be sent, and their sizes in bytes."""
LARGEST = {"float16": 65504.0, "bfloat16": 2.0**128 - 2.0**120}
"""The largest finite value of the smaller types."""
CHECKSUM = 4
"""Bytes of the CRC-32."""
MAX_RANGE = 2**32
"""The largest n of a message."""


class MessageError(ValueError):
    """A message is damaged or incomplete."""


def low_bits(n: int, k: int) -> int:
    """How many low bits of each index are packed unchanged: floor(log2(n/k)), for 0 < k <= n."""
    return (n // k).bit_length() - 1


def pieces(n: int, k: int, value_dtype: str) -> tuple[int, int, int]:
    """Bytes of the values, of the packed low bits, and of the rest of the indices; k > 0."""
    low = low_bits(n, k)
    return VALUE_BYTES[value_dtype] * k, -(-k * low // 8), -(-(k + ((n - 1) >> low)) // 8)


def payload_size(n: int, k: int, value_dtype: str = "float32") -> int:
    """Bytes of the message that carries k entries of n. ValueError unless 0 <= k <= n <= 2**32."""
    if not 0 <= k <= n <= MAX_RANGE:
        raise ValueError(f"cannot send {k} of {n} entries: 0 <= k <= n <= 2**32 must hold")
    return CHECKSUM + sum(pieces(n, k, value_dtype)) if k else 0


def round_values(values: Vector, value_dtype: str) -> Vector:
    """values (k), finite, as they will arrive: rounded to `value_dtype`, ties to even, as float32.

    What rounding drops is exact in float32, so values − round_values(values) stays in the residual
    and nothing is lost. This also holds for a value outside the type's finite range, of which the
    largest part that fits is sent.
    """
    if value_dtype == "float32":
        return values
    if value_dtype == "float16":
        with np.errstate(over="ignore"):
            rounded = values.astype(np.float16).astype(np.float32)
    else:
        bits = values.view(np.uint32)
        rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
    fits = np.isfinite(rounded)
    return (
        rounded if bool(fits.all()) else np.where(fits, rounded, _cut(values, LARGEST[value_dtype]))
    )


def _cut(values: Vector, largest: float) -> Vector:
    """The part that is sent of values (k) beyond `largest`: a multiple of their float32 spacing.

    It is the largest such multiple within ±largest, so value − part is exact. From 2**39 on the
    spacing of float32 exceeds the range of float16, and the part is 0.
    """
    power_of_two = (values.view(np.uint32) & 0x7F800000).view(np.float32)
    spacing = np.maximum(power_of_two, np.float32(largest / 2)) * np.float32(
        2.0**-23
    )  # values within the range do not matter here
    cut: Vector = np.copysign(np.floor(np.float32(largest) / spacing) * spacing, values)
    return cut


def encode(index: Index, values: Vector, n: int, value_dtype: str = "float32") -> Bytes:
    """The message for a selection from n values. ValueError unless 0 <= k <= n <= 2**32.

    index int64 (k), ascending; values float32 (k), as `round_values` returns them.
    """
    k = index.size
    if not payload_size(n, k, value_dtype):
        return np.empty(0, dtype=np.uint8)
    low = low_bits(n, k)
    lows = (index[:, None] >> np.arange(low)) & 1
    highs = np.zeros(k + ((n - 1) >> low), dtype=np.uint8)
    highs[(index >> low) + np.arange(k)] = 1
    packed = [
        np.packbits(bits.astype(np.uint8).ravel(), bitorder="little") for bits in (lows, highs)
    ]
    return seal(np.concatenate([values_to_bytes(values, value_dtype), *packed]), n, k, value_dtype)


def decode(payload: Bytes, n: int, k: int, value_dtype: str = "float32") -> Selection:
    """The selection in a message of `encode`: index int64 (k), values float32 (k).

    MessageError if it is damaged or incomplete.
    """
    body = unseal(payload, n, k, value_dtype)
    if not k:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)
    low = low_bits(n, k)
    ends = np.cumsum(pieces(n, k, value_dtype))[:2]
    values, lows, highs = np.split(body, ends)
    bits = np.unpackbits(lows, bitorder="little")[: k * low].reshape(k, low).astype(np.int64)
    position = np.flatnonzero(np.unpackbits(highs, bitorder="little"))
    if position.size != k:
        raise MessageError(DAMAGED)
    index = ((position - np.arange(k)) << low) | (bits @ (1 << np.arange(low)))
    if index[-1] >= n or np.any(np.diff(index) <= 0):
        raise MessageError(DAMAGED)
    return index, bytes_to_values(values, value_dtype)


def seal(body: Bytes, n: int, k: int, value_dtype: str) -> Bytes:
    """The message: checksum and body."""
    return np.concatenate(
        [np.array([checksum(body, n, k, value_dtype)], dtype="<u4").view(np.uint8), body]
    )


def checksum(body: Bytes, n: int, k: int, value_dtype: str) -> int:
    """The CRC-32 of n, k, the type and the body, so that a receiver notices another n or k too."""
    return zlib.crc32(body.data, zlib.crc32(f"{k} of {n} in {value_dtype}".encode()))


def unseal(payload: Bytes, n: int, k: int, value_dtype: str) -> Bytes:
    """The body of a message of k entries of n, contiguous.

    MessageError if length or checksum is wrong.
    """
    size = payload_size(n, k, value_dtype)
    if payload.size != size:
        raise MessageError(f"a message of {k} of {n} entries has {size} bytes, not {payload.size}")
    body = np.ascontiguousarray(payload[CHECKSUM:])
    if size and checksum(body, n, k, value_dtype) != int.from_bytes(
        payload[:CHECKSUM].tobytes(), "little"
    ):
        raise MessageError(DAMAGED)
    return body


def values_to_bytes(values: Vector, value_dtype: str) -> Bytes:
    """Values (k) as bytes of `value_dtype`."""
    if value_dtype == "bfloat16":
        return (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
    return values.astype("<f4" if value_dtype == "float32" else "<f2").view(np.uint8)


def bytes_to_values(data: Bytes, value_dtype: str) -> Vector:
    """The float32 values (k) in bytes of `value_dtype`."""
    if value_dtype == "bfloat16":
        return (data.copy().view("<u2").astype(np.uint32) << 16).view(np.float32)
    return data.copy().view("<f4" if value_dtype == "float32" else "<f2").astype(np.float32)
