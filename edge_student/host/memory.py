"""Keeps memory that was freed, instead of returning it to the kernel and requesting it again in every step.

By default glibc maps every block above 128 kB separately and unmaps it when it is freed (mallopt(3)). A training step then has
thousands of page faults.
"""

import ctypes

_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20  # glibc accepts no more
_KEPT_BYTES = 1 << 30
_GROWTH_BYTES = 64 << 20


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory of this process. Returns whether it accepted; another C library may not have these settings."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all(
        mallopt(parameter, value) == 1
        for parameter, value in (
            (_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD),
            (_M_TRIM_THRESHOLD, _KEPT_BYTES),
            (_M_TOP_PAD, _GROWTH_BYTES),
        )
    )
