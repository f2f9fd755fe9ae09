"""How many tasks are worked on at a time."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.utils import _pytree as pytree

from metagrad.errors import MetagradError, MetagradWarning
from metagrad.fewshot.tasks import Tasks, num_examples


@dataclass(frozen=True)
class Chunks:
    """How many tasks are worked on at a time.

    Attributes
    ----------
    tasks:
        while adapting and solving the linear system: what memory of the inner problem follows.
    query:
        of those, while the query images are classified and differentiated; best small where these are many.
    """

    tasks: int
    query: int

    def __post_init__(self) -> None:
        for size in (self.tasks, self.query):
            if isinstance(size, bool) or not isinstance(size, int | np.integer):
                raise ValueError(f'chunk must be a whole number, Chunks or "auto", got {size!r}')
            if size < 1:
                raise ValueError(f"chunk must be at least 1, got {size}")


def auto_chunks(tasks: Tasks) -> Chunks:
    """Choose chunks that keep what a step works on near the size of a cache, and a process near 0.6 GB.

    Measured on 2 cores with Conv4 of 64 filters on 28×28 images: 160 support images at a time (half as many are 10 %
    slower and take 130 MB less), 300 query images; larger images count by their pixels. Chunks are of equal size, to
    one task. A GPU takes all.
    """
    total = len(tasks)
    if tasks.device.type != "cpu":
        return Chunks(total, total)
    numbers = sum(leaf[0, 0].numel() for leaf in pytree.tree_leaves(tasks.support.x) if isinstance(leaf, Tensor))
    weight = max(1.0, numbers / 784)
    support, query = (num_examples(batch) * weight for batch in (tasks.support, tasks.query))
    at_once = math.ceil(total / math.ceil(total * support / 160))
    return Chunks(max(1, at_once), max(1, int(300 / query)))


def halved(sizes: Chunks, tasks: int) -> Chunks:
    """Halve the chunks that ``tasks`` tasks did not fit into."""
    if tasks == 1:
        raise MetagradError(
            "one task does not fit into memory: take fewer --queries, --shots or --ways, fewer --filters, or for MAML "
            "fewer --inner-steps"
        )
    return Chunks(max(1, tasks // 2), max(1, min(sizes.query, tasks) // 2))


def warn_smaller_chunk(too_many: int, fits: int) -> None:
    """Warn which chunk fits, and how to begin with it."""
    warnings.warn(
        f"out of memory with {too_many} tasks at a time: continuing with {fits} (--chunk {fits} from the start avoids "
        "this)",
        MetagradWarning,
        stacklevel=3,
    )
