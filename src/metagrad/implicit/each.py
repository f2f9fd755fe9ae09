"""A function of one task, for T tasks at once. Nothing else calls ``vmap``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from metagrad import task_functions, tree


def each_task(function: Callable[..., Tensor], *arguments: Any, shared: tuple[int, ...] = ()) -> Tensor:
    """Call ``function`` for every task; return what it gives, task axis first.

    Every tensor among the arguments has a leading task axis, but for those at the places ``shared``; the first argument
    is a tensor, or a dictionary of them. Numbers, texts and ``None`` are handed over as they are. A single task is no
    batch: the function is called on it directly, which takes less time.
    """
    first = arguments[0] if isinstance(arguments[0], Tensor) else next(iter(arguments[0].values()))
    single = len(first) == 1
    if single:
        arguments = tuple(part if place in shared else _only(part) for place, part in enumerate(arguments))
    # Some of torch's functions are wrong for many tasks at once, or not there, or have no second derivative.
    with task_functions.exact():
        values = function(*arguments) if single else _mapped(function, arguments, shared)
    return values.unsqueeze(0) if single else values


def _only(part: Any) -> Any:
    """Take the one task there is; by hand in the usual nests, since solvers call this at every step."""
    if isinstance(part, Tensor):
        return part.squeeze(0)
    kind = type(part)
    if kind is dict:
        return {name: _only(leaf) for name, leaf in part.items()}
    if kind is tuple or kind is list:
        return kind([_only(leaf) for leaf in part])
    return tree.map_tensors(lambda leaf: leaf.squeeze(0), part)


def _mapped(function: Callable[..., Tensor], arguments: tuple[Any, ...], shared: tuple[int, ...]) -> Tensor:
    tensors, combine = tree.partition([part for place, part in enumerate(arguments) if place not in shared])

    def one(tensors_of_task: list[Tensor]) -> Tensor:
        own = iter(combine(tensors_of_task))
        return function(*(part if place in shared else next(own) for place, part in enumerate(arguments)))

    return torch.vmap(one)(tensors)
