"""Frozen parts of a network run once for the same inputs, whatever weights a task tries."""

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
    """Return the outputs of frozen parts of a network for inputs ``(T, N, ...)``.

    Such a part has weights, all of them frozen, no hooks, and no trainable weight before it; it returns tensors. What
    comes after the first trainable module is not run.
    """
    candidates = frozen_parts(model)
    if not candidates:
        return {}
    reached: list[set[str]] = []

    def run(weights: Params, inputs: Any) -> Features:
        with _recorded(model, candidates) as outputs, contextlib.suppress(_TrainableError):
            module_lock.call(model, weights, inputs)
        reached.append(set(outputs))
        if reached[0] != reached[-1]:
            raise _TasksDifferError
        return outputs or {"": torch.zeros(())}  # vmap wants a tensor

    try:
        with torch.enable_grad():  # shows which outputs depend on a trainable weight that is used and not called
            outputs = task_by_task(model, run, {}, x)
    except _TasksDifferError:
        return {}
    return {
        path: part
        for path, part in outputs.items()
        if path and not any(leaf.requires_grad for leaf in pytree.tree_leaves(part))
    }


class _TrainableError(Exception):
    """The forward pass reached a module that holds a trainable weight."""


class _TasksDifferError(Exception):
    """One task runs other modules than another."""


def frozen_parts(model: nn.Module) -> list[str]:
    """Return the paths of the largest modules whose weights are all frozen, below none that holds a trainable one."""
    if all(leaf.requires_grad for leaf in module_lock.weights(model).values()):
        return []
    paths: list[str] = []

    def search(path: str, module: nn.Module) -> None:
        leaves = list(module.parameters())
        if path and leaves and not any(leaf.requires_grad for leaf in leaves):
            if not any(below._forward_hooks or below._forward_pre_hooks for below in module.modules()):
                paths.append(path)
        elif not _holds_trainable(module):
            for key, child in module.named_children():
                search(f"{path}.{key}".lstrip("."), child)

    with module_lock.LOCK:
        search("", model)
    return paths


def still_frozen(model: nn.Module, paths: Iterable[str], params: Params) -> bool:
    """Whether ``params`` gives no weight of the modules at these paths."""
    modules = {id(module) for path in paths for module in model.get_submodule(path).modules()}
    given = [here for here in module_lock.places(model).values() if any(place.name in params for place in here)]
    return not any(id(place.module) in modules for here in given for place in here)


@contextlib.contextmanager
def replayed(model: nn.Module, outputs: Features) -> Iterator[None]:
    """Let the modules at these paths return their outputs of before, at their first call, without running."""
    with module_lock.LOCK, contextlib.ExitStack() as stack:
        for path, output in outputs.items():
            attributes = model.get_submodule(path).__dict__
            before = {"forward": attributes["forward"]} if "forward" in attributes else {}

            def restore(attributes: dict[str, Any] = attributes, before: dict[str, Any] = before) -> None:
                attributes.pop("forward", None)
                attributes.update(before)

            def replay(*_: Any, output: Any = output, restore: Callable[[], None] = restore, **__: Any) -> Any:
                restore()
                return output

            stack.callback(restore)
            attributes["forward"] = replay
        yield


@contextlib.contextmanager
def _recorded(model: nn.Module, paths: list[str]) -> Iterator[Features]:
    """Collect the outputs of modules that run once, until one runs that holds a trainable weight."""
    outputs: Features = {}
    called: set[str] = set()

    def stop(*_: Any) -> None:
        raise _TrainableError

    def record(path: str, output: Any) -> None:
        if path in called or not all(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(output)):
            outputs.pop(path, None)
        else:
            outputs[path] = output
        called.add(path)

    with module_lock.LOCK:
        hooks = [module.register_forward_pre_hook(stop) for module in model.modules() if _holds_trainable(module)]
        for path in paths:
            module = model.get_submodule(path)
            hooks.append(module.register_forward_hook(lambda _, args, out, path=path: record(path, out)))
        try:
            yield outputs
        finally:
            for hook in hooks:
                hook.remove()


def _holds_trainable(module: nn.Module) -> bool:
    return any(leaf is not None and leaf.requires_grad for leaf in module._parameters.values())
