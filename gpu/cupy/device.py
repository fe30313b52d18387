"""Where the CUDA kernels run: a GPU through CuPy.

Tests put another Device here, which runs the same source on the CPU.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

SOURCE = Path(__file__).with_name("kernels.cu")
"""The source of the kernels."""
THREADS = 256
"""Threads of a block."""
WIDE = 1 << 10
"""Threads of a block that has a layer to itself."""
CHUNK = 1 << 13
"""Most values of a block: few, so that a small model also occupies a whole GPU, and at most 2**16.

Their positions have 16 bits.
"""
DIGITS = 1 << 11
"""Most digits of a level of the radix search; a block counts each in shared memory."""
SIZES = (
    f"-DTHREADS={THREADS}",
    f"-DWIDE={WIDE}",
    f"-DCHUNK={CHUNK}",
    f"-DDIGITS={DIGITS}",
)
"""The constants above, as macros of the kernels."""
OPTIONS = ("--fmad=false", "--std=c++17", *SIZES)
"""Options of CUDA's compiler."""
KERNELS = (
    "collect",
    "pick",
    "unpack",
    "count_at_least",
    "digit_histogram",
    "next_digit",
    "sum_of_squares",
    "add_at",
    "scale",
    "sgd",
)
"""The names of the kernels."""


class Device(Protocol):
    """An array library with numpy's functions, and the kernels."""

    xp: ModuleType

    def choose(self, number: int) -> None:
        """From now on compute on this GPU of the machine, its number modulo their count."""

    def launch(self, kernel: str, blocks: int, args: Sequence[Any], threads: int = THREADS) -> None:
        """Run a kernel of kernels.cu on so many blocks of so many threads.

        args: arrays of `xp`, or numbers, which become i64; 0 stands for no array.
        """

    def wait(self) -> None:
        """Return when everything launched so far is done."""

    def in_stream(self, stream: int) -> AbstractContextManager[Any]:
        """Meanwhile this thread computes in a CUDA stream of another library, by its handle."""

    def address(self, array: Any) -> int:
        """The address of an array's first value in the device's memory."""

    def describe(self) -> dict[str, str]:
        """The device's name, as "device", and what else a measurement on it depends on."""


class Cuda:
    """The current GPU."""

    def __init__(self) -> None:
        import cupy

        cupy.cuda.runtime.getDeviceCount()  # raises if there is no GPU
        self.xp: ModuleType = cupy
        self._module = cupy.RawModule(
            code='extern "C" {\n' + SOURCE.read_text() + "\n}", options=OPTIONS
        )

    def choose(self, number: int) -> None:
        """See Device."""
        self.xp.cuda.Device(number % self.xp.cuda.runtime.getDeviceCount()).use()
        cut_once.cache_clear()  # its tables are on the device used before

    def launch(self, kernel: str, blocks: int, args: Sequence[Any], threads: int = THREADS) -> None:
        """See Device."""
        if blocks:
            arrays = [arg for arg in args if not isinstance(arg, int)]
            if not all(array.flags.c_contiguous for array in arrays):
                raise ValueError(f"{kernel} takes arrays that lie in one piece")
            ready = tuple(np.int64(arg) if isinstance(arg, int) else arg for arg in args)
            self._module.get_function(kernel)((blocks,), (threads,), ready)

    def wait(self) -> None:
        """See Device."""
        self.xp.cuda.get_current_stream().synchronize()

    def in_stream(self, stream: int) -> AbstractContextManager[Any]:
        """See Device."""
        return _external(self.xp, stream, self.xp.cuda.runtime.getDevice())

    def address(self, array: Any) -> int:
        """See Device."""
        return int(array.data.ptr)

    def describe(self) -> dict[str, str]:
        """See Device."""
        runtime = self.xp.cuda.runtime
        card = runtime.getDeviceProperties(self.xp.cuda.Device().id)
        driver = Path("/proc/driver/nvidia/version")
        version = re.search(r"\d+\.[\d.]+", driver.read_text()) if driver.exists() else None
        return {
            "device": card["name"].decode(),
            "memory": f"{card['totalGlobalMem'] / 2**30:.0f} GiB",
            "compute capability": f"{card['major']}.{card['minor']}",
            "driver": version[0] if version else "unknown",
            "CUDA of the driver": _version(runtime.driverGetVersion()),
            "CUDA runtime": _version(runtime.runtimeGetVersion()),
            "NVRTC": ".".join(map(str, self.xp.cuda.nvrtc.getVersion())),
        }


@cache
def _external(xp: ModuleType, stream: int, device: int) -> AbstractContextManager[Any]:
    """Another library's stream. CuPy 14 advises to use `Stream.from_external` instead, but that may
    destroy the stream together with its own object; so its advice is not passed on.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        entered: AbstractContextManager[Any] = xp.cuda.ExternalStream(stream, device)
    return entered


def _version(number: int) -> str:
    """A CUDA version as text: 12040 is 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


_chosen: list[Device] = []


def current() -> Device:
    """The device in use: the current GPU, unless `use` has set another one.

    ImportError if CuPy or a GPU is missing.
    """
    if not _chosen:
        try:
            _chosen.append(Cuda())
        except Exception as error:
            raise ImportError(f"no GPU can be used: {error}") from error
    return _chosen[0]


def use(device: Device) -> None:
    """Run the kernels on this device from now on."""
    cut_once.cache_clear()
    _chosen[:] = [device]


def launch_over(size: int, kernel: str, args: Sequence[Any]) -> None:
    """Run a kernel each block of which does CHUNK of so many values."""
    current().launch(kernel, -(-size // CHUNK), args)


def from_host(array: NDArray[Any]) -> NDArray[Any]:
    """A host array on the device, contiguous; an array on the device is returned as it is."""
    moved: NDArray[Any] = current().xp.asarray(array, order="C")
    return moved


def to_host(array: Any) -> NDArray[Any]:
    """An array on the device as a numpy array."""
    host: NDArray[Any] = array.get() if hasattr(array, "get") else array
    return host


class Chunks(NamedTuple):
    """Layers cut into chunks, each of which is the work of one block."""

    layers: int
    layer: NDArray[np.int64]
    """The layer of every chunk, ascending, on the host."""
    table: Any
    """Every chunk's layer, start and stop (chunks × 3), on the device."""


def cut(bounds: NDArray[np.int64]) -> Chunks:
    """The chunks of layers at bounds[l, 0]..bounds[l, 1], on the current device."""
    start, stop = bounds.T
    count = -(-(stop - start) // CHUNK)
    layer = np.repeat(np.arange(len(bounds)), count)
    first = start[layer] + CHUNK * (np.arange(layer.size) - (np.cumsum(count) - count)[layer])
    table = np.stack([layer, first, np.minimum(first + CHUNK, stop[layer])], axis=1)
    return Chunks(len(bounds), layer, current().xp.asarray(table))


@lru_cache(maxsize=64)
def cut_once(bounds: bytes) -> Chunks:
    """`cut`, kept for the next step, which may run in another stream; bounds: the bytes of its
    argument.
    """
    chunks = cut(np.frombuffer(bounds, dtype=np.int64).reshape(-1, 2))
    current().wait()
    return chunks
