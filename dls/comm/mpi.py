"""The MPI library, if there is one, and its errors: the only import of mpi4py.

Importing this module does not start MPI.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mpi4py

from dls.comm.errors import RankLost

__all__ = ["LOSSES", "MISSING", "MPI", "losses"]

mpi4py.rc(initialize=False, finalize=True)  # a World starts MPI, with a time limit
MISSING = ""
"""Why there is no MPI library; "" where there is one."""
try:
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:  # reports and --help work without MPI
    MPI = None  # type: ignore[assignment]
    MISSING = str(error).partition("\n")[0]

LOSSES = (
    {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED} - {MPI.ERR_UNKNOWN}
    if MPI
    else set()
)
"""Error classes for the death of a rank, found here or on another rank.

Empty where the library has no fault tolerance.
"""


@contextmanager
def losses(what: str) -> Iterator[None]:
    """Turn errors that mean the death of a rank into RankLost. what: describes the operation."""
    try:
        yield
    except MPI.Exception as error:
        if error.Get_error_class() not in LOSSES:
            raise
        raise RankLost(f"{what}: a rank is lost") from None
