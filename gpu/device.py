"""Where the CUDA kernels run: a GPU through CuPy. Tests put another Device here, which runs the same source on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

SOURCE = Path(__file__).with_name("kernels.cu")
OPTIONS = ("--fmad=false", "--std=c++17")
THREADS = 256
CHUNK = 1 << 16
"""Most values that one block takes."""
KERNELS = ("accumulate_and_collect", "collect", "count_at_least", "digit_histogram")


class Device(Protocol):
    """An array library with numpy's functions, and the kernels."""

    xp: ModuleType

    def launch(self, kernel: str, blocks: int, args: Sequence[Any]) -> None:
        """Run a kernel of kernels.cu on so many blocks; arrays are `xp`'s, numbers are i64."""

    def address(self, array: Any) -> int:
        """Where an array's first value lies in the device's memory."""


class Cuda:
    """The current GPU."""

    def __init__(self) -> None:
        import cupy

        cupy.cuda.runtime.getDeviceCount()  # raises where there is no GPU
        self.xp: ModuleType = cupy
        self._module = cupy.RawModule(code="extern \"C\" {\n" + SOURCE.read_text() + "\n}", options=OPTIONS)

    def launch(self, kernel: str, blocks: int, args: Sequence[Any]) -> None:
        """See Device."""
        ready = tuple(np.int64(arg) if isinstance(arg, int) else arg for arg in args)
        self._module.get_function(kernel)((blocks,), (THREADS,), ready)

    def address(self, array: Any) -> int:
        """See Device."""
        return int(array.data.ptr)


_chosen: list[Device] = []


def current() -> Device:
    """The device in use; the current GPU unless `use` said otherwise. ImportError where CuPy or a GPU is missing."""
    if not _chosen:
        try:
            _chosen.append(Cuda())
        except Exception as error:
            raise ImportError(f"no GPU can be used: {error}") from error
    return _chosen[0]


def use(device: Device) -> None:
    """Run the kernels on this device from now on."""
    _chosen[:] = [device]


@lru_cache(maxsize=64)
def chunks(bounds: tuple[tuple[int, int], ...]) -> tuple[NDArray[np.int64], ...]:
    """Each layer's range start..stop cut into chunks: layer, start and stop of every chunk (host arrays)."""
    table = [
        (layer, at, min(at + CHUNK, stop)) for layer, (start, stop) in enumerate(bounds) for at in range(start, stop, CHUNK)
    ]
    return tuple(np.array(column, dtype=np.int64) for column in zip(*table, strict=True))
