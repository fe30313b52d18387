"""What traces and checkpoints share: reading HDF5 files safely, and closing one that failed.

A file may come from anywhere. A name in it may lead to another file (external and soft links); a
dataset may be stored in another file (external storage, virtual datasets), or pass through a
filter, which HDF5 loads as a plugin; and a file can claim any shape. None of this is needed here,
so all of it is refused.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import IO, Any

VIRTUAL = 3
"""HDF5's H5D_VIRTUAL."""
HEAP = b"GCOL\1\0\0\0"
"""How every collection of texts begins."""
BLOCK = 2**20
"""How many bytes are searched for these at once."""
ERRORS = (
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    OverflowError,
    MemoryError,
)
"""What h5py raises for a damaged file."""


def dataset(file: Any, name: str, size: int) -> Any:
    """The dataset of that path, stored plainly in this file of `size` bytes.

    KeyError says what is wrong with it.
    """
    found = file
    for part in name.split("/"):
        if not hasattr(found, "keys") or type(found.get(part, getlink=True)).__name__ != "HardLink":
            raise KeyError(
                f"it holds no {name}"
                if not hasattr(found, "keys") or part not in found
                else f"{name} is a link"
            )
        found = found[part]
    if not hasattr(found, "dtype") or not hasattr(found, "ndim"):
        raise KeyError(f"{name} is no table")
    layout = found.id.get_create_plist()
    if layout.get_nfilters() or layout.get_layout() == VIRTUAL or layout.get_external_count():
        raise KeyError(f"{name} does not lie plainly in the file")
    if found.shape is None or found.dtype.itemsize * found.size > size:
        raise KeyError(f"{name} claims more than the file can hold")
    return found


def check_heaps(file: IO[bytes]) -> None:
    """KeyError where a collection of texts is damaged: a piece of size 0 makes HDF5 loop for ever.

    A global heap collection is "GCOL", version 1, its size, and pieces of index (2 bytes), 6 bytes,
    size (8) and content, padded to 8; a piece of index 0 is free space up to the end, and its size
    counts from its own beginning (HDF5 File Format, III.E).
    """
    place = 0
    file.seek(0)
    while block := file.read(BLOCK):
        found = block.find(HEAP)
        while found >= 0:
            _check_heap(file, place + found)
            found = block.find(HEAP, found + 1)
        place += max(1, len(block) - len(HEAP) + 1)
        file.seek(place)


def _check_heap(file: IO[bytes], place: int) -> None:
    file.seek(place + len(HEAP))
    end = int.from_bytes(file.read(8), "little")
    at = len(HEAP) + 8
    while at + 16 <= end:
        file.seek(place + at)
        index, size = struct.unpack("<H6xQ", file.read(16).ljust(16, b"\0"))
        need = 16 + -(-size // 8) * 8 if index else size
        if not 16 <= need <= end - at:
            raise KeyError("its texts are damaged")
        at += need


def give_up(file: Any) -> None:
    """Close a file that could not be written.

    HDF5 would try again to write, at close and at exit, and crash: it writes to memory instead.
    """
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        nowhere = os.memfd_create("given up")
        os.dup2(nowhere, file.id.get_vfd_handle())
        os.close(nowhere)
        file.close()
