"""Dropout while a task adapts, by masks that are part of the task.

An inner problem must be the same function each time that it is evaluated: at each step, in each curvature product, and
in the backward pass. So :func:`dropout_masks` draws the masks of a task once, from a generator; they go with its
inputs, and the network multiplies by them. The network keeps none: chunks, recomputed steps and a resumed run use the
same masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metagrad import tree
from metagrad.errors import MetagradError


def dropout_masks(
    x: Any,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    p: float,
    generator: torch.Generator,
    each: Literal["example", "task"] = "example",
) -> dict[str, Tensor]:
    """Draw factors for activations: 0 with probability ``p``, else ``1 / (1 − p)``.

    Parameters
    ----------
    x:
        the inputs ``(T, N, ...)`` that the masks are for; a tensor or a nest of them.
    shapes:
        the shape of one example's activation, for each place where some are dropped.
    p:
        the probability of being dropped, below 1. At 0 nothing is drawn, and all factors are 1: for query sets.
    generator:
        where the random numbers come from, on the device of ``x``.
    each:
        a mask for each ``"example"``, or one for all examples of a ``"task"``.

    Returns
    -------
    dict
        ``(T, N, *shape)`` for each place, of the inputs' dtype where that is a floating one.

    Raises
    ------
    MetagradError
        for a ``p`` outside its range, or an unknown ``each``.

    Examples
    --------
    >>> import torch
    >>> x = torch.rand(2, 5, 8)  # 2 tasks of 5 examples
    >>> masks = dropout_masks(x, {"hidden": (16,)}, p=0.5, generator=torch.Generator().manual_seed(0))
    >>> masks["hidden"].shape, sorted(set(masks["hidden"].flatten().tolist()))
    (torch.Size([2, 5, 16]), [0.0, 2.0])
    """
    if not 0 <= p < 1:
        raise MetagradError(f"p must be at least 0 and below 1, got {p!r}")
    if each not in ("example", "task"):
        raise MetagradError(f"each is 'example' or 'task', got {each!r}")
    tasks = tree.num_tasks(x)
    leaves = [leaf for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)]
    count, device = leaves[0].shape[1], leaves[0].device
    dtype = next((leaf.dtype for leaf in leaves if leaf.is_floating_point()), torch.get_default_dtype())

    def factors(shape: tuple[int, ...]) -> Tensor:
        if p == 0:
            return torch.ones(tasks, count, *shape, dtype=dtype, device=device)
        drawn = torch.rand(
            tasks, count if each == "example" else 1, *shape, generator=generator, device=device, dtype=torch.float32
        )
        return ((drawn >= p).to(dtype) / (1 - p)).expand(tasks, count, *shape)

    return {name: factors(shape) for name, shape in shapes.items()}
