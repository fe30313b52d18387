"""One rank's training step: forward, backward, select, exchange, update, adjust.

The steps are those of `docs/algorithm.md`, section 3; `reference.cluster` is their meaning.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dls.backends import Backend
from dls.comm import Comm
from dls.optim import Sgd
from dls.program.config import Config
from dls.program.skipping import Skipping
from dls.sparsifiers import Sparsifier
from dls.sparsifiers._base import Message, Part
from dls.tasks.batches import Batches, test_shard
from dls.tasks.data import Dataset
from dls.tasks.models import Model
from dls.timeline import Timeline
from reference.ops import NonFiniteError

PHASES = ("forward", "backward", "select", "exchange", "decode", "update", "adjust", "exposed", "diagnostics")
"""What a step's time is divided into. `exposed`: the rank stood waiting for the network; `diagnostics`: not part of the step."""

EVALUATION_BATCH = 256
"""Images of one forward pass in an evaluation."""

LAST_BUCKET = 16
"""The smallest group of layers that leaves together holds this fraction of the bucket size."""


class Stopwatch:
    """Seconds of each phase; a phase inside another interrupts it. `wait` returns when what was asked of a device is done.

    `timeline`: where somebody wants to know when each layer had its turn.
    """

    def __init__(self, wait: Callable[[], None]) -> None:
        self._wait = wait
        self.timeline: Timeline | None = None
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._running: list[str] = []
        self._started = self._since = time.perf_counter()

    @contextmanager
    def phase(self, name: str, parts: Sequence[Part] = ()) -> Iterator[None]:
        """Book the time of this block to a phase, here of these parts."""
        self._book()
        self._running.append(name)
        begin = self._since
        try:
            yield
        finally:
            self._book()
            self._running.pop()
        if parts:
            self.note(name, parts, begin, self._since)

    def note(self, name: str, parts: Sequence[Part], begin: float, end: float) -> None:
        """For the timeline: a phase of these parts, between two readings of the clock."""
        if self.timeline:
            self.timeline.note(name, range(parts[0].first, parts[-1].last + 1), begin, end)

    def with_timeline(self, layers: int) -> None:
        """Keep one of this step, for so many layers."""
        self.timeline = Timeline(layers, self._started)

    def layer_done(self, layer: int) -> None:
        """The phase that is running is over for this layer, and goes on with others."""
        if self.timeline:
            begin = self._since
            self._book()
            self.timeline.note(self._running[-1], range(layer, layer + 1), begin, self._since)

    def stop(self) -> None:
        """The step is over: `total` is its wall time without the diagnostics."""
        self.seconds["total"] = time.perf_counter() - self._started - self.seconds["diagnostics"]

    def _book(self) -> None:
        self._wait()  # else the work would count for whoever asks for its result
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


@dataclass(frozen=True)
class Diagnosis:
    """Of a step that is looked at closely: the share of Global Top-k's choice that left, and begin and end as in Timeline."""

    global_share: float
    begin: NDArray[np.float64]
    end: NDArray[np.float64]


@dataclass
class StepResult:
    """What a step leaves behind for the trace; k and threshold are those of its selection.

    `met_by`: the ranks that met NaN or infinity, where the step was skipped for them; its loss is NaN.
    """

    loss: float
    payload_bytes: int
    received_bytes: int
    seconds: dict[str, float]
    met_by: Sequence[int] = ()
    k: NDArray[np.int64] | None = None
    threshold: NDArray[np.float64] | None = None
    residual_norm: NDArray[np.float64] | None = None
    diagnosis: Diagnosis | None = None


class Worker:
    """One rank: its model, its method, its share of the exchange."""

    def __init__(
        self, model: Model, sparsifier: Sparsifier, optimizer: Sgd, backend: Backend, comm: Comm, config: Config
    ) -> None:
        self.model, self.sparsifier, self.optimizer = model, sparsifier, optimizer
        self.backend, self.comm, self.config = backend, comm, config
        self.update = backend.ops.zeros(model.parameters.size)
        self.groups = _groups(sparsifier.parts, config.bucket_size if config.overlap else 0)
        self.watch = Stopwatch(backend.ops.wait)
        self.skipping = Skipping(model, sparsifier, backend, comm) if config.on_nan == "skip" else None
        self._messages: list[Message] = []

    def step(self, batches: Batches, number: int, lr: float, record: bool, diagnose: bool = False) -> StepResult:
        """Training step `number` (from 1) on this rank's mini-batch. `record`: with k, threshold and residual norm.

        `diagnose`: with a Diagnosis. NonFiniteError where the loss or a gradient is not finite, unless such steps are skipped.
        """
        self.watch = Stopwatch(self.backend.ops.wait)
        self.comm.sent_bytes = self.comm.received_bytes = 0
        if diagnose:
            self.watch.with_timeline(len(self.model.layers))
        images, labels = batches.batch(number - 1)
        loss, dlogits = self._forward(images, labels)
        self._begin(number - 1)
        self._backward(dlogits)
        with self.watch.phase("adjust"):
            self.sparsifier.adjust(number)
        met_by = self._met_by()
        self._receive(lr, apply=not met_by)
        moved = self.comm.sent_bytes, self.comm.received_bytes
        result = StepResult(math.nan if met_by else loss, *moved, self.watch.seconds, met_by)
        if record:
            with self.watch.phase("diagnostics"):
                result.k, result.threshold = self.sparsifier.layer_k(), self.sparsifier.layer_thresholds()
        if timeline := self.watch.timeline:
            with self.watch.phase("diagnostics"):
                result.diagnosis = Diagnosis(self.sparsifier.global_share(), timeline.begin, timeline.end)
        with self.watch.phase("select"):
            self._finish(skip=bool(met_by))
        self.watch.stop()
        if record:
            result.residual_norm = self.sparsifier.residual_norms()
        return result

    def _forward(self, images: NDArray[np.float32], labels: NDArray[np.int64]) -> tuple[float, NDArray[np.float32]]:
        with self.watch.phase("forward"):
            if self.skipping:
                self.skipping.begin()
            logits = self.model.forward(images, training=True)
            loss, dlogits, _ = self.backend.nn.softmax_cross_entropy(logits, labels)
        if self.skipping:
            self.skipping.note(not math.isfinite(loss))
        elif not math.isfinite(loss):
            raise NonFiniteError(f"the loss is {loss}")
        return loss, dlogits

    def _begin(self, finished: int) -> None:
        with self.watch.phase("exposed"):
            if self.skipping:
                self.skipping.keep()
            self.sparsifier.begin(finished)

    def _backward(self, dlogits: NDArray[np.float32]) -> None:
        """Differentiate from the last layer to the first, and hand over each gradient as soon as it may leave."""
        with self.watch.phase("backward"):
            self.model.backward(dlogits, (lambda layer: None) if self.config.clip_norm else self._gradient_complete)
            if self.config.clip_norm:
                self.backend.ops.clip_norm(self.model.gradients, self.config.clip_norm)
                for layer in reversed(range(len(self.model.layers))):
                    self._gradient_complete(layer)
            if self.skipping:
                self.skipping.tell()

    def _gradient_complete(self, layer: int) -> None:
        """Layer's gradient exists: where it completes a group of parts, select and send them."""
        self.watch.layer_done(layer)
        self.comm.progress()
        group = self.groups.get(layer)
        if group is None:
            return
        with self.watch.phase("select", group):
            if self.skipping:
                self.skipping.clear(slice(group[0].start, group[-1].stop))
            self.sparsifier.select(group)
        with self.watch.phase("exchange"):
            self._messages.append(self.sparsifier.send(group))

    def _met_by(self) -> Sequence[int]:
        """The ranks for whose NaN or infinity all ranks skip this step."""
        if not self.skipping:
            return ()
        with self.watch.phase("exposed"):
            return self.skipping.hear()

    def _receive(self, lr: float, apply: bool) -> None:
        """Add up every message and move the weights it speaks of, in the order of sending: later ones travel meanwhile."""
        for message in self._messages:
            with self.watch.phase("exposed"):
                message.pending.wait()
            self.watch.note("exchange", message.parts, message.pending.posted, message.pending.finished)
            if not apply:
                continue
            with self.watch.phase("decode", message.parts):
                self.sparsifier.receive(message, self.update)
            with self.watch.phase("update"):
                self.optimizer.apply(message.complete, self.update[message.complete], lr)
        self._messages.clear()

    def _finish(self, skip: bool) -> None:
        if self.skipping and skip:
            self.skipping.undo()
        else:
            self.sparsifier.finish()

    def mean_statistics(self) -> NDArray[np.float32]:
        """Batch norm's running statistics (m), averaged over the ranks, summed from +0.0 in rank order."""
        pending, gathered = self.comm.allgather(self.backend.ops.to_host(self.model.statistics), "the other ranks' statistics")
        pending.wait()
        total = np.zeros(gathered.shape[1], dtype=np.float32)
        for statistics in gathered:
            total += statistics
        return total * np.float32(1 / self.comm.size)

    def evaluate(self, dataset: Dataset) -> tuple[float, float]:
        """Mean loss and accuracy over the test set; each rank takes its share, batch norm uses the mean statistics."""
        own = self.model.statistics.copy()
        self.model.statistics[...] = self.backend.ops.from_host(self.mean_statistics())
        sums = np.zeros(3)
        for images, labels in test_shard(dataset, self.comm.rank, self.comm.size, EVALUATION_BATCH):
            loss, _, correct = self.backend.nn.softmax_cross_entropy(self.model.forward(images, training=False), labels)
            sums += (loss * len(labels), correct, len(labels))
        self.model.statistics[...] = own
        pending, gathered = self.comm.allgather(sums, "the other ranks' evaluation")
        pending.wait()
        loss_sum, correct, count = gathered.sum(axis=0)
        return float(loss_sum / count), float(correct / count)


def _groups(parts: Sequence[Part], bucket_size: int) -> dict[int, Sequence[Part]]:
    """The parts that leave together, by the layer whose gradient comes last; all at once where bucket_size is 0.

    A group is complete when it holds bucket_size values, or as many as are left for later ones: towards the end of the backward
    pass less and less can hide behind it, so less and less is sent at once, down to a LAST_BUCKET of the bucket size.
    """
    groups: dict[int, Sequence[Part]] = {}
    group: list[Part] = []
    for part in reversed(parts):
        group.insert(0, part)
        enough = max(min(bucket_size, part.start), bucket_size // LAST_BUCKET)
        if part.start == 0 or (bucket_size and group[-1].stop - part.start >= enough):
            groups[part.first] = group
            group = []
    return groups
