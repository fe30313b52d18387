"""Errors of the user's, told in one line on all ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from dls import backends
from dls.cli import UsageError
from dls.comm.base import Comm
from dls.record import checkpoint
from dls.record.schema import TraceError
from dls.tasks.images import DataError

T = TypeVar("T")


def as_usage_error(make: Callable[[], T]) -> T:
    """What `make` returns. Errors that the user can mend become UsageError."""
    try:
        return make()
    except (DataError, backends.BackendMissing, checkpoint.CheckpointError, TraceError) as error:
        raise UsageError(str(error)) from None
    except MemoryError as error:
        raise UsageError(f"model and data do not fit into memory: {error}") from None


def check_same(comm: Comm, mine: Mapping[str, Any]) -> None:
    """UsageError, on all ranks, that names the first value in which a rank differs from rank 0."""
    if words := comm.difference(mine):
        raise UsageError(words)
