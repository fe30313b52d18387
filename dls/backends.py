"""The backends: what each of them must compute, and how they are loaded by name.

A backend is four objects: the primitives, Algorithm 2, the messages and the network's layers. Names
and signatures are those of the functions in `reference/`, which define them.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from reference.adjustment import Counts, Thresholds
from reference.nn import Array, Shape
from reference.ops import Gradient, Head, Index, Selection, Vector
from reference.wire import Bytes


class BackendMissing(ValueError):
    """The requested backend cannot be loaded here."""


# What a backend computes --------------------------------------------------------------------------


class Ops(Protocol):
    """The primitives of `reference.ops`, and the device on which they compute."""

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
        gradient: Gradient,
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
        """A numpy array as the backend's array; the same object if it computes on the host."""

    def to_host(self, array: Any) -> NDArray[Any]:
        """The backend's array as a numpy array; the same object if it computes on the host."""

    def from_dlpack(self, array: Any) -> NDArray[Any]:
        """Another library's array on this backend's device, in the same memory."""

    def in_stream(self, stream: int) -> AbstractContextManager[Any]:
        """Meanwhile compute in the order of another library's CUDA stream, given by its handle."""

    def set_threads(self, count: int) -> None:
        """Compute with so many threads."""

    def set_device(self, rank_on_node: int) -> None:
        """Compute on this rank's device of its machine."""

    def wait(self) -> None:
        """Return when everything is computed."""

    def is_compiled(self) -> bool:
        """Whether the code is compiled already, so that the first steps need no compiler."""

    def notes(self) -> tuple[str, ...]:
        """What the user should know about the backend on this machine, a line each."""

    def describe(self) -> dict[str, str]:
        """The device's name, as "device", and what else measurements depend on; {} for the host."""

    def library(self) -> str:
        """The version of the library that computes."""


class Adjustment(Protocol):
    """The functions of `reference.adjustment` that need the values of the layers."""

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
    """Messages, as in `reference.wire`."""

    def payload_size(self, n: int, k: int, value_dtype: str = "float32") -> int:
        """See `reference.wire.payload_size`."""

    def round_values(self, values: Vector, value_dtype: str) -> Vector:
        """See `reference.wire.round_values`."""

    def encode(self, index: Index, values: Vector, n: int, value_dtype: str = "float32") -> Bytes:
        """See `reference.wire.encode`."""

    def decode(self, payload: Bytes, n: int, k: int, value_dtype: str = "float32") -> Selection:
        """See `reference.wire.decode`."""


class Nn(Protocol):
    """The network's layers, as in `reference.nn`; each backend has its own caches."""

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
    """A compute backend."""

    name: str
    ops: Ops
    adjustment: Adjustment
    wire: Wire
    nn: Nn
    compiled: bool = True
    """Whether its code was compiled already when it was loaded; if not, that comes first."""
    notes: tuple[str, ...] = ()
    """What the user should know about it on this machine, a line each."""

    @property
    def on_host(self) -> bool:
        """Whether it computes on the processor, in the host's memory."""
        return not self.ops.describe()

    def describe(self) -> dict[str, str]:
        """The device's name, as "device", and what else a measurement depends on."""
        here = {"device": processor(), "cores": str(len(os.sched_getaffinity(0)))}
        return self.ops.describe() or here

    def version(self) -> str:
        """Its name, the version of its library and, unless that is the processor, its device."""
        words = f"{self.name} {self.ops.library()}"
        return words if self.on_host else f"{words} on {self.describe()['device']}"


_Parts = tuple[Ops, Adjustment, Wire, Nn]
"""The four objects of a backend."""


def _numpy() -> _Parts:
    from gpu import base

    return base.Ops(), base.Adjustment(), base.Wire(), base.Nn()


def _numba() -> _Parts:
    from gpu import numba

    return numba.Ops(), numba.Adjustment(), numba.Wire(), numba.Nn()


def _cupy() -> _Parts:
    from gpu import cupy

    return cupy.Ops(), cupy.Adjustment(), cupy.Wire(), cupy.Nn()


class _Installation(NamedTuple):
    """How a backend is loaded and installed, and what it needs."""

    parts: Callable[[], _Parts]
    """Loads its four objects."""
    install: str
    """The command that installs the packages that it imports."""
    needs: str = ""
    """What it needs besides packages."""


_CUDA = "a GPU with its driver, and CUDA's compiler and libraries"
"""What the CuPy backend needs besides packages."""
_BACKENDS = {
    "numpy": _Installation(_numpy, "pip install numpy"),
    "numba": _Installation(_numba, "pip install numba"),
    "cupy": _Installation(
        _cupy, "pip install 'dls[cuda]'", f"{_CUDA}, which pip install 'dls[cuda]' brings"
    ),
}


def names() -> tuple[str, ...]:
    """The names of all backends, installed or not."""
    return tuple(_BACKENDS)


def default() -> str:
    """The name of the fastest backend that needs no GPU."""
    return "numba"


def load(name: str, rank_on_node: int = 0) -> Backend:
    """The backend of that name, on this rank's device of the machine.

    BackendMissing, which says what to do, if its packages, compiler or device are missing.
    """
    try:
        ops, adjustment, wire, nn = _BACKENDS[name].parts()
        ops.set_device(rank_on_node)
        backend = Backend(name, ops, adjustment, wire, nn, ops.is_compiled(), ops.notes())
        _try(backend)
        return backend
    except Exception as error:  # anything that a driver, a compiler or a library raises
        raise BackendMissing(f"the backend '{name}' {_why(error, _BACKENDS[name])}") from error


def _why(error: BaseException, installation: _Installation) -> str:
    """Why a backend cannot be loaded, and what to do: install it only if a package is missing."""
    # of many lines, as a compiler prints them, the first
    words = next(iter(str(error).splitlines()), type(error).__name__)
    if _is_missing_package(error):
        return f"is not installed ({words}); install it with: {installation.install}"
    needs = f"; it needs {installation.needs}" if installation.needs else ""
    return f"cannot be used here: {words}{needs}"


def _is_missing_package(error: BaseException | None) -> bool:
    """Whether the error, or one of its causes, is that a module was not found."""
    if error is None:
        return False
    return isinstance(error, ModuleNotFoundError) or _is_missing_package(
        error.__cause__ or error.__context__
    )


def _try(backend: Backend) -> None:
    """Compute a little, which fails if a device, a compiler or a matrix library is missing."""
    one = backend.ops.zeros(1)
    backend.ops.top_k(one, 1)
    backend.nn.linear_input_gradient(one.reshape(1, 1), one.reshape(1, 1))


def processor() -> str:
    """The name of the processor, from Linux."""
    found = re.search(
        r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE
    )
    return found[1] if found else platform.processor() or platform.machine()
