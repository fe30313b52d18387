"""Dense SGD, the baseline: the whole gradient, summed by the MPI library's own Allreduce.

It leaves no residual.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np

from dls import traffic
from dls.exchange.layout import Bucket
from dls.exchange.methods._base import Landed, Method
from reference.adjustment import Counts, Thresholds
from reference.collectives import Entries, Exchanged, Round, Sum
from reference.ops import Vector


class Dense(Method):
    """Sends everything: one Allreduce a bucket, whose order of summing is the library's."""

    library_sums = True

    def exchange(self, bucket: Bucket, gradient: Vector) -> Generator[Round, Any, Landed]:
        """Nothing to choose; only NaN and infinity are looked for."""
        with self.clock.phase("select", bucket.layers):
            self.guard(bucket.layers, gradient, bucket.span.start)
        own = self.ops.to_host(gradient)
        total = yield Sum(own)
        return [(bucket.span, Exchanged([Entries(None, total)], [Entries(None, own)]))]

    def bytes_received(self) -> int:
        """What a ring Allreduce of each bucket brings."""
        return sum(traffic.ring_bytes(bucket.size, self.net.size) for bucket in self.buckets)

    def layer_k(self) -> Counts:
        """All of every layer."""
        return np.array(self.layout.sizes, dtype=np.int64)

    def layer_thresholds(self) -> Thresholds:
        """0: everything is sent."""
        return np.zeros(len(self.layout))
