"""Algebra on ``dict[str, Tensor]`` whose tensors share a leading task axis of length T.

A solver treats such a dictionary as T vectors. Products and norms are per task, shape ``(T,)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Params = dict[str, Tensor]


def num_tasks(tree: Any) -> int:
    """Return T, the common length of the leading axis of every tensor in ``tree``.

    Raises
    ------
    ValueError
        if ``tree`` has no tensor, a tensor has no axis, or the leading lengths differ.
    """
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or None in sizes:
        raise ValueError(f"every tensor needs the same leading task axis, got leading lengths {sizes or 'none'}")
    size = sizes.pop()
    assert size is not None
    return size


def ravel(tree: Params) -> Tensor:
    """Lay every task's tensors end to end: ``(T, P)``, in the dictionary's order."""
    return torch.cat([leaf.reshape(len(leaf), -1) for leaf in tree.values()], dim=1)


def unravel(flat: Tensor, like: Params) -> Params:
    """Cut ``(T, P)`` back into views named and shaped as ``like`` (inverse of :func:`ravel`)."""
    sizes = [math.prod(leaf.shape[1:]) for leaf in like.values()]
    parts = flat.split(sizes, dim=1)
    return {name: part.view(leaf.shape) for (name, leaf), part in zip(like.items(), parts, strict=True)}


def dot(a: Params, b: Params) -> Tensor:
    """Per-task inner product, ``(T,)``."""
    products = [(a[name] * b[name]).reshape(len(a[name]), -1).sum(1) for name in a]
    return torch.stack(products).sum(0)


def norm(a: Params) -> Tensor:
    """Per-task Euclidean norm, ``(T,)``."""
    return dot(a, a).sqrt()


def expand(theta: Params, tasks: int) -> Params:
    """Give every tensor a leading task axis of length ``tasks`` without copying."""
    return {name: leaf.expand(tasks, *leaf.shape) for name, leaf in theta.items()}


def detach(tree: Any) -> Any:
    """Cut every tensor of ``tree`` from the autograd graph."""
    return map_tensors(torch.Tensor.detach, tree)


def map_tensors(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``fn`` to every tensor of a nest of dictionaries, tuples and lists; leave other leaves."""
    return pytree.tree_map(lambda leaf: fn(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def differentiable(tree: Any) -> list[Tensor]:
    """Return the tensors of ``tree`` that ask for a gradient, in a fixed order."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor) and leaf.requires_grad]
