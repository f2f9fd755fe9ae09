"""Tell glibc's malloc to keep what it has: a meta-step allocates and frees the same tens of megabytes each time.

With the defaults every tensor of more than 32 MB is returned to the kernel and faulted in again. This is a decision
about the whole process, so the command makes it and importing the library does not.
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_memory() -> bool:
    """Let this process keep the memory of tensors above 32 MB for the next ones: such a training takes less CPU time.

    Every command does so. In a program of your own, call it once, before the first tensor. A step of 60-way ProtoNet
    (64 filters with pooling, one thread) then takes 0.55 to 0.62 s in place of 0.83 to 0.99 s. It is a setting of the C
    library for the whole process, not only for torch: the process then holds its largest use of memory until it ends.

    Returns
    -------
    bool
        whether the C library took the setting; ``False`` where it is not glibc (not on Linux, or Alpine's).

    Examples
    --------
    >>> import metagrad
    >>> taken = metagrad.keep_memory()
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1), (_M_TOP_PAD, 64 * 2**20))
    taken = [mallopt(name, value) for name, value in settings]  # all of them, whether or not one is refused
    return all(taken)
