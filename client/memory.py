"""Keeps freed memory in the process, where the C library would give it back at every step.

A convolution's activations are tens of megabytes. glibc maps such blocks anew each time, and the
kernel clears every page: on a 2-core machine two thirds of an evaluation's time went there.
"""

import ctypes
import sys
from functools import cache
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
BYTES: Final = 2**30  # blocks up to this size come from, and stay in, the process's own heap


@cache  # each time it is told, glibc goes through all its free blocks
def keep_freed_memory() -> bool:
    """Tell glibc to reuse freed blocks of up to 1 GiB; return whether it could be told.

    It holds for the process and for copies of it. Other C libraries (macOS, musl) are left as
    they are.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, BYTES))
