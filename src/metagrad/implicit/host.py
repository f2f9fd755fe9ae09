"""Whether reading a tensor in Python is free (CPU) or forces a device synchronisation.

Called as ``host.may_read``, one name for every solver: a test on the CPU replaces it to see what a GPU would do.
"""

from torch import Tensor


def may_read(tensor: Tensor) -> bool:
    """Whether the host may read ``tensor`` to skip work that would change nothing.

    On a GPU it would wait there for everything launched so far, and a CUDA graph could not be captured; masked work on
    tasks that have stopped costs less.
    """
    return tensor.device.type == "cpu"
