"""From what a program asks for to a method and a backend."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from dls import backends
from dls.comm import cores
from dls.comm.base import Comm
from dls.torch.parameters import Tensor


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
