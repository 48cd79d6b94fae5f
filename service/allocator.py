"""What the C allocator keeps of buffers that are no longer needed."""

from __future__ import annotations

import ctypes

__all__ = ["give_back_large_buffers"]

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # mallopt's names in <malloc.h>
LARGE_BYTES = 4 << 20
TRIM_BYTES = 16 << 20


def give_back_large_buffers() -> bool:
    """Buffers of 4 MiB and more go back to the system when they are freed; say whether this C library can be told so.

    glibc otherwise stops doing so after the first one, in each of the arenas that its threads have: 100 answers of 9.6 MB left
    200 MB behind, and leave 30 MB with this; a client waits a tenth longer for each.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(MMAP_THRESHOLD, LARGE_BYTES) and mallopt(TRIM_THRESHOLD, TRIM_BYTES))
