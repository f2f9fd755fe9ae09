"""Frozen parts of a network, which are run once for the same inputs, whatever weights a task tries."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metagrad.fewshot import module_lock
from metagrad.fewshot.by_task import task_by_task
from metagrad.tree import Params

# What parts of a network returned, by their paths; tensors have a task axis.
Features = dict[str, Any]


def features(model: nn.Module, x: Any) -> Features:
    """Return what frozen parts of a network make of inputs ``(T, N, ...)``, of those that nothing learned comes before.

    Such a part has weights, all of them frozen, and no hooks; it returns tensors. What comes after is not run.
    """
    candidates = parts(model)
    if not candidates:
        return {}
    first: list[set[str]] = []

    def run(weights: Params, inputs: Any) -> Features:
        with _watched(model, candidates) as found, contextlib.suppress(_LearnedError):
            module_lock.call(model, weights, inputs)
        first.append(set(found))
        if first[0] != first[-1]:
            raise _UnlikeError
        return found or {"": torch.zeros(())}  # vmap wants a tensor

    try:
        with torch.enable_grad():  # to see what depends on a weight to learn that is no module's
            found = task_by_task(model, run, {}, x)
    except _UnlikeError:
        return {}
    return {
        path: part
        for path, part in found.items()
        if path and not any(leaf.requires_grad for leaf in pytree.tree_leaves(part))
    }


class _LearnedError(Exception):
    """A module that holds a weight to learn was reached."""


class _UnlikeError(Exception):
    """One task runs other modules than another."""


def parts(model: nn.Module) -> list[str]:
    """Return the paths of the largest modules whose weights are all frozen, below none that holds one to learn."""
    known = module_lock.places(model)
    if all(here[0].leaf.requires_grad for here in known.values()):
        return []
    found: list[str] = []

    def look(path: str, module: nn.Module) -> None:
        leaves = list(module.parameters())
        if path and leaves and not any(leaf.requires_grad for leaf in leaves):
            if not any(below._forward_hooks or below._forward_pre_hooks for below in module.modules()):
                found.append(path)
        elif not any(map(_learned, module._parameters.values())):
            for key, child in module.named_children():
                look(f"{path}.{key}".lstrip("."), child)

    look("", model)
    return found


def unlearned(model: nn.Module, paths: Iterable[str], params: Params) -> bool:
    """Whether no weight in the modules at these paths is given in ``params``."""
    modules = {id(module) for path in paths for module in model.get_submodule(path).modules()}
    named = [here for here in module_lock.places(model).values() if any(place.name in params for place in here)]
    return not any(id(place.module) in modules for here in named for place in here)


@contextlib.contextmanager
def standing_in(model: nn.Module, known: Features) -> Iterator[None]:
    """Let the modules at these paths return what they did when they are called, the first time."""
    with module_lock.LOCK, contextlib.ExitStack() as stack:
        for path, part in known.items():
            module = model.get_submodule(path)
            before = {key: module.__dict__[key] for key in ("forward",) if key in module.__dict__}

            def back(module: nn.Module = module, before: dict[str, Any] = before) -> None:
                module.__dict__.pop("forward", None)
                module.__dict__.update(before)

            def once(*_: Any, part: Any = part, back: Callable[[], None] = back, **__: Any) -> Any:
                back()
                return part

            stack.callback(back)
            module.__dict__["forward"] = once
        yield


@contextlib.contextmanager
def _watched(model: nn.Module, paths: list[str]) -> Iterator[Features]:
    """Collect what the modules return that are called once, until one is called that holds a weight to learn."""
    found: Features = {}
    again: set[str] = set()

    def stop(*_: Any) -> None:
        raise _LearnedError

    def after(path: str, returned: Any) -> None:
        if path in again or not all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(returned)):
            found.pop(path, None)
        else:
            found[path] = returned
        again.add(path)

    holders = [module for module in model.modules() if any(_learned(leaf) for leaf in module._parameters.values())]
    with module_lock.LOCK:
        hooks = [module.register_forward_pre_hook(stop) for module in holders]
        for path in paths:
            module = model.get_submodule(path)
            hooks.append(module.register_forward_hook(lambda _, args, out, path=path: after(path, out)))
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()


def _learned(leaf: nn.Parameter | None) -> bool:
    return leaf is not None and leaf.requires_grad
