"""`dls.Exchange`: the exchange of gradients for any program that has them as arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dls import backends
from dls.comm import cores, launcher, local
from dls.comm.base import Comm
from dls.exchange import methods, settings
from dls.exchange.exchanger import BUCKET_SIZE, Exchanger, Row
from dls.exchange.layout import Layer, Layout
from dls.exchange.memory import State

Size = int | Sequence[int]
Array = NDArray[Any]
STEPS = "steps"
"""The name in a state of the number of finished steps."""


class Exchange:
    """The mean over the ranks of a gradient of which each rank sends the selected entries.

    What is not sent stays in this rank's residual for later steps.

    layers: the size or shape of each layer by name, in forward order. method, density, …: as the
    flags of `dls.train`; a method's own settings by their names. comm: an mpi4py communicator;
    None: all ranks that mpirun has started, or this process alone. backend: "numba", "numpy" or
    "cupy". bucket_size: send neighbouring layers as one message once they hold so many values.
    on_nan: "stop" raises NonFiniteError, "skip" leaves the step out on all ranks (the mean is 0).
    threads: of this rank; 0: its share of the cores. timeout: the most seconds that a rank waits
    for the others.

    Every rank makes one with the same arguments, and takes the same steps:

        # a flat float32 vector, or a mapping of arrays, which comes back in kind
        mean = exchange(gradients)

    or, to send while later gradients are still being computed:

        exchange.begin()
        exchange.ready("fc2", gradient)         # in any order
        for name, mean in exchange.arrivals():  # as they arrive; to be used before the next step
            ...

    Errors are exceptions, one line each: ValueError for arguments, dls.comm.errors.ExchangeError
    where other ranks do not answer.
    """

    def __init__(
        self,
        layers: Mapping[str, Size],
        method: str = "dls",
        *,
        comm: Any = None,
        backend: str = "numba",
        bucket_size: int = BUCKET_SIZE,
        on_nan: str = "stop",
        threads: int = 0,
        timeout: float = 600.0,
        **of_method: Any,
    ) -> None:
        if on_nan not in ("stop", "skip"):
            raise ValueError(f"on_nan is {on_nan!r}, not 'stop' or 'skip'")
        for name, value, least in (
            ("bucket_size", bucket_size, 1),
            ("threads", threads, 0),
            ("timeout", timeout, 0),
        ):
            if not value >= least or (name != "timeout" and value % 1 != 0):
                raise ValueError(f"{name} is {value!r}; it must be a number from {least} on")
        self._shapes = {name: _shape(name, size) for name, size in layers.items()}
        layout = Layout([Layer(name, int(np.prod(shape))) for name, shape in self._shapes.items()])
        chosen = methods.find(method)
        own = settings.build(chosen.Settings, of_method)
        self.comm = _comm(comm, timeout)
        self._owns = comm is not None and not isinstance(comm, Comm)
        same = {"layers": self._shapes, "method": method, "settings": own}
        _check_same(self.comm, same | {"bucket_size": bucket_size, "on_nan": on_nan})
        self._backend = backends.load(backend, self.comm.rank_on_node)
        if threads or self.comm.size > 1:
            self._backend.ops.set_threads(threads or cores.of(self.comm))
        self._exchanger = Exchanger(
            layout, chosen, own, self.comm, self._backend, bucket_size=bucket_size, on_nan=on_nan
        )
        self._number = {name: number for number, name in enumerate(self._shapes)}
        self.steps = 0
        """Finished steps."""
        self.row: Row | None = None
        """The last finished step: bytes, seconds of each phase; k and thresholds if recorded."""

    def __call__(self, gradients: Array | Mapping[str, Array]) -> Any:
        """The mean over the ranks, in the form in which the gradients came."""
        named = isinstance(gradients, Mapping)
        pieces = self._named(gradients) if isinstance(gradients, Mapping) else self._cut(gradients)
        # every gradient is checked before anything is sent
        values = {name: self._values(name, piece) for name, piece in pieces.items()}
        self.begin()
        for name in reversed(self._shapes):
            self._exchanger.ready(self._number[name], values[name], in_place=True)
        self.end()
        mean = self._mean()
        if not named:
            return mean
        return {
            name: self._layer(mean, name).astype(np.asarray(piece).dtype)
            for name, piece in pieces.items()
        }

    def begin(self) -> None:
        """Begin a step, after ending the one before it if that is still open."""
        if self._exchanger.is_open:
            self.end()
        self._exchanger.clock.restart()
        self._exchanger.begin(self.steps)

    def ready(self, name: str, gradient: Array) -> None:
        """A layer's gradient is complete.

        It is copied, and sent when its bucket is complete. ValueError, NonFiniteError.
        """
        if name not in self._number:
            raise ValueError(f"there is no layer {name!r}; there are {', '.join(self._shapes)}")
        self._exchanger.ready(self._number[name], self._values(name, gradient))

    def _values(self, name: str, gradient: Any) -> Array:
        """A gradient as float32, on the backend's device. ValueError for another shape or type."""
        array = np.asarray(gradient)
        if array.shape not in (self._shapes[name], (int(np.prod(self._shapes[name])),)):
            raise ValueError(
                f"the gradient of {name} has the shape {array.shape}, not {self._shapes[name]}"
            )
        if array.dtype.kind != "f":
            raise ValueError(
                f"the gradient of {name} has the type {array.dtype}, not a floating one"
            )
        with np.errstate(over="ignore"):
            return self._backend.ops.from_host(np.ascontiguousarray(array, dtype=np.float32))

    def arrivals(self) -> Iterator[tuple[str, Array]]:
        """Yield each layer's name and mean as they arrive, then end the step.

        The arrays are valid until the next step begins.
        """
        offsets = self._exchanger.layout.offsets
        for span in self._exchanger.arrivals():
            first, last = np.searchsorted(offsets, (span.start, span.stop))
            for name in list(self._shapes)[first:last]:
                yield name, self._layer(self._backend.ops.to_host(self._exchanger.update), name)
        self.end()

    def end(self, record: bool = False) -> Row:
        """End the step: what was sent leaves the residual.

        Returns its bytes and the seconds of its phases. record: the row also has k, threshold and
        residual norm of each layer, and the messages.
        """
        if self._exchanger.is_open:
            self.row = self._exchanger.end(record)
            if self.row.met_by:
                self._exchanger.update[...] = 0
            self.steps += 1
        if self.row is None:
            raise ValueError("no step has begun")
        return self.row

    def state(self) -> State:
        """What this rank needs to go on with the same bits, by name.

        "residual" is what has not been sent yet.
        """
        state = {name: np.array(array) for name, array in self._exchanger.state().items()}
        return state | {STEPS: np.array(self.steps, dtype=np.int64)}

    def restore(self, state: Mapping[str, Array]) -> None:
        """Continue from what `state` returned on this rank. Every rank calls it.

        ValueError where it is not the state of such an exchange.
        """
        expected = self.state()
        for name, array in expected.items():
            given = np.asarray(state[name]) if name in state else None
            if given is None or (given.shape, given.dtype) != (array.shape, array.dtype):
                raise ValueError(
                    f"the state has no {name} of shape {array.shape} and type {array.dtype}"
                )
        self._exchanger.restore(state)
        self.steps = int(state[STEPS])

    def close(self) -> None:
        """Close the exchange and free its MPI communicators. All ranks call it, between steps."""
        self._exchanger.finish()
        if self._owns:
            self.comm.finish()
            self._owns = False

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        if kind is None:
            self.close()

    def _named(self, gradients: Mapping[str, Array]) -> dict[str, Array]:
        if missing := [name for name in self._shapes if name not in gradients]:
            raise ValueError(f"there is no gradient of layer {missing[0]}")
        if odd := [name for name in gradients if name not in self._shapes]:
            raise ValueError(f"there is no layer {odd[0]!r}; there are {', '.join(self._shapes)}")
        return {name: gradients[name] for name in self._shapes}

    def _cut(self, gradient: Any) -> dict[str, Array]:
        n, flat = self._exchanger.layout.n, np.asarray(gradient)
        if flat.shape != (n,):
            raise ValueError(
                f"the gradient has the shape {flat.shape}, not ({n},); give a mapping for separate"
                " arrays"
            )
        cuts = np.split(flat, self._exchanger.layout.offsets[1:-1])
        return dict(zip(self._shapes, cuts, strict=True))

    def _mean(self) -> Array:
        return np.array(self._backend.ops.to_host(self._exchanger.update))

    def _layer(self, flat: Array, name: str) -> Array:
        span = self._exchanger.layout.span(range(self._number[name], self._number[name] + 1))
        return flat[span].reshape(self._shapes[name])


def _shape(name: str, size: Any) -> tuple[int, ...]:
    """A layer's shape from its size, shape, or an array. ValueError."""
    given = getattr(size, "shape", size)
    try:
        shape = (int(given),) if np.ndim(given) == 0 else tuple(int(side) for side in given)
    except (TypeError, ValueError):
        raise ValueError(f"layer {name} needs a size or a shape, not {size!r}") from None
    if min(shape, default=1) < 1:
        raise ValueError(f"layer {name} has the shape {shape}; every side must be at least 1")
    return shape


def _check_same(comm: Comm, mine: Mapping[str, Any]) -> None:
    """ValueError on all ranks, naming the first argument in which a rank differs from rank 0."""
    if words := comm.difference({name: repr(value) for name, value in mine.items()}):
        raise ValueError(words)


def _comm(given: Any, timeout: float) -> Comm:
    """The communicator: a duplicate, so that nothing mixes with the program's own messages."""
    if isinstance(given, Comm):
        return given
    if given is None and not launcher.launched(os.environ):
        return local.alone()
    from dls.comm.world import World, shared  # here, as it loads MPI

    if given is not None:
        return World(timeout, given.Dup(), guarded=False)
    comm = shared(timeout)
    if words := launcher.alone(comm.size, comm.library, os.environ):
        raise ValueError(words)
    return comm
