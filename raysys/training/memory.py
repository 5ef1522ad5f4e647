"""The C allocator, told that a training step asks for the same big blocks again and again."""

import ctypes
from functools import cache

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


@cache
def keep_freed_memory() -> None:
    """Let glibc keep what is freed instead of giving it back to the kernel after every step.

    By default each activation of a few megabytes is mapped anew and its pages are zeroed again
    by the kernel: a quarter to a third of a step's time on two CPU cores. Other C libraries
    have no `mallopt`; there nothing changes.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, _NEVER)
