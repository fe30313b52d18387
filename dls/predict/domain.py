"""What predictions were validated for: docs/predict.md says how, and how well."""

from __future__ import annotations

from dls.cost.network import Network, rate_words

RANKS = (2, 8)
"""The fewest and the most ranks."""
RATES = (80e6, 300e6)
"""The lowest and the highest rate of messages, in bits per second."""
LATENCY = 2e-3
"""The longest latency, in seconds."""
VALUES = 1_000_000
"""The most values of a gradient."""


def outside(ranks: int, network: Network, values: int) -> str:
    """Words for what lies outside of it, or ""."""
    words = []
    if not RANKS[0] <= ranks <= RANKS[1]:
        words.append(f"{ranks:,} ranks, not {RANKS[0]} to {RANKS[1]}")
    if not RATES[0] <= network.rate <= RATES[1]:
        low, high = (rate_words(each) for each in RATES)
        words.append(f"{rate_words(network.rate)}, not {low} to {high}")
    if network.ranges[0].latency > LATENCY:
        words.append(f"a latency above {1000 * LATENCY:g} ms")
    if values > VALUES:
        words.append(f"a gradient of {values:,} values, more than {VALUES:,}")
    return "; ".join(words)
