"""From what a program asks for to a method and a backend."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dls import backends
from dls.comm import cores
from dls.comm.base import Comm
from dls.torch.parameters import Tensor

BUCKET_SIZE = 1 << 20
"""The default size of a bucket, in values: larger than that of `dls.exchange`, as these models are
larger, and a bucket takes about half a millisecond whatever it holds.
"""


@dataclass(frozen=True, kw_only=True)
class HookOptions:
    """The arguments of `comm_hook`, which `attach` has as well, by their names there. ValueError
    where one is wrong.
    """

    comm: Any
    backend: str
    bucket_size: int
    scaler: Any
    check_every: int
    threads: int
    timeout: float

    def __post_init__(self) -> None:
        self.check_number("bucket_size", 1)
        self.check_number("check_every", 0)
        self.check_number("threads", 0)
        if not isinstance(self.timeout, int | float) or not self.timeout > 0:
            raise ValueError(f"timeout is {self.timeout!r}; it must be a number of seconds")

    def check_number(self, name: str, low: int) -> None:
        """ValueError where it is no whole number, or too small."""
        value = getattr(self, name)
        if not isinstance(value, int | np.integer) or value < low:
            raise ValueError(f"{name} is {value!r}; it must be a whole number from {low} on")

    @property
    def skips(self) -> bool:
        """Whether a step in which a rank meets NaN or infinity is left out."""
        return self.scaler is not None

    def same(self) -> dict[str, Any]:
        """What must be the same on all ranks."""
        same = {"bucket_size": self.bucket_size, "check_every": self.check_every}
        return same | {"scaler": self.scaler is not None}

    def of_steps(self) -> dict[str, Any]:
        """What `Steps` takes of them."""
        scale = None if self.scaler is None else self.scaler.get_scale
        on_nan = "skip" if self.skips else "stop"
        return {"bucket_size": self.bucket_size, "on_nan": on_nan, "scale": scale}


@dataclass(frozen=True, kw_only=True)
class Options(HookOptions):
    """The arguments of `attach`."""

    overlap: bool
    on_nan: str
    buffers: str
    broadcast: bool
    out: str | Path
    trace_every: int
    diagnose_every: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_number("trace_every", 1)
        self.check_number("diagnose_every", 0)
        if self.on_nan not in ("stop", "skip"):
            raise ValueError(f"on_nan is {self.on_nan!r}, not 'stop' or 'skip'")

    @property
    def skips(self) -> bool:
        """See `HookOptions`."""
        return super().skips or self.on_nan == "skip"

    def same(self) -> dict[str, Any]:
        """See `HookOptions`."""
        names = ("on_nan", "buffers", "broadcast", "trace_every", "diagnose_every")
        own = {name: getattr(self, name) for name in names}
        return super().same() | own | {"out": str(self.out)}

    def recorded(self) -> dict[str, Any]:
        """What a trace names, beside backend and threads."""
        names = ("bucket_size", "overlap", "on_nan", "check_every", "buffers")
        return {name: getattr(self, name) for name in names}


def backend(name: str, like: Tensor, comm: Comm, threads: int) -> tuple[backends.Backend, int]:
    """The backend, on a CUDA device that of the model, and how many threads it has.

    PyTorch itself, which starts with all cores, keeps this rank's share of them, unless
    OMP_NUM_THREADS is set.
    """
    own = torch.get_num_threads()
    on_cuda = like.device.type == "cuda"
    chosen = name or ("cupy" if on_cuda else backends.default())
    number = like.device.index if on_cuda and chosen == "cupy" else comm.rank_on_node
    found = backends.load(chosen, number)
    share = cores.of(comm)
    count = threads or share
    found.ops.set_threads(count)
    # Also because numba has started its threads, in the OpenMP library that PyTorch uses, too, and
    # has changed the number of threads there.
    torch.set_num_threads(own if "OMP_NUM_THREADS" in os.environ else min(own, share))
    return found, count


@contextmanager
def in_stream_of(like: Tensor, backend: backends.Backend) -> Iterator[None]:
    """Meanwhile what the backend computes on a CUDA device comes in the order of PyTorch's current
    stream there.
    """
    if like.device.type != "cuda":
        yield
        return
    with torch.cuda.device(like.device):
        stream = torch.cuda.current_stream().cuda_stream
        with backend.ops.in_stream(stream):
            yield
