"""gpu/cupy/kernels.cu on the CPU: the same source, compiled as C++, with loops over blocks and a
phase's threads.
"""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from gpu.cupy import device

SHIM = """
struct Position { long long x; };
static Position blockIdx, threadIdx, blockDim;
#define __device__ static
#define __global__ static
#define __shared__ static
#define PHASE for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++)
template <typename T>
static T atomicAdd(T* place, T amount) { T old = *place; *place += amount; return old; }
"""
THREADS = 5
"""Threads of a block here: few, so that strided loops wrap."""


class Host:
    """A Device without a GPU."""

    def __init__(self, folder: Path) -> None:
        self.xp: ModuleType = np
        source = device.SOURCE.read_text()
        signatures = re.findall(r"__global__ void (\w+)\(([^)]*)\)", source)
        assert {name for name, _ in signatures} == set(device.KERNELS)
        (folder / "kernels.cpp").write_text(
            SHIM + source + "".join(_runner(*signature) for signature in signatures)
        )
        library = folder / "kernels.so"
        command = [
            "c++",
            "-O1",
            *device.SIZES,
            "-ffp-contract=off",
            "-Wall",
            "-Werror",
            "-shared",
            "-fPIC",
            "-o",
            str(library),
        ]
        subprocess.run([*command, str(folder / "kernels.cpp")], check=True)
        self._library = ctypes.CDLL(str(library))
        self.launches = 0

    def choose(self, number: int) -> None:
        pass

    def launch(self, kernel: str, blocks: int, args: Sequence[Any], threads: int = 0) -> None:
        self.launches += 1
        assert all(arg.flags.c_contiguous for arg in args if not isinstance(arg, int))
        ready = [
            ctypes.c_int64(arg) if isinstance(arg, int) else ctypes.c_void_p(arg.ctypes.data)
            for arg in args
        ]
        getattr(self._library, f"run_{kernel}")(
            ctypes.c_int64(blocks), ctypes.c_int64(THREADS), *ready
        )

    def wait(self) -> None:
        pass

    def in_stream(self, stream: int) -> AbstractContextManager[Any]:
        return nullcontext()

    def address(self, array: Any) -> int:
        return int(array.ctypes.data)

    def describe(self) -> dict[str, str]:
        return {"device": "kernels on the CPU"}


def _runner(name: str, parameters: str) -> str:
    names = ", ".join(parameter.split()[-1] for parameter in parameters.split(","))
    return (
        f'extern "C" void run_{name}(i64 blocks, i64 threads, {parameters}) {{ blockDim.x ='
        f" threads;\nfor (blockIdx.x = 0; blockIdx.x < blocks; blockIdx.x++) {name}({names}); }}\n"
    )
