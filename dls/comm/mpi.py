"""The MPI library, if there is one, and its errors: the only import of mpi4py.

Nothing starts here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mpi4py

from dls.comm.errors import RankLost

__all__ = ["LOSSES", "MISSING", "MPI", "losses"]

mpi4py.rc(
    initialize=False, finalize=True
)  # it is a World that starts MPI, with a limit to its waiting
MISSING = ""
"""Why there is no library; empty where there is one."""
try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # programs that start no ranks, and --help, do without
    MPI = None  # type: ignore[assignment]
    MISSING = str(error).partition("\n")[0]

LOSSES = (
    {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED} - {MPI.ERR_UNKNOWN}
    if MPI
    else set()
)
"""What tells that a rank has died, or that another rank has found so; nothing where the library
knows no such thing.
"""


@contextmanager
def losses(what: str) -> Iterator[None]:
    """Tell the loss of a rank from the library's other errors."""
    try:
        yield
    except MPI.Exception as error:
        if error.Get_error_class() not in LOSSES:
            raise
        raise RankLost(f"{what}: a rank is lost") from None
