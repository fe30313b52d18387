"""`reference.wire` for CPU threads, compiled by numba: the same bytes.

The code of the indices is written and read in one pass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gpu import base
from gpu.numba.cache import njit
from reference.ops import Index, Selection, Vector
from reference.wire import (
    DAMAGED,
    Bytes,
    MessageError,
    bytes_to_values,
    low_bits,
    payload_size,
    pieces,
    seal,
    unseal,
    values_to_bytes,
)

DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
"""A de Bruijn sequence: after multiplication with 2**b the upper six bits determine b."""
WHICH = np.zeros(64, dtype=np.int64)
"""b of 2**b, by these six bits."""
for _bit in range(64):
    WHICH[(int(DE_BRUIJN) << _bit & 0xFFFFFFFFFFFFFFFF) >> 58] = _bit


class Wire(base.Wire):
    """Messages whose indices are written and read in one pass."""

    def encode(self, index: Index, values: Vector, n: int, value_dtype: str = "float32") -> Bytes:
        """See `reference.wire.encode`."""
        k = index.size
        if not payload_size(n, k, value_dtype):
            return np.empty(0, dtype=np.uint8)
        _, lows, highs = pieces(n, k, value_dtype)
        code = np.zeros(_words(lows) + _words(highs), dtype=np.uint64)
        low_code, high_code = code[: _words(lows)], code[_words(lows) :]
        _write(np.ascontiguousarray(index, dtype=np.int64), low_bits(n, k), low_code, high_code)
        code_bytes = low_code.view(np.uint8)[:lows], high_code.view(np.uint8)[:highs]
        return seal(
            np.concatenate([values_to_bytes(values, value_dtype), *code_bytes]), n, k, value_dtype
        )

    def decode(self, payload: Bytes, n: int, k: int, value_dtype: str = "float32") -> Selection:
        """See `reference.wire.decode`."""
        body = unseal(payload, n, k, value_dtype)
        index = np.empty(k, dtype=np.int64)
        if not k:
            return index, np.empty(0, dtype=np.float32)
        values, lows, _ = pieces(n, k, value_dtype)
        if not _read(
            index,
            low_bits(n, k),
            _as_words(body[values : values + lows]),
            _as_words(body[values + lows :]),
            n,
        ):
            raise MessageError(DAMAGED)
        return index, bytes_to_values(body[:values], value_dtype)


def _words(size: int) -> int:
    """64-bit words for so many bytes, and one more, since two are read at a time."""
    return size // 8 + 2


def _as_words(data: Bytes) -> NDArray[np.uint64]:
    words = np.zeros(_words(data.size), dtype=np.uint64)
    words.view(np.uint8)[: data.size] = data
    return words


@njit(nogil=True)
def _write(index, low, low_code, high_code):
    """Write the indices (k) to the words of both strings of bits, which are zero before."""
    mask, width = (np.uint64(1) << np.uint64(low)) - np.uint64(1), np.uint64(low)
    for i in range(index.size):
        entry = np.uint64(index[i])
        bit = np.uint64(i) * width
        word, shift = bit >> np.uint64(6), bit & np.uint64(63)
        low_code[word] |= (entry & mask) << shift
        low_code[word + np.uint64(1)] |= ((entry & mask) >> np.uint64(1)) >> (np.uint64(63) - shift)
        bit = (entry >> width) + np.uint64(i)
        high_code[bit >> np.uint64(6)] |= np.uint64(1) << (bit & np.uint64(63))


@njit(nogil=True)
def _read(index, low, low_code, high_code, n):
    """Fill index (k) from both strings of bits.

    Returns False unless they hold k ascending indices within 0..n−1.
    """
    mask, width = (np.uint64(1) << np.uint64(low)) - np.uint64(1), np.uint64(low)
    count, last, good = 0, np.int64(-1), True
    for at in range(high_code.size):
        word = high_code[at]
        while word:
            if count == index.size:
                return False
            lowest = word & (~word + np.uint64(1))
            word ^= lowest
            high = np.uint64(64 * at - count) + np.uint64(
                WHICH[(lowest * DE_BRUIJN) >> np.uint64(58)]
            )
            bit = np.uint64(count) * width
            start, shift = bit >> np.uint64(6), bit & np.uint64(63)
            lower = (low_code[start] >> shift) | (
                (low_code[start + np.uint64(1)] << np.uint64(1)) << (np.uint64(63) - shift)
            )
            entry = np.int64(high << width | (lower & mask))
            good &= entry > last
            last = entry
            index[count] = entry
            count += 1
    return good and count == index.size and last < n
