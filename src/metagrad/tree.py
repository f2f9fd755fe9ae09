"""Algebra on ``dict[str, Tensor]`` whose tensors share a leading task axis of length T.

A solver treats such a dictionary as T vectors. Products and norms are per task, shape ``(T,)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Params = dict[str, Tensor]

# A hyper-parameter: a number, or a function of theta that gives a tensor, or one for each name. So it can be learned.
Hyper = float | Callable[[Params], Tensor | Params]


def num_tasks(tree: Any) -> int:
    """Return T, the common length of the leading axis of every tensor in ``tree``.

    Raises
    ------
    ValueError
        if ``tree`` has no tensor, a tensor has no axis, or the leading lengths differ.
    """
    sizes = {leaf.shape[0] if leaf.dim() else None for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)}
    size = next(iter(sizes), None)
    if len(sizes) != 1 or size is None:
        raise ValueError(f"every tensor needs the same leading task axis, got leading lengths {sizes or 'none'}")
    return size


def ravel(tree: Params, like: Params | None = None) -> Tensor:
    """Lay every task's tensors end to end: ``(T, P)``.

    The order is that of ``like`` (default: ``tree`` itself): its names, and its numbers as they lie in memory, so that
    tensors with channels last are not shuffled on the way.
    """
    like = tree if like is None else like
    parts = [
        (tree[name] if leaf.is_contiguous() else tree[name].permute(_as_stored(leaf))).reshape(len(leaf), -1)
        for name, leaf in like.items()
    ]
    return torch.cat(parts, 1)


def unravel(flat: Tensor, like: Params) -> Params:
    """Cut ``(T, P)`` back into views named, shaped and stored as ``like`` (inverse of :func:`ravel`)."""
    parts, start = {}, 0
    for name, leaf in like.items():
        size = math.prod(leaf.shape[1:])
        part = flat[:, start : start + size]
        if leaf.is_contiguous():
            parts[name] = part.view(leaf.shape)
        else:
            order = _as_stored(leaf)
            stored = part.view([leaf.shape[axis] for axis in order])
            parts[name] = stored.permute([order.index(axis) for axis in range(leaf.dim())])
        start += size
    return parts


def _as_stored(leaf: Tensor) -> list[int]:
    """Return the axes from the slowest to the fastest in memory, the task axis first."""
    strides = leaf.stride()
    return [0, *sorted(range(1, leaf.dim()), key=lambda axis: -strides[axis])]


def dot(a: Params, b: Params) -> Tensor:
    """Per-task inner product, ``(T,)``."""
    products = [(a[name] * b[name]).reshape(len(a[name]), -1).sum(1) for name in a]
    return products[0] if len(products) == 1 else torch.stack(products).sum(0)


def norm(a: Params) -> Tensor:
    """Per-task Euclidean norm, ``(T,)``."""
    return dot(a, a).sqrt()


def per_task(weight: Tensor, leaf: Tensor) -> Tensor:
    """Shape ``(T,)`` so that it multiplies ``leaf`` task by task."""
    return weight.reshape(-1, *[1] * (leaf.dim() - 1))


def add(a: Params, b: Params, weight: float | Tensor = 1.0) -> Params:
    """Return ``a + weight · b``; ``weight`` a number, or ``(T,)``, one for each task."""
    if isinstance(weight, Tensor):
        return {name: torch.addcmul(leaf, per_task(weight, leaf), b[name]) for name, leaf in a.items()}
    return {name: leaf.add(b[name], alpha=weight) for name, leaf in a.items()}


def scale(a: Params, weight: float | Tensor) -> Params:
    """Return ``weight · a``; ``weight`` a number, or ``(T,)``, one for each task."""
    if isinstance(weight, Tensor):
        return {name: leaf * per_task(weight, leaf) for name, leaf in a.items()}
    return {name: leaf * weight for name, leaf in a.items()}


def where(mask: Tensor, a: Params, b: Params) -> Params:
    """Take the tasks of ``a`` where ``mask``, ``(T,)``, is true, of ``b`` elsewhere."""
    return {name: torch.where(per_task(mask, leaf), leaf, b[name]) for name, leaf in a.items()}


def resolve(hyper: Hyper, theta: Params, names: Iterable[str]) -> float | Params:
    """Return the value of a hyper-parameter at ``theta``: a number, or a tensor for each name."""
    if not callable(hyper):
        return float(hyper)
    value = hyper(theta)
    return {name: value if isinstance(value, Tensor) else value[name] for name in names}


def expand(theta: Params, tasks: int) -> Params:
    """Give every tensor a leading task axis of length ``tasks`` without copying."""
    return {name: leaf.expand(tasks, *leaf.shape) for name, leaf in theta.items()}


def detach(tree: Any) -> Any:
    """Cut every tensor of ``tree`` from the autograd graph."""
    return map_tensors(Tensor.detach, tree)


def map_tensors(fn: Callable[[Tensor], Tensor], tree: Any) -> Any:
    """Apply ``fn`` to every tensor of a nest of dictionaries, tuples and lists; leave other leaves."""
    return pytree.tree_map(lambda leaf: fn(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def partition(tree: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """Return the tensors of a nest in a fixed order, and what puts others in their places; other leaves stay."""
    leaves, spec = pytree.tree_flatten(tree)

    def combine(tensors: Sequence[Tensor]) -> Any:
        rest = iter(tensors)
        return pytree.tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], spec)

    return [leaf for leaf in leaves if isinstance(leaf, Tensor)], combine


def differentiable(tree: Any) -> list[Tensor]:
    """Return the tensors of ``tree`` that require a gradient, in a fixed order."""
    return [leaf for leaf in partition(tree)[0] if leaf.requires_grad]
