"""A network as the clock knows it: how long a message of so many bytes takes from one rank to
another.

A message of m bytes takes latency + m · seconds_per_byte (Hockney 1994), with other numbers in each
range of sizes: MPI libraries send small messages at once (eager) and announce large ones
(rendezvous).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]
LARGEST_RATE = 1e15
"""Bits per second beyond which no network is believed."""
LARGEST_LATENCY = 60.0
"""Seconds beyond which no latency is believed."""
UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
"""Units of times, in seconds."""
RATES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
"""Prefixes of rates."""


class NetworkError(ValueError):
    """A network that cannot be: one clear line."""


@dataclass(frozen=True)
class Range:
    """Messages of `least` bytes and more: seconds a message, and seconds a byte."""

    least: int
    latency: float
    seconds_per_byte: float

    def __post_init__(self) -> None:
        if not 0 <= self.latency <= LARGEST_LATENCY:
            raise NetworkError(
                f"a latency of {self.latency:g} s is impossible: it must lie between 0 and"
                f" {LARGEST_LATENCY:g} s"
            )
        if not (0 <= self.seconds_per_byte < math.inf):
            raise NetworkError(f"{self.seconds_per_byte:g} s a byte is impossible")


@dataclass(frozen=True)
class Network:
    """A network between ranks that are all alike.

    ranges: by size, the first one from 0 bytes. name: for people. assumed: its numbers were not
    measured. doubling: bytes in sum up to which the MPI library gathers in ⌈log2 P⌉ messages, each
    twice as long as the one before, and not in a ring of P − 1; where it is above 0 a sum halves
    and doubles its messages, and folds ranks beyond a power of two. poll: seconds by which each
    message is late while its ranks compute, as nobody looks after it. tax: seconds of computing
    that each byte costs which a rank sends or receives meanwhile, where it has no core to spare.
    """

    ranges: tuple[Range, ...]
    name: str = "network"
    assumed: bool = False
    doubling: int = 0
    poll: float = 0.0
    tax: float = 0.0

    def __post_init__(self) -> None:
        least = [each.least for each in self.ranges]
        if not least or least[0] != 0 or least != sorted(set(least)):
            raise NetworkError(f"ranges of message sizes must begin at 0 and rise, not {least}")

    @classmethod
    def of(cls, rate: float, latency: float, **options: Any) -> Network:
        """With one range. rate: bits per second; latency: seconds. NetworkError."""
        if not 0 < rate <= LARGEST_RATE:
            raise NetworkError(
                f"a rate of {rate:g} bit/s is impossible: it must lie between 0 and"
                f" {LARGEST_RATE:g} bit/s"
            )
        return cls((Range(0, latency, 8 / rate),), **options)

    def latency(self, sizes: Numbers) -> Numbers:
        """Seconds that messages of these sizes take whatever their length."""
        return self._of(sizes, "latency")

    def wire(self, sizes: Numbers) -> Numbers:
        """Seconds for which messages of these sizes occupy a link."""
        occupied: Numbers = sizes * self._of(sizes, "seconds_per_byte")
        return occupied

    def seconds(self, sizes: Numbers) -> Numbers:
        """Seconds that messages of these sizes take."""
        total: Numbers = self.latency(sizes) + self.wire(sizes)
        return total

    def _of(self, sizes: Numbers, name: str) -> Numbers:
        values = np.array([getattr(each, name) for each in self.ranges])
        if len(values) == 1:
            return np.broadcast_to(values[0], np.shape(sizes))
        starts = [each.least for each in self.ranges]
        found: Numbers = values[np.searchsorted(starts, sizes, side="right") - 1]
        return found

    @property
    def rate(self) -> float:
        """Bits per second of the longest messages; infinite where bytes take no time."""
        per_byte = self.ranges[-1].seconds_per_byte
        return 8 / per_byte if per_byte else math.inf

    def at_rate(self, rate: float) -> Network:
        """The same network with links of another rate for the longest messages, in bits per second.

        What each range adds to the time a byte takes on the wire stays.
        """
        last = self.ranges[-1].seconds_per_byte
        ranges = tuple(
            replace(each, seconds_per_byte=max(0.0, each.seconds_per_byte - last) + 8 / rate)
            for each in self.ranges
        )
        return replace(self, ranges=ranges)


def bits_per_second(text: str) -> float:
    """A rate as tc writes it: 100mbit, 1gbit, 2.5gbit. NetworkError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgt]?)bit", text.strip().lower())
    rate = float(match[1]) * RATES[match[2]] if match else 0.0
    if not 0 < rate <= LARGEST_RATE:
        raise NetworkError(
            f"a rate of {text} is impossible: give one above 0 such as 100mbit or 1gbit"
        )
    return rate


def seconds(text: str) -> float:
    """A time with its unit: 50us, 0.2ms, 1s. NetworkError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|ms|us|µs|ns)", text.strip().lower())
    time = float(match[1]) * UNITS[match[2]] if match else -1.0
    if not 0 <= time <= LARGEST_LATENCY:
        raise NetworkError(f"a latency of {text} is impossible: give one such as 50us or 0.2ms")
    return time


def rate_words(rate: float) -> str:
    """A rate for people: 1.25 Gbit/s."""
    if not math.isfinite(rate):
        return "unlimited"
    places: Sequence[tuple[float, str]] = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))
    for unit, words in places:
        if rate >= unit:
            return f"{rate / unit:.3g} {words}"
    return f"{rate:.3g} bit/s"
