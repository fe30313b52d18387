"""What a run's bits depend on, besides its settings and its data.

Another processor, BLAS or thread count may sum in another order, and so may another version of a
library. Checkpoints and traces record all of these; where a run goes on elsewhere, a line names
what differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from threadpoolctl import threadpool_info

from dls import backends

if TYPE_CHECKING:
    from dls.backends import Backend
    from dls.comm.base import Comm

Environment = dict[str, str]
NAMES = ("processor", "blas", "numpy", "mpi", "backend_version", "threads")
"""What is recorded: attributes of a trace, and entries of a manifest."""


def describe(backend: Backend, threads: int, comm: Comm) -> Environment:
    """The environment of all ranks, by NAMES. Every rank calls it.

    Where ranks differ, all their values are listed, in the order of the ranks.
    """
    own = {
        "processor": backends.processor(),
        "blas": _blas(),
        "numpy": np.__version__,
        "mpi": comm.library,
        "backend_version": backend.version(),
        "threads": str(threads),
    }
    everyone = comm.allgather_objects(own)
    return {name: ", ".join(dict.fromkeys(each[name] for each in everyone)) for name in NAMES}


def _blas() -> str:
    """The libraries for matrices that are loaded, with the kind of processor that each has chosen
    its code for.
    """
    loaded = (each for each in threadpool_info() if each["user_api"] == "blas")
    words = (
        " ".join(str(each.get(part) or "") for part in ("internal_api", "version", "architecture"))
        for each in loaded
    )
    return " and ".join(sorted({word.strip() for word in words}))


def differences(
    before: Mapping[str, str], now: Mapping[str, str], library_sums: bool = True
) -> str:
    """A line that names what differs; empty where nothing does.

    What an older checkpoint does not say is left out.

    library_sums: whether the bits depend on what carries the messages, as it forms sums in an order
    of its own.
    """
    depends = [name for name in NAMES if library_sums or name != "mpi"]
    names = [name for name in depends if name in before and before[name] != now[name]]
    changes = ", ".join(f"{name.replace('_', ' ')} {before[name]} → {now[name]}" for name in names)
    return f"the bits may differ from those of an uninterrupted run: {changes}" if names else ""
