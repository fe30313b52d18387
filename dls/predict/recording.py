"""A run's trace as steps that can be replayed: what each rank computed, bucket by bucket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls.cli import UsageError
from dls.cost.replay import Step
from dls.exchange import methods, settings
from dls.exchange.clock import OF_LAYERS
from dls.exchange.exchanger import BUCKET_SIZE
from dls.exchange.layout import Bucket, Layer, Layout
from dls.record.load import Recording, load
from dls.record.schema import TraceError

Numbers = NDArray[np.float64]
WARMUP = 2
"""Recorded steps at the beginning that are left out where more than ENOUGH are recorded: caches
fill, and memory is touched for the first time.
"""
ENOUGH = 6
"""See above."""


@dataclass(frozen=True)
class Run:
    """What a trace tells of a run with P ranks: its steps as recorded, and how it was set up.

    seconds (T, P): each step as it was recorded; sent, received: medians of bytes a step and rank.
    worked: whether the method's own work was recorded as well. processors: those that computed.
    """

    name: str
    layout: Layout
    method: str
    settings: Any
    config: Mapping[str, Any]
    buckets: Sequence[Bucket]
    steps: Sequence[Step]
    seconds: Numbers
    sent: float
    received: float
    worked: bool = True
    processors: str = ""

    @property
    def ranks(self) -> int:
        """P."""
        return int(self.seconds.shape[1])

    @property
    def bucket_size(self) -> int:
        """The size from which a bucket is sent, in values."""
        return int(self.config.get("bucket_size", BUCKET_SIZE))

    @property
    def overlap(self) -> bool:
        """Whether buckets left while earlier layers were computed."""
        return bool(self.config.get("overlap", True))


def read(path: Path) -> Run:
    """The run in a folder or trace file. UsageError: one line that says what it lacks."""
    try:
        recording = load(path)
    except (TraceError, OSError) as error:
        raise UsageError(str(error)) from None
    try:
        return _of(recording, str(path))
    except (KeyError, TypeError, IndexError, OverflowError) as error:
        raise UsageError(f"{path} lacks what a run's trace has: {error!r}") from None


def _of(recording: Recording, name: str) -> Run:
    if recording.ranks < 2:
        raise UsageError(
            f"{name} was recorded on one rank, which sends nothing: record a run of at least two"
            " ranks (mpirun -n 2, or --workers 2)"
        )
    if not len(recording.messages["step"]):
        raise UsageError(
            f"{name} has no messages: it is of an older version, or no step was recorded"
            " (--trace-every); record it again"
        )
    config, layout = recording.config, _layout(recording)
    method = str(config.get("method", ""))
    if method not in methods.names():
        raise UsageError(f"{name} was recorded with the method '{method}', which is not known here")
    chosen = methods.load(method)
    own = settings_of(chosen, config)
    buckets = layout.buckets(int(config.get("bucket_size", BUCKET_SIZE)), chosen.whole)
    rows = _usable(recording, name)
    reader = _Reader(recording, layout, buckets)
    steps = [reader.step(row) for row in rows]
    seconds = recording["steps/seconds/total"][rows]
    sent = float(np.median(recording["steps/payload_bytes"][rows]))
    received = float(np.median(recording["steps/received_bytes"][rows]))
    figures = steps, seconds, sent, received
    processors = str(recording.attributes.get("processor", ""))
    return Run(name, layout, method, own, config, buckets, *figures, processors=processors)


def settings_of(method: type[methods.Method], config: Mapping[str, Any]) -> Any:
    """A method's own settings, of those of a run. SettingError."""
    known = settings.fields_of(method.Settings)
    return settings.build(
        method.Settings, {key: value for key, value in config.items() if key in known}
    )


def _layout(recording: Recording) -> Layout:
    layers = zip(recording.layers["name"], recording.layers["size"], strict=True)
    return Layout([Layer(str(name), int(size)) for name, size in layers])


def _usable(recording: Recording, name: str) -> list[int]:
    """The recorded steps that were finished and not skipped, without the first ones."""
    totals = recording["steps/seconds/total"]
    complete = np.isfinite(totals).all(axis=1) & (totals > 0).all(axis=1)
    skipped = np.isnan(recording["steps/loss"]).all(axis=1) if _has_loss(recording) else ~complete
    with_messages = np.isin(recording["steps/step"], recording.messages["step"])
    rows = np.flatnonzero(complete & ~skipped & with_messages).tolist()
    if not rows:
        why = "was skipped" if len(totals) and skipped.all() else "is complete"
        one = "every recorded step" if why == "was skipped" else "no recorded step"
        raise UsageError(f"{name}: {one} {why}, so there is nothing to replay")
    return rows[WARMUP:] if len(rows) > ENOUGH else rows


def _has_loss(recording: Recording) -> bool:
    """Whether a loss of NaN means a step that was skipped; some programs record no loss."""
    if "loss" not in recording.steps:
        return False
    known = np.isfinite(recording["steps/loss"]).any()
    return bool(known) or recording.config.get("on_nan") == "skip"


class _Reader:
    """Makes steps of a recording's rows."""

    def __init__(self, recording: Recording, layout: Layout, buckets: Sequence[Bucket]) -> None:
        self._recording, self._layout, self._buckets = recording, layout, buckets
        self._messages = recording.messages
        self._shares = _layer_shares(recording, buckets)
        order = np.lexsort((self._messages["round"], self._messages["bucket"]))
        self._sorted = order[np.argsort(self._messages["step"][order], kind="stable")]
        self._keys = self._messages["step"][self._sorted]

    def step(self, row: int) -> Step:
        """A recorded row as a step. UsageError where its messages do not fit the buckets."""
        number = int(self._recording["steps/step"][row])
        first, last = np.searchsorted(self._keys, [number, number + 1])
        of_step = self._sorted[first:last]
        ranks = [self._rank(row, rank, of_step) for rank in range(self._recording.ranks)]
        return Step(*(np.array(each, dtype=float) for each in zip(*ranks, strict=True)))

    def _seconds(self, phase: str, row: int, rank: int) -> float:
        value = float(self._recording[f"steps/seconds/{phase}"][row, rank])
        return value if np.isfinite(value) else 0.0

    def _rank(self, row: int, rank: int, of_step: NDArray[np.int64]) -> tuple[Any, ...]:
        messages = self._messages
        mine = of_step[messages["rank"][of_step] == rank]
        first = mine[(messages["round"][mine] == 0) & (messages["bucket"][mine] >= 0)]
        if messages["bucket"][first].tolist() != list(range(len(self._buckets))):
            raise UsageError(
                f"the messages of step {self._recording['steps/step'][row]} do not fit the run's"
                f" {len(self._buckets)} buckets; the trace is damaged, or a program sent them"
                " otherwise"
            )
        ready, selected = messages["ready"][first], messages["selected"][first]
        if not (np.isfinite(ready).all() and np.isfinite(selected).all()):
            raise UsageError(
                f"times of messages are missing in step {self._recording['steps/step'][row]}"
            )
        gaps, select = _segments(ready, selected)
        backward = self._seconds("backward", row, rank)
        own = min(gaps[0], max(0.0, backward - sum(gaps[1:])))
        before, gaps[0] = gaps[0] - own, own
        layers = np.zeros(len(self._layout))
        for bucket, gap in zip(self._buckets, gaps, strict=True):
            here = slice(bucket.layers.start, bucket.layers.stop)
            layers[here] = gap * self._shares[here]
        return before, layers, select, *self._rest(row, rank, float(selected[-1]), mine)

    def _rest(
        self, row: int, rank: int, selected: float, mine: NDArray[np.int64]
    ) -> tuple[Any, ...]:
        """What follows the last selection: decoding of each bucket, adjusting, all else; and the
        bytes that came and went beside the backward pass.
        """
        total, exposed = (self._seconds(phase, row, rank) for phase in ("total", "exposed"))
        tail = max(0.0, total - selected - exposed)
        adjust = min(tail, self._seconds("adjust", row, rank))
        decode = min(tail - adjust, self._seconds("decode", row, rank))
        received = self._received(mine)
        share = received / received.sum() if received.sum() else np.full(len(received), 0.0)
        moved = 2.0 * received[:-1].sum()
        return decode * share, adjust, tail - adjust - decode, moved

    def _received(self, mine: NDArray[np.int64]) -> Numbers:
        """Bytes that each bucket brought."""
        bucket = self._messages["bucket"][mine]
        received = self._messages["received"][mine]
        in_buckets = bucket >= 0
        brought = received[in_buckets].astype(float)
        return np.bincount(bucket[in_buckets], brought, len(self._buckets)).astype(float)


def _segments(ready: Numbers, selected: Numbers) -> tuple[list[float], list[float]]:
    """Seconds of the backward pass before each bucket is complete (the first from the step's own
    begin), and of each selection.
    """
    gaps, select = [], []
    complete = busy = 0.0
    for at, until in zip(ready, selected, strict=True):
        begin = max(float(at), busy)
        since = busy if busy <= at else complete
        gaps.append(max(0.0, float(at) - since))
        select.append(max(0.0, float(until) - begin))
        complete, busy = float(at), max(busy, float(until))
    return gaps, select


def _layer_shares(recording: Recording, buckets: Sequence[Bucket]) -> Numbers:
    """Each layer's share (L) of its bucket's backward pass: as the diagnosed steps show it, else in
    proportion to the products that it computes.
    """
    weights = _diagnosed(recording)
    if weights is None:
        positions = np.maximum(1, np.array(recording.layers.get("positions", [1]), dtype=float))
        weights = np.array(recording.layers["size"], dtype=float) * positions
    shares = np.zeros(len(weights))
    for bucket in buckets:
        here = slice(bucket.layers.start, bucket.layers.stop)
        total = weights[here].sum()
        shares[here] = weights[here] / total if total > 0 else 1 / len(bucket.layers)
    return shares


def _diagnosed(recording: Recording) -> Numbers | None:
    """Median seconds of each layer's backward pass, where the run was diagnosed."""
    diagnosed = recording.diagnostics
    if not len(diagnosed["step"]):
        return None
    place = OF_LAYERS.index("backward")
    seconds = (diagnosed["end"] - diagnosed["begin"])[..., place]
    seconds = seconds.reshape(-1, seconds.shape[-1])
    seconds = seconds[np.isfinite(seconds).all(axis=1)]
    return np.maximum(0, np.median(seconds, axis=0)) if len(seconds) else None
