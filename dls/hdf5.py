"""What both kinds of HDF5 file share, h5py's objects being handed in: reading with suspicion, and giving a file up.

A file may come from anywhere. A name in it may lead to another file (external and soft links), a dataset may lie in another file
(external storage, virtual datasets), or pass through a filter, which HDF5 loads as a plugin; and a shape costs nothing to claim.
None of this is needed here, so none of it is followed.
"""

from __future__ import annotations

import contextlib
import os
from typing import Any

VIRTUAL = 3
"""HDF5's H5D_VIRTUAL."""
ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, AttributeError, OverflowError, MemoryError)
"""What h5py raises over a file that is damaged."""


def dataset(file: Any, name: str, size: int) -> Any:
    """The dataset of that path, which lies plainly in this very file of `size` bytes. KeyError says what is wrong with it."""
    found = file
    for part in name.split("/"):
        if not hasattr(found, "keys") or type(found.get(part, getlink=True)).__name__ != "HardLink":
            raise KeyError(f"it holds no {name}" if not hasattr(found, "keys") or part not in found else f"{name} is a link")
        found = found[part]
    if not hasattr(found, "dtype") or not hasattr(found, "ndim"):
        raise KeyError(f"{name} is no table")
    layout = found.id.get_create_plist()
    if layout.get_nfilters() or layout.get_layout() == VIRTUAL or layout.get_external_count():
        raise KeyError(f"{name} does not lie plainly in the file")
    if found.shape is None or found.dtype.itemsize * found.size > size:
        raise KeyError(f"{name} claims more than the file can hold")
    return found


def give_up(file: Any) -> None:
    """Close a file that could not be written. HDF5 would try again, at close and exit, and crash: what is left goes nowhere."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        nowhere = os.memfd_create("given up")
        os.dup2(nowhere, file.id.get_vfd_handle())
        os.close(nowhere)
        file.close()
