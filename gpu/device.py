"""Where the CUDA kernels run: a GPU through CuPy. Tests put another Device here, which runs the same source on the CPU."""

from __future__ import annotations

import re
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

    def choose(self, number: int) -> None:
        """Compute on the machine's GPU of this number, counted round and round, from now on."""

    def launch(self, kernel: str, blocks: int, args: Sequence[Any]) -> None:
        """Run a kernel of kernels.cu on so many blocks; arrays are `xp`'s, numbers are i64."""

    def wait(self) -> None:
        """Return when everything launched so far is done."""

    def address(self, array: Any) -> int:
        """Where an array's first value lies in the device's memory."""

    def describe(self) -> dict[str, str]:
        """The device's name, under "device", and what else a measurement on it depends on."""


class Cuda:
    """The current GPU."""

    def __init__(self) -> None:
        import cupy

        cupy.cuda.runtime.getDeviceCount()  # raises where there is no GPU
        self.xp: ModuleType = cupy
        self._module = cupy.RawModule(code="extern \"C\" {\n" + SOURCE.read_text() + "\n}", options=OPTIONS)

    def choose(self, number: int) -> None:
        """See Device."""
        self.xp.cuda.Device(number % self.xp.cuda.runtime.getDeviceCount()).use()

    def launch(self, kernel: str, blocks: int, args: Sequence[Any]) -> None:
        """See Device."""
        ready = tuple(np.int64(arg) if isinstance(arg, int) else arg for arg in args)
        self._module.get_function(kernel)((blocks,), (THREADS,), ready)

    def wait(self) -> None:
        """See Device."""
        self.xp.cuda.get_current_stream().synchronize()

    def address(self, array: Any) -> int:
        """See Device."""
        return int(array.data.ptr)

    def describe(self) -> dict[str, str]:
        """See Device."""
        runtime = self.xp.cuda.runtime
        card, driver = runtime.getDeviceProperties(self.xp.cuda.Device().id), Path("/proc/driver/nvidia/version")
        found = re.search(r"\d+\.[\d.]+", driver.read_text()) if driver.exists() else None
        return {
            "device": card["name"].decode(),
            "memory": f"{card['totalGlobalMem'] / 2**30:.0f} GiB",
            "compute capability": f"{card['major']}.{card['minor']}",
            "driver": found[0] if found else "unknown",
            "CUDA of the driver": _version(runtime.driverGetVersion()),
            "CUDA runtime": _version(runtime.runtimeGetVersion()),
            "NVRTC": ".".join(map(str, self.xp.cuda.nvrtc.getVersion())),
        }


def _version(number: int) -> str:
    """CUDA's versions as people write them: 12040 is 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


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
