"""The exchange: one rank's gradient goes in, layer by layer, and the ranks' mean comes out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from dls.backends import Backend, Ops
from dls.comm.base import Comm, Waiting
from dls.comm.errors import Dropped
from dls.comm.lanes import MOST, Flight, Message, Tally
from dls.exchange.clock import Clock
from dls.exchange.layout import Bucket, Layout
from dls.exchange.memory import State
from dls.exchange.methods._base import Landed, Method
from reference.collectives import Round
from reference.ops import Gradient, Vector

NO_BUCKET = -1
"""The bucket of a message that belongs to none: of the adjustment, or of `on_nan`."""
BUCKET_SIZE = 65_536
"""The default size of a bucket, in values."""


@dataclass(frozen=True)
class Diagnosis:
    """Of a diagnosed step: the share of Global Top-k's choice that was sent, and its timeline."""

    global_share: float
    begin: NDArray[np.float64]
    end: NDArray[np.float64]


@dataclass
class Row:
    """What is known of a finished step: bytes sent and received, and seconds of each phase.

    met_by: the ranks that met NaN or infinity, where the step was skipped for that. If asked for:
    columns, the method's own (`Method.columns`) by name; messages, the rounds of each bucket
    (NO_BUCKET: of none). started: time.perf_counter when the step began.
    """

    payload_bytes: int
    received_bytes: int
    seconds: dict[str, float]
    met_by: Sequence[int] = ()
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    messages: Sequence[tuple[int, Sequence[Message]]] = ()
    started: float = 0.0
    diagnosis: Diagnosis | None = None
    loss: float = math.nan

    @property
    def k(self) -> NDArray[np.int64] | None:
        """How many values of each layer were sent (L), where it was asked for."""
        return self.columns.get("k")

    @property
    def threshold(self) -> NDArray[np.float64] | None:
        """The threshold of each layer's selection (L), where it was asked for."""
        return self.columns.get("threshold")

    @property
    def residual_norm(self) -> NDArray[np.float64] | None:
        """The L2 norm of each layer's residual after the step (L), where it was asked for."""
        return self.columns.get("residual_norm")


class Exchanger:
    """One rank's gradient in, the ranks' mean out.

    A step is `begin`, `ready` for each layer in any order, `arrivals` (optional), `end`. Buckets
    are sent in the same order on all ranks, from the last layers to the first; each as soon as it
    is complete and those before it have been sent. `update` (n) holds the mean over the ranks in
    the spans that `arrivals` has yielded, and everywhere after `end`.

    layout: the layers; method and its settings (`Method.Settings`); backend: of
    `dls.backends.load`; gradients (n): the flat gradient, if the caller has one; bucket_size: send
    neighbouring layers as one message once they hold so many values, 0: all layers as one; overlap:
    send buckets while other layers are still awaited, otherwise all when the last layer is ready;
    on_nan "skip": all ranks leave out a step in which any rank meets NaN or infinity.

    After an exception it is closed: build a new one from the last state.
    """

    def __init__(
        self,
        layout: Layout,
        method: type[Method],
        settings: Any,
        comm: Comm,
        backend: Backend,
        *,
        gradients: Vector | None = None,
        bucket_size: int = BUCKET_SIZE,
        overlap: bool = True,
        on_nan: str = "stop",
    ) -> None:
        self.layout, self.comm, self.ops = layout, comm, backend.ops
        self.clock = Clock(backend.ops.wait)
        self.buckets = layout.buckets(bucket_size, method.whole)
        self.method = method(layout, settings, comm.net, backend, self.buckets, self.clock)
        self.gradients: Vector = self.ops.zeros(layout.n) if gradients is None else gradients
        self.update: Vector = self.ops.zeros(layout.n)
        self._overlap = overlap
        self._nan = _Nan(self.ops, comm) if on_nan == "skip" else None
        self._pieces: dict[int, list[Vector]] = {}
        self._bucket_of = {layer: bucket for bucket in self.buckets for layer in bucket.layers}
        self._lanes = min(len(self.buckets), MOST)
        self._finished = 0
        self._open: dict[int, set[int]] | None = None
        self._flights: list[tuple[Bucket, Flight]] = []
        self._messages: list[tuple[int, Sequence[Message]]] = []
        self._complete_at = dict.fromkeys(range(len(self.buckets)), 0.0)
        self._arrived = 0
        self._adjustment: Flight | None = None
        self._adjusted = self._closed = False
        self._generation = 0

    # --- a step --------------------------------------------------------------------------------

    def begin(self, finished: int) -> None:
        """Begin the step that follows so many finished ones.

        It waits for the other ranks' next k, and for nothing else.
        """
        self._expect(self._open is None, "begin comes after end")
        with self._closing():
            with self.clock.phase("exposed"):
                self._open_lanes()
                self._settle()
                if self._nan:
                    self._nan.keep(self.method.state())
                self._messages = []
                self.method.begin(finished)
            self._finished, self._adjusted = finished, False
            self._open = {bucket.index: set(bucket.layers) for bucket in self.buckets}

    def note(self, met: bool) -> None:
        """Tell whether this rank met NaN or infinity in its loss (on_nan "skip")."""
        if self._nan:
            self._nan.met |= met

    def ready(self, layer: int, gradient: Any = None, *, in_place: bool = False) -> None:
        """A layer's gradient is complete: send its bucket, if that is complete and next in order.

        gradient: an array, or a list of arrays that make it up, of any shape; None: it is in
        `gradients`. in_place: it does not change before `end`, so that it need not be copied.
        ValueError for a layer that does not exist or was ready already. NonFiniteError where the
        gradient holds NaN or infinity.
        """
        bucket = self._bucket_of.get(layer)
        self._expect(self._open is not None, "ready comes after begin")
        if bucket is None or layer not in self._waiting[bucket.index]:
            raise ValueError(
                f"{self._name(layer)} has been ready in this step, or there is no such layer"
            )
        if gradient is not None:
            self._take(layer, gradient, in_place)
        with self._closing():
            self.clock.layer_done(layer)
            self.comm.progress()
            self._waiting[bucket.index].discard(layer)
            if not self._waiting[bucket.index]:
                self._complete_at[bucket.index] = time.perf_counter()
            if self._overlap or not any(self._waiting.values()):
                self._send_in_order()
            self.comm.lanes.advance()

    def arrivals(self) -> Iterator[slice]:
        """Yield the spans of `update` whose mean has arrived; none in a skipped step.

        ValueError where layers are missing.
        """
        self._check_complete()
        with self._closing():
            self._adjust()
            met = self._met_by()
        while self._arrived < len(self._flights):
            with self._closing():
                span = self._arrive(*self._flights[self._arrived], complete=not met)
                self._arrived += 1
            if span.stop > span.start:
                yield span

    def end(self, record: bool = False) -> Row:
        """End the step: what was sent leaves the memory.

        record: the row also has the method's columns, and the messages.
        """
        for _ in self.arrivals():
            pass  # spans that the caller has not asked for
        with self._closing():
            met_by = self._met_by()
            row = Row(0, 0, self.clock.seconds, met_by)
            with self.clock.phase("diagnostics"):
                self._describe(row, record)
            with self.clock.phase("select"):
                self._release(skip=bool(met_by))
            moved = Tally.of_all(each for _, some in self._messages for each in some)
            row.payload_bytes, row.received_bytes = moved.sent, moved.received
            self.clock.stop()
            if record:
                row.columns |= self.method.describe_memory()
                row.messages, row.started = self._messages, self.clock.started
            return row

    # --- between steps -------------------------------------------------------------------------

    def state(self) -> State:
        """What this rank needs to go on, by name, as host arrays.

        An array with "residual" in its name holds values that have not been sent yet.
        """
        self._expect(self._open is None, "state is asked for between steps")
        self._settle()
        return self.method.state()

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Continue from what `state` returned. Every rank calls it, between two steps.

        ValueError where it does not fit.
        """
        self._expect(self._open is None, "restore comes between steps")
        self._open_lanes()
        self._settle()
        self._run(self.method.restore(state))

    # --- pieces --------------------------------------------------------------------------------

    @property
    def takes_pieces(self) -> bool:
        """Whether `ready` can do without a copy."""
        return self.method.takes_pieces and not self._nan

    @property
    def _waiting(self) -> dict[int, set[int]]:
        return self._open or {}

    @contextmanager
    def _closing(self) -> Iterator[None]:
        """Close the exchange if the block raises."""
        self._check_open()
        try:
            yield
        except Dropped:  # another exchange may use the lanes by now
            self._closed = True
            raise
        except BaseException:
            self.close()
            raise

    def _expect(self, right: bool, words: str) -> None:
        self._check_open()
        if not right:
            raise ValueError(words)

    def _check_open(self) -> None:
        if self._closed:
            words = (
                "this exchange is closed, after an error or by close: build one from its last state"
            )
            raise RuntimeError(words)

    @property
    def is_open(self) -> bool:
        """Whether a step has begun and not ended."""
        return self._open is not None

    def finish(self) -> None:
        """Close in good order: all ranks call it, between two steps."""
        if not self._closed:
            self._expect(self._open is None, "close comes between steps")
            with suppress(Dropped):
                self._settle()
            self._closed = True

    def close(self) -> None:
        """Close at once; messages under way are dropped."""
        self._closed = True
        self.comm.lanes.close()

    def _take(self, layer: int, gradient: Any, in_place: bool) -> None:
        """Copy a gradient, or remember where it lies until it is sent."""
        given = gradient if isinstance(gradient, list | tuple) else [gradient]
        pieces = [piece.reshape(-1) for piece in given]
        size, expected = sum(piece.size for piece in pieces), self.layout.sizes[layer]
        if size != expected:
            name = self.layout.layers[layer].name
            raise ValueError(f"layer {name} has {expected} values, and its gradient {size}")
        if in_place and self.takes_pieces:
            self._pieces[layer] = pieces
        else:
            self._copy(layer, pieces)

    def _copy(self, layer: int, pieces: Sequence[Vector]) -> None:
        start = int(self.layout.offsets[layer])
        for piece in pieces:
            self.gradients[start : start + piece.size] = piece
            start += piece.size

    def _gradient(self, bucket: Bucket) -> Gradient:
        """What is to be sent: in pieces if every layer has come in some, else in `gradients`."""
        came = {layer: self._pieces.pop(layer) for layer in bucket.layers if layer in self._pieces}
        if len(came) == len(bucket.layers):
            return [piece for layer in bucket.layers for piece in came[layer]]
        for layer, pieces in came.items():
            self._copy(layer, pieces)
        return self.gradients[bucket.span]

    def _send_in_order(self) -> None:
        """Send the next buckets, as far as they are complete."""
        while len(self._flights) < len(self.buckets) and not self._waiting[len(self._flights)]:
            self._send(self.buckets[len(self._flights)])

    def _send(self, bucket: Bucket) -> None:
        """Begin a bucket's exchange."""
        gradient = self._gradient(bucket)
        with self.clock.phase("exchange"):
            if self._nan:
                with self.clock.phase("select", bucket.layers):
                    self._nan.clear(cast(Vector, gradient))
            generator = self.method.exchange(bucket, cast(Vector, gradient))
            around = lambda: self.clock.phase("decode", bucket.layers)  # noqa: E731
            lane, words = bucket.index % self._lanes, self.layout.words(bucket.layers)
            ready = self._complete_at[bucket.index]
            flight = self._launch(lane, generator, words, bucket.index, around, ready)
            self._flights.append((bucket, flight))
            if self._nan and len(self._flights) == len(self.buckets):
                self._messages.append((NO_BUCKET, [self._nan.tell()]))

    def _check_complete(self) -> None:
        self._expect(self._open is not None, "arrivals come after begin")
        if missing := [layer for layers in self._waiting.values() for layer in layers]:
            raise ValueError(f"{self._name(missing[0])} is not ready")

    def _name(self, layer: int) -> str:
        return (
            self.layout.words(range(layer, layer + 1))
            if 0 <= layer < len(self.layout)
            else f"layer {layer}"
        )

    def _adjust(self) -> None:
        """Once all buckets are sent: let the method adjust its k, and announce it."""
        if self._adjusted:
            return
        self._adjusted = True
        with self.clock.phase("adjust"):
            generator = self.method.adjust(self._finished + 1)
            self._adjustment = self._tell(generator, "the other ranks' next k")

    def _met_by(self) -> Sequence[int]:
        if not self._nan:
            return ()
        with self.clock.phase("exposed"):
            return self._nan.hear()

    def _arrive(self, bucket: Bucket, flight: Flight, complete: bool) -> slice:
        with self.clock.phase("exposed"):
            landed: Landed = self.comm.lanes.wait(flight)
        self.clock.note("exchange", bucket.layers, flight.begun, flight.ended)
        if not complete:
            return slice(0, 0)
        with self.clock.phase("decode", bucket.layers):
            span = self.method.complete(bucket, landed, self.update)
        flight.value = [
            (place, exchanged._replace(update=())) for place, exchanged in landed
        ]  # the others' entries are in
        return span

    def _describe(self, row: Row, record: bool) -> None:
        if record:
            row.columns |= self.method.describe_selection()
        if timeline := self.clock.timeline:
            row.diagnosis = Diagnosis(self.method.global_share(), timeline.begin, timeline.end)

    def _release(self, skip: bool) -> None:
        if self._nan and skip:
            self._settle()
            self._run(self.method.restore(self._nan.kept))
        else:
            for _, flight in self._flights:
                landed: Landed = flight.value
                self.method.release(landed)
        if self._nan:
            self._nan.forget()
        self._flights.clear()
        self._arrived, self._open = 0, None

    def _open_lanes(self) -> None:
        """Open a lane for each bucket, up to the limit, and one for adjustments.

        The first time it waits for every rank.
        """
        self.comm.lanes.open(self._lanes + 1)
        self._generation = self.comm.lanes.generation

    def _settle(self) -> None:
        """Wait for the end of the last step's adjustment."""
        if self._adjustment is not None:
            self.comm.lanes.wait(self._adjustment)
            self._adjustment = None

    def _run(self, generator: Generator[Round, Any, None]) -> None:
        self.comm.lanes.wait(self._tell(generator, "the other ranks' k"))

    def _tell(self, generator: Generator[Round, Any, None], what: str) -> Flight:
        """Begin what belongs to no bucket, on the last lane."""
        return self._launch(self._lanes, generator, what, NO_BUCKET)

    def _launch(
        self,
        lane: int,
        generator: Generator[Round, Any, Any],
        what: str,
        bucket: int,
        around: Callable[[], AbstractContextManager[Any]] = nullcontext,
        ready: float | None = None,
    ) -> Flight:
        """Run a generator on a lane. Dropped where the lanes were closed since the step began."""
        if self._generation != self.comm.lanes.generation:
            raise Dropped(what)
        flight = self.comm.lanes.launch(lane, generator, what, around, ready)
        self._messages.append((bucket, flight.messages))
        return flight


class _Nan:
    """`on_nan="skip"`: all ranks leave out a step in which any of them meets NaN or infinity.

    Such a rank sends zeros in place of that gradient, since the others expect a message, and tells
    them by an allgather of one byte. The costs: no weight changes before that byte has arrived from
    every rank, after the last message; each gradient is checked once more; and the method's state,
    mainly the residual, is copied in every step, for which DLS waits for the others' next k.
    """

    def __init__(self, ops: Ops, comm: Comm) -> None:
        self._ops, self._comm = ops, comm
        self.kept: State = {}
        self.met = False
        self._word: Waiting | None = None
        self._message = Message()
        self._met_by: list[int] | None = None

    def keep(self, state: State) -> None:
        """Copy the method's state, before it begins its step."""
        self.kept = {name: array.copy() for name, array in state.items()}

    def clear(self, gradient: Vector) -> None:
        """Replace a gradient that is not finite by zeros."""
        if not self._ops.all_finite(gradient):
            self.met = True
            gradient[...] = 0

    def tell(self) -> Message:
        """Tell the other ranks, after this rank's last message."""
        now = time.perf_counter()
        self._message = Message(ready=now, selected=now)
        with self._comm.counting(self._message):
            self._word = self._comm.allgather(
                np.array(self.met), "the other ranks' word on NaN and infinity"
            )
        return self._message

    def hear(self) -> list[int]:
        """The ranks that met NaN or infinity."""
        if self._met_by is None:
            assert self._word is not None
            self._met_by = [int(rank) for rank in np.flatnonzero(self._word.wait())]
            self._word.note_in(self._message)
        return self._met_by

    def forget(self) -> None:
        """Forget this step."""
        self.met, self._word, self._met_by = False, None, None
