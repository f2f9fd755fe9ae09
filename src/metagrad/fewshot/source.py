"""A source of tasks: any callable that draws them."""

from __future__ import annotations

from typing import Protocol

import torch

from metagrad.fewshot.tasks import Tasks


class TaskSource(Protocol):
    """Draws tasks: ``source(num_tasks, generator=g)``. Training, evaluation and calibration use nothing else.

    :class:`EpisodeSampler` and :class:`Sinusoids` are sources; so is a function of your own. All its randomness comes
    from ``generator``: the same generator state gives the same tasks.

    Example
    -------
    >>> import torch
    >>> from metagrad.fewshot import Batch, Tasks
    >>> def lines(num_tasks, *, generator):
    ...     slope = torch.randn(num_tasks, 1, 1, generator=generator)
    ...     x = torch.randn(num_tasks, 15, 1, generator=generator)
    ...     return Tasks(Batch(x[:, :5], slope * x[:, :5]), Batch(x[:, 5:], slope * x[:, 5:]))
    >>> lines(4, generator=torch.Generator().manual_seed(0)).query.y.shape
    torch.Size([4, 10, 1])
    """

    def __call__(self, num_tasks: int, /, *, generator: torch.Generator) -> Tasks:
        """Draw ``num_tasks`` tasks: those of one call have the same shapes."""
        ...
