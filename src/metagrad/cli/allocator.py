"""Tell glibc's malloc to keep what it has: a meta-step allocates and frees the same tens of megabytes each time.

With the defaults every large tensor is returned to the kernel and faulted in again. This is a decision about the
whole process, so the command makes it and importing the library does not.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_memory() -> None:
    """Serve large blocks from the heap and do not give the heap back; does nothing where there is no glibc."""
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 * 2**20)
