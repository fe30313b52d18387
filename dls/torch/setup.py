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


@dataclass(frozen=True)
class Options:
    """The arguments of `attach`, by their names there. ValueError where one is wrong."""

    comm: Any
    backend: str
    bucket_size: int
    overlap: bool
    on_nan: str
    scaler: Any
    buffers: str
    broadcast: bool
    check_every: int
    threads: int
    timeout: float
    out: str | Path
    trace_every: int
    diagnose_every: int

    def __post_init__(self) -> None:
        check_numbers(self.bucket_size, self.check_every, self.threads, self.timeout)
        check_number("trace_every", self.trace_every, 1)
        check_number("diagnose_every", self.diagnose_every, 0)
        if self.on_nan not in ("stop", "skip"):
            raise ValueError(f"on_nan is {self.on_nan!r}, not 'stop' or 'skip'")

    @property
    def skips(self) -> bool:
        """Whether a step in which a rank meets NaN or infinity is left out."""
        return self.scaler is not None or self.on_nan == "skip"

    def same(self) -> dict[str, Any]:
        """What must be the same on all ranks."""
        names = ("bucket_size", "on_nan", "buffers", "broadcast", "check_every")
        same = {name: getattr(self, name) for name in names}
        same |= {"scaler": self.scaler is not None, "out": str(self.out)}
        return same | {"trace_every": self.trace_every, "diagnose_every": self.diagnose_every}

    def recorded(self) -> dict[str, Any]:
        """What a trace names, beside backend and threads."""
        names = ("bucket_size", "overlap", "on_nan", "check_every", "buffers")
        return {name: getattr(self, name) for name in names}


def check_number(name: str, value: Any, low: int) -> None:
    """ValueError where it is no whole number, or too small."""
    if not isinstance(value, int | np.integer) or value < low:
        raise ValueError(f"{name} is {value!r}; it must be a whole number from {low} on")


def check_numbers(bucket_size: Any, check_every: Any, threads: Any, timeout: Any) -> None:
    """ValueError where one is no number, or too small."""
    least = {"bucket_size": (bucket_size, 1), "check_every": (check_every, 0)}
    least |= {"threads": (threads, 0)}
    for name, (value, low) in least.items():
        check_number(name, value, low)
    if not isinstance(timeout, int | float) or not timeout > 0:
        raise ValueError(f"timeout is {timeout!r}; it must be a number of seconds")


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
