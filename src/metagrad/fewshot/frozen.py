"""A network whose weights to learn are all in its last module: what comes before is run once, whatever a task tries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from metagrad.fewshot import module_lock
from metagrad.fewshot.by_task import task_by_task
from metagrad.tree import Params


def learned_part(model: nn.Module, names: Iterable[str] = ()) -> str | None:
    """Return the path of the smallest module that has all weights to learn, below the model itself.

    ``None`` where there is none, where nothing is frozen, or where one of ``names`` is a weight outside of it.
    """
    known = module_lock.places(model)
    learned = {name: here for name, here in known.items() if here[0].leaf.requires_grad}
    if not learned or len(learned) == len(known):
        return None
    holders = {id(place.module) for here in learned.values() for place in here}
    path, at = "", model
    while id(at) not in holders:
        below = [(key, child) for key, child in at.named_children() if holders <= set(map(id, child.modules()))]
        if len(below) != 1:
            break
        path, at = f"{path}.{below[0][0]}".lstrip("."), below[0][1]
    mine = {place.name for here in learned.values() for place in here}
    return path if path and mine.issuperset(names) else None


def inside(model: nn.Module, path: str, params: Params) -> Params:
    """Return the weights of the module at ``path``, named as there."""
    known = module_lock.under_every_name(model, params)
    return {name.removeprefix(f"{path}."): leaf for name, leaf in known.items() if name.startswith(f"{path}.")}


def features(model: nn.Module, x: Any) -> Tensor | None:
    """Return what the learned part of a network is given for inputs ``(T, N, ...)``.

    ``None`` where that is not all that its outputs come from, seen for these inputs: where the network does something
    with what the part returns, calls it twice or with more than one tensor, or looks at its weights before.
    """
    path = learned_part(model)
    if path is None:
        return None
    part = model.get_submodule(path)

    def before(weights: Params, inputs: Any) -> Tensor:
        calls: list[tuple[Any, Any, Any]] = []
        with module_lock.LOCK:
            hook = part.register_forward_hook(lambda _, *call: calls.append(call), with_kwargs=True)
            try:
                outputs = module_lock.call(model, weights, inputs)
            finally:
                hook.remove()
        if len(calls) == 1:
            (args, kwargs, returned), one = calls[0], len(calls[0][0]) == 1
            if one and not kwargs and isinstance(args[0], Tensor) and returned is outputs:
                return args[0]
        raise _UnfitError

    try:
        with torch.enable_grad():  # to see what depends on the weights to learn
            found = task_by_task(model, before, {}, x)
    except _UnfitError:
        return None
    return None if found.requires_grad else found


class _UnfitError(Exception):
    """The learned part is not the last."""
