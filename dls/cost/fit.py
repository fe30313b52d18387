"""A network fitted to measured times of messages, or refused where it does not describe them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dls.cost.network import NetworkError, Range

Numbers = NDArray[np.float64]
FEWEST = 3
"""Sizes that each range must hold."""
MEDIAN, WORST = 0.15, 0.6
"""Residuals, as shares of the measured time, beyond which a fit is refused: the median of their
magnitudes, and the largest.
"""

GOOD = 0.02
"""The largest residual up to which one range of sizes is enough."""


class FitError(NetworkError):
    """A fit that does not describe its data: one clear line."""


@dataclass(frozen=True)
class Fit:
    """Ranges of message sizes, and what they say of the measured sizes, in seconds."""

    ranges: tuple[Range, ...]
    fitted: Numbers
    measured: Numbers

    @property
    def residuals(self) -> Numbers:
        """(fitted − measured) / measured."""
        shares: Numbers = (self.fitted - self.measured) / self.measured
        return shares


def fit(sizes: Sequence[int], seconds: Sequence[float]) -> Fit:
    """Latency and seconds a byte in one range of sizes or in two, whichever describes the times
    better.

    Small messages (eager) and large ones (rendezvous) are fitted apart, where the second range
    makes the sum of squares clearly smaller. FitError where neither describes the times.
    """
    order = np.argsort(sizes, kind="stable")
    m, t = np.array(sizes, dtype=float)[order], np.array(seconds, dtype=float)[order]
    if len(np.unique(m)) < FEWEST:
        raise FitError(f"a fit needs messages of at least {FEWEST} sizes, not {len(np.unique(m))}")
    if not (np.isfinite(t).all() and (t > 0).all()):
        raise FitError("a message took no time, or one that is no number: nothing can be fitted")
    candidates = [_ranges(m, t, [0])]
    cuts = [cut for cut in range(FEWEST, len(m) - FEWEST + 1) if m[cut] > m[cut - 1]]
    candidates += [_ranges(m, t, [0, cut]) for cut in cuts]
    one, *two = candidates
    found = min(two, key=_squares, default=one)
    enough = float(np.abs(one.residuals).max()) < GOOD
    found = one if enough or _squares(found) > 0.5 * _squares(one) else found
    _check(found, m)
    return found


def _squares(fitted: Fit) -> float:
    return float((fitted.residuals**2).sum())


def _ranges(m: Numbers, t: Numbers, starts: Sequence[int]) -> Fit:
    """A fit with ranges that begin at these places among the sizes."""
    ranges, fitted = [], []
    for start, stop in zip(starts, [*starts[1:], len(m)], strict=True):
        latency, per_byte = _line(m[start:stop], t[start:stop])
        least = int(m[start]) if start else 0
        ranges.append(Range(least, latency, per_byte))
        fitted.append(latency + per_byte * m[start:stop])
    return Fit(tuple(ranges), np.concatenate(fitted), t)


def _line(m: Numbers, t: Numbers) -> tuple[float, float]:
    """The line, neither number below 0, with the least squares of relative residuals."""
    columns = np.stack([1 / t, m / t], axis=1)
    best, _, _, _ = np.linalg.lstsq(columns, np.ones_like(t), rcond=None)
    if (best >= 0).all():
        return float(best[0]), float(best[1])
    alone = [float((column @ np.ones_like(t)) / (column @ column)) for column in columns.T]
    tries = [(alone[0], 0.0), (0.0, alone[1])] if m.any() else [(alone[0], 0.0)]
    return min(tries, key=lambda pair: float((((pair[0] + pair[1] * m) / t - 1) ** 2).sum()))


def _check(found: Fit, m: Numbers) -> None:
    """FitError where it does not describe its data."""
    shares = np.abs(found.residuals)
    worst = int(shares.argmax())
    if np.median(shares) > MEDIAN or shares[worst] > WORST:
        raise FitError(
            f"latency and rate do not describe these times: residuals are {np.median(shares):.0%}"
            f" in the median and {shares[worst]:.0%} at {m[worst]:,.0f} bytes; the network or the"
            " hosts were busy, or not all links are alike"
        )
    if found.ranges[-1].seconds_per_byte <= 0:
        raise FitError("large messages took no longer than small ones: measure larger ones")
