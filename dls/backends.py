"""The backends: what each of them computes, and all of them by name, loaded on demand.

A backend is four objects: the primitives, Algorithm 2, the messages and the network's layers. Names
and signatures are those of the functions in `reference/`, which also say what each one means.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from reference.adjustment import Counts, Thresholds
from reference.nn import Array, Shape
from reference.ops import Head, Index, Selection, Vector
from reference.wire import Bytes


class BackendMissing(ValueError):
    """A backend that was asked for cannot be loaded here."""


# What a backend computes --------------------------------------------------------------------------


class Ops(Protocol):
    """The primitives, as `reference.ops` has them, and the device that they compute on."""

    def zeros(self, n: int) -> Vector:
        """See `reference.ops.zeros`."""

    def accumulate(self, residual: Vector, gradient: Vector) -> None:
        """See `reference.ops.accumulate`."""

    def all_finite(self, v: Vector) -> bool:
        """See `reference.ops.all_finite`."""

    def top_k(self, v: Vector, k: int) -> Selection:
        """See `reference.ops.top_k`."""

    def select(
        self, residual: Vector, gradient: Vector, k: int, hint: float
    ) -> tuple[Index, Vector, float]:
        """See `reference.ops.select`."""

    def select_layers(
        self,
        residual: Vector,
        gradient: Vector,
        offsets: Index,
        k: Index,
        hints: NDArray[np.float64],
        expected: Index | None = None,
    ) -> tuple[Index, Vector, NDArray[np.float64], list[Head]]:
        """See `reference.ops.select_layers`."""

    def top_k_of_rest(self, v: Vector, offsets: Index, heads: Sequence[Head], k: int) -> Selection:
        """See `reference.ops.top_k_of_rest`."""

    def kth_largest(self, v: Vector, k: int) -> float:
        """See `reference.ops.kth_largest`."""

    def count_at_least(self, v: Vector, t: float) -> int:
        """See `reference.ops.count_at_least`."""

    def scatter_add(self, target: Vector, index: Index, values: Vector) -> None:
        """See `reference.ops.scatter_add`."""

    def scatter_subtract(self, target: Vector, index: Index, values: Vector) -> None:
        """See `reference.ops.scatter_subtract`."""

    def scale(self, v: Vector, factor: float) -> None:
        """See `reference.ops.scale`."""

    def l2_norm(self, v: Vector) -> float:
        """See `reference.ops.l2_norm`."""

    def sgd_update(
        self,
        weights: Vector,
        momentum: Vector,
        update: Vector,
        lr: float,
        mu: float,
        weight_decay: float,
        nesterov: bool,
    ) -> None:
        """See `reference.ops.sgd_update`."""

    def l2_norms(self, v: Vector, offsets: Index) -> NDArray[np.float64]:
        """See `reference.ops.l2_norms`."""

    def clip_norm(self, gradient: Vector, limit: float) -> None:
        """See `reference.ops.clip_norm`."""

    def from_host(self, array: NDArray[Any]) -> NDArray[Any]:
        """A host array as the backend's own; the same object where it computes on the host."""

    def to_host(self, array: Any) -> NDArray[Any]:
        """The backend's array as numpy's; the same object where it computes on the host."""

    def set_threads(self, count: int) -> None:
        """Compute with so many threads."""

    def set_device(self, rank_on_node: int) -> None:
        """Compute on this rank's share of its machine's devices."""

    def wait(self) -> None:
        """Return when all that was asked for is computed."""

    def is_compiled(self) -> bool:
        """Whether the code lies ready, so that the first steps wait for no compiler."""

    def notes(self) -> tuple[str, ...]:
        """What the user should know of the backend on this machine, a line each."""

    def describe(self) -> dict[str, str]:
        """The device's name, under "device", and what else measurements depend on; {}: the host."""

    def library(self) -> str:
        """The version of the library that computes."""


class Adjustment(Protocol):
    """Algorithm 2, the functions of `reference.adjustment` that look at all values."""

    def fresh_thresholds(self, v: Sequence[Vector], k: Counts) -> Thresholds:
        """See `reference.adjustment.fresh_thresholds`."""

    def complete_thresholds(
        self, v: Sequence[Vector], k: Counts, inner: Sequence[float]
    ) -> Thresholds:
        """See `reference.adjustment.complete_thresholds`."""

    def one_step_adjustment(
        self, v: Sequence[Vector], k: Counts, t: Thresholds
    ) -> tuple[Counts, Thresholds]:
        """See `reference.adjustment.one_step_adjustment`."""

    def adjust(
        self,
        v: Sequence[Vector],
        k: Counts,
        t: Thresholds,
        steps: int,
        heads: Sequence[Head] | None = None,
    ) -> Counts:
        """See `reference.adjustment.adjust`."""

    def optimal_adjustment(self, v: Sequence[Vector], k: Counts) -> Counts:
        """See `reference.adjustment.optimal_adjustment`."""


class Wire(Protocol):
    """Messages, as `reference.wire` has them."""

    def payload_size(self, n: int, k: int, value_dtype: str = "float32") -> int:
        """See `reference.wire.payload_size`."""

    def round_values(self, values: Vector, value_dtype: str) -> Vector:
        """See `reference.wire.round_values`."""

    def encode(self, index: Index, values: Vector, n: int, value_dtype: str = "float32") -> Bytes:
        """See `reference.wire.encode`."""

    def decode(self, payload: Bytes, n: int, k: int, value_dtype: str = "float32") -> Selection:
        """See `reference.wire.decode`."""


class Nn(Protocol):
    """The network's layers, as `reference.nn` has them; a cache is the backend's own."""

    def asarray(self, values: Array) -> Array:
        """See `reference.nn.asarray`."""

    def he_normal(self, rng: np.random.Generator, shape: Shape, fan_in: int) -> NDArray[np.float32]:
        """See `reference.nn.he_normal`."""

    def linear_forward(self, x: Array, w: Array, b: Array) -> Array:
        """See `reference.nn.linear_forward`."""

    def linear_weight_gradients(self, dy: Array, x: Array, dw: Array, db: Array) -> None:
        """See `reference.nn.linear_weight_gradients`."""

    def linear_input_gradient(self, dy: Array, w: Array) -> Array:
        """See `reference.nn.linear_input_gradient`."""

    def conv2d_forward(
        self, x: Array, w: Array, b: Array | None, stride: int, padding: int
    ) -> tuple[Array, Any]:
        """See `reference.nn.conv2d_forward`."""

    def conv2d_weight_gradients(self, dy: Array, cache: Any, dw: Array, db: Array | None) -> None:
        """See `reference.nn.conv2d_weight_gradients`."""

    def conv2d_input_gradient(self, dy: Array, cache: Any, w: Array) -> Array:
        """See `reference.nn.conv2d_input_gradient`."""

    def relu_forward(self, x: Array) -> Array:
        """See `reference.nn.relu_forward`."""

    def relu_backward(self, dy: Array, y: Array) -> Array:
        """See `reference.nn.relu_backward`."""

    def max_pool2d_forward(self, x: Array, size: int) -> tuple[Array, Any]:
        """See `reference.nn.max_pool2d_forward`."""

    def max_pool2d_backward(self, dy: Array, cache: Any) -> Array:
        """See `reference.nn.max_pool2d_backward`."""

    def global_avg_pool_forward(self, x: Array) -> Array:
        """See `reference.nn.global_avg_pool_forward`."""

    def global_avg_pool_backward(self, dy: Array, shape: Shape) -> Array:
        """See `reference.nn.global_avg_pool_backward`."""

    def batch_norm_forward(
        self, x: Array, gamma: Array, beta: Array, eps: float
    ) -> tuple[Array, Array, Array, Any]:
        """See `reference.nn.batch_norm_forward`."""

    def batch_norm_inference(
        self, x: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float
    ) -> Array:
        """See `reference.nn.batch_norm_inference`."""

    def batch_norm_backward(
        self, dy: Array, cache: Any, gamma: Array
    ) -> tuple[Array, Array, Array]:
        """See `reference.nn.batch_norm_backward`."""

    def flatten_forward(self, x: Array) -> Array:
        """See `reference.nn.flatten_forward`."""

    def flatten_backward(self, dy: Array, shape: Shape) -> Array:
        """See `reference.nn.flatten_backward`."""

    def add_forward(self, x: Array, shortcut: Array) -> Array:
        """See `reference.nn.add_forward`."""

    def add_backward(self, dy: Array) -> tuple[Array, Array]:
        """See `reference.nn.add_backward`."""

    def shortcut_forward(self, x: Array, channels: int, stride: int) -> Array:
        """See `reference.nn.shortcut_forward`."""

    def shortcut_backward(self, dy: Array, shape: Shape, stride: int) -> Array:
        """See `reference.nn.shortcut_backward`."""

    def softmax_cross_entropy(
        self, logits: Array, labels: NDArray[np.integer[Any]]
    ) -> tuple[float, Array, int]:
        """See `reference.nn.softmax_cross_entropy`."""


# Backends by name ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    """Who computes."""

    name: str
    ops: Ops
    adjustment: Adjustment
    wire: Wire
    nn: Nn
    compiled: bool = True
    """Whether its code lay ready on this machine when it was loaded; else a compiler comes first.
    """
    notes: tuple[str, ...] = ()
    """What the user should know of it on this machine, a line each."""

    @property
    def on_host(self) -> bool:
        """Whether the processor computes, in the host's memory."""
        return not self.ops.describe()

    def describe(self) -> dict[str, str]:
        """On what it computes: its name under "device", and what else a measurement depends on."""
        here = {"device": processor(), "cores": str(len(os.sched_getaffinity(0)))}
        return self.ops.describe() or here

    def version(self) -> str:
        """Its name and its library's version, and its device where that is not the processor."""
        words = f"{self.name} {self.ops.library()}"
        return words if self.on_host else f"{words} on {self.describe()['device']}"


_Parts = tuple[Ops, Adjustment, Wire, Nn]


def _numpy() -> _Parts:
    from gpu import base

    return base.Ops(), base.Adjustment(), base.Wire(), base.Nn()


def _numba() -> _Parts:
    from gpu import numba

    return numba.Ops(), numba.Adjustment(), numba.Wire(), numba.Nn()


def _cupy() -> _Parts:
    from gpu import cupy

    return cupy.Ops(), cupy.Adjustment(), cupy.Wire(), cupy.Nn()


class _Home(NamedTuple):
    """How a backend comes here, and what it needs."""

    parts: Callable[[], _Parts]
    install: str
    """How the packages that it imports come here."""
    needs: str = ""
    """What there must be beside packages."""


_CUDA = "a GPU with its driver, and CUDA's compiler and libraries"
_HOMES = {
    "numpy": _Home(_numpy, "pip install numpy"),
    "numba": _Home(_numba, "pip install numba"),
    "cupy": _Home(
        _cupy, "pip install 'dls[cuda]'", f"{_CUDA}, which pip install 'dls[cuda]' brings"
    ),
}


def names() -> tuple[str, ...]:
    """All backends that exist, installed or not."""
    return tuple(_HOMES)


def default() -> str:
    """The fastest without a GPU."""
    return "numba"


def load(name: str, rank_on_node: int = 0) -> Backend:
    """The backend of that name, on this rank's share of the machine's devices.

    BackendMissing, with what is to do, where its packages, compiler or device are absent.
    """
    try:
        ops, adjustment, wire, nn = _HOMES[name].parts()
        ops.set_device(rank_on_node)
        backend = Backend(name, ops, adjustment, wire, nn, ops.is_compiled(), ops.notes())
        _try(backend)
        return backend
    except Exception as error:  # whatever a driver, a compiler or a library raises
        raise BackendMissing(f"the backend '{name}' {_why(error, _HOMES[name])}") from error


def _why(error: BaseException, home: _Home) -> str:
    """What is wrong with a backend, and what to do: to install only where a package is missing."""
    words = next(iter(str(error).splitlines()), type(error).__name__)  # a compiler has many
    if _is_missing_package(error):
        return f"is not installed ({words}); install it with: {home.install}"
    needs = f"; it needs {home.needs}" if home.needs else ""
    return f"cannot be used here: {words}{needs}"


def _is_missing_package(error: BaseException | None) -> bool:
    """Whether a module was not found, in the error or in one that it comes from."""
    if error is None:
        return False
    return isinstance(error, ModuleNotFoundError) or _is_missing_package(
        error.__cause__ or error.__context__
    )


def _try(backend: Backend) -> None:
    """Compute a little: a device, a compiler or a library for matrices that is missing shows
    here.
    """
    one = backend.ops.zeros(1)
    backend.ops.top_k(one, 1)
    backend.nn.linear_input_gradient(one.reshape(1, 1), one.reshape(1, 1))


def processor() -> str:
    """The processor's name as Linux gives it."""
    found = re.search(
        r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
    )
    return found[1] if found else platform.processor() or platform.machine()
