"""Keeps freed memory in the process, so that the next step does not have to fetch new pages.

glibc returns large freed blocks to the kernel at once until it has learnt how large the program's
blocks are. The arrays of a selection, a few megabytes, are about as large as that limit. Two
thousand page faults take as long as a third of a pass over 25 million values.
"""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD = -1
"""Parameter of mallopt (<malloc.h>): how much free memory the process keeps."""
MMAP_THRESHOLD = -3
"""Parameter of mallopt (<malloc.h>): blocks of this size or more are mapped separately."""
LARGEST = 32 << 20
"""Bytes: the largest MMAP_THRESHOLD that glibc sets itself, with twice as much for TRIM_THRESHOLD.
"""


def keep_freed() -> bool:
    """Set both limits as glibc would after a freed block of 32 MiB.

    Returns whether the C library can do so.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, 2 * LARGEST))
