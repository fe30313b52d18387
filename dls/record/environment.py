"""On what a run computes: what its bits depend on, beside its settings and its data.

Another processor, BLAS or thread count adds up in another order, and a library of another version
may. A checkpoint and a trace say on what they were made; where a run goes on elsewhere, a line
names what differs.
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


def describe(backend: Backend, threads: int, comm: Comm) -> Environment:
    """The environment of all ranks, by NAMES; where ranks differ, all that there is, in the order
    of the ranks. Collective.
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
