"""Any network for T tasks: by ``torch.vmap``, or one task after the other where that is not right."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metagrad import task_functions, tree
from metagrad.errors import MetagradError, MetagradWarning, in_short, is_out_of_memory
from metagrad.fewshot import module_lock
from metagrad.tree import Params

# torch has no batching rule for what these call.
_ONE_BY_ONE = (nn.RNNBase, nn.LSTMCell, nn.RNNCell)
_REFUSED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # networks that torch.vmap does not run, and why
_WARNED: WeakSet[nn.Module] = WeakSet()  # networks that a warning has named


def task_by_task(model: nn.Module, output: Callable[[Params, Any], Any], params: Params, x: Any) -> Any:
    """Return ``output`` of each task's weights and inputs: by ``vmap``, or one by one.

    ``params`` and ``x`` are nests of tensors with a task axis; so is what is returned, a tensor or a nest as ``output``
    returns it for one task.

    One by one where the model has a module that is known not to run under ``vmap``, and, after ``vmap`` has failed
    once, from then on; a warning says so once.

    Raises
    ------
    MetagradError
        if the network draws random numbers.
    """
    refused = ""
    if one_by_one(model) is None:
        try:
            return torch.vmap(output, in_dims=(0, _task_axes(x)))(params, x)
        except MetagradError:
            raise
        except Exception as error:  # vmap raises many kinds
            if is_out_of_memory(error):
                raise
            refused = f"the network ({type(model).__name__}; torch.vmap: {in_short(error, 120)})"
    outputs = _one_after_another(model, output, params, x)
    if refused:  # the network runs by itself, so vmap was the cause
        _REFUSED[model] = refused
    if model not in _WARNED:
        _WARNED.add(model)
        warnings.warn(
            f"{one_by_one(model)} does not support several tasks at once, so tasks run one by one: the same "
            "results, but slower",
            MetagradWarning,
            stacklevel=2,
        )
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *outputs)


def one_by_one(model: nn.Module) -> str | None:
    """Return what keeps the model's tasks from running at once, if something is known to."""
    for name, module in model.named_modules():
        if isinstance(module, _ONE_BY_ONE):
            return f"{name or 'the network'} ({type(module).__name__})"
    return _REFUSED.get(model)


def _task_axes(x: Any) -> Any:
    """Return vmap's ``in_dims`` for ``x``: the first axis of a tensor, none of anything else."""
    return pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, x)


def _one_after_another(model: nn.Module, output: Callable[[Params, Any], Any], params: Params, x: Any) -> list[Any]:
    # unbind, not slices: each slice would have a gradient as large as all tasks.
    weights = {name: leaf.unbind() for name, leaf in params.items()}
    leaves, spec = pytree.tree_flatten(x)
    tasks = tree.num_tasks(x)
    inputs = [leaf.unbind() if isinstance(leaf, Tensor) else [leaf] * tasks for leaf in leaves]

    def one(task: int) -> Any:
        given = pytree.tree_unflatten([parts[task] for parts in inputs], spec)
        return output({name: parts[task] for name, parts in weights.items()}, given)

    state = torch.get_rng_state()
    with module_lock.running(model):
        outputs = [one(task) for task in range(tasks)]
        if not torch.equal(torch.get_rng_state(), state):  # by the network, or by another thread?
            with torch.no_grad():
                again = zip(pytree.tree_leaves(outputs[0]), pytree.tree_leaves(one(0)), strict=True)
            if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in again):
                raise MetagradError(task_functions.draws("torch's own generator"))
    return outputs
