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
_REFUSED: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # what torch.vmap said of a network
_SAID: WeakSet[nn.Module] = WeakSet()  # networks whose tasks run one by one, of which one was told


def task_by_task(model: nn.Module, output: Callable[[Params, Any], Any], params: Params, x: Any) -> Any:
    """Return what ``output`` makes of each task's weights and inputs: by ``vmap``, or one by one.

    ``params`` and ``x`` are nests of tensors with a task axis; so is what is returned, a tensor or a nest as ``output``
    returns it for one task.

    One by one where the model has a module that is known not to run for several tasks at once, and from then on where
    torch says that something does not; a warning says so once.

    Raises
    ------
    MetagradError
        if the network draws random numbers.
    """
    refused = ""
    if one_by_one(model) is None:
        try:
            return torch.vmap(output, in_dims=(0, tree_of_axes(x)))(params, x)
        except MetagradError:
            raise
        except Exception as error:  # of the network, or of vmap, whose complaints are of many kinds
            if is_out_of_memory(error):
                raise
            refused = f"the network ({type(model).__name__}; torch.vmap: {in_short(error, 120)})"
    found = _in_turn(model, output, params, x)
    if refused:  # and it ran: it is not the network that is wrong
        _REFUSED[model] = refused
    if model not in _SAID:
        _SAID.add(model)
        warnings.warn(
            f"{one_by_one(model)} does not run for several tasks at once: they run one by one, which gives the same "
            "numbers and takes longer",
            MetagradWarning,
            stacklevel=2,
        )
    return pytree.tree_map(lambda *leaves: torch.stack(leaves), *found)


def one_by_one(model: nn.Module) -> str | None:
    """Return what keeps the model's tasks from running at once, if something is known to."""
    for name, module in model.named_modules():
        if isinstance(module, _ONE_BY_ONE):
            return f"{name or 'the network'} ({type(module).__name__})"
    return _REFUSED.get(model)


def tree_of_axes(x: Any) -> Any:
    """Return which axis of each part of ``x`` is the tasks': the first of a tensor, none of anything else."""
    return 0 if isinstance(x, Tensor) else pytree.tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, x)


def _in_turn(model: nn.Module, output: Callable[[Params, Any], Any], params: Params, x: Any) -> list[Any]:
    # Parted at once: a slice for each task would give each a gradient as large as all of them.
    weights = {name: leaf.unbind() for name, leaf in params.items()}
    leaves, spec = pytree.tree_flatten(x)
    tasks = tree.num_tasks(x)
    inputs = [leaf.unbind() if isinstance(leaf, Tensor) else [leaf] * tasks for leaf in leaves]

    def one(task: int) -> Any:
        given = pytree.tree_unflatten([parts[task] for parts in inputs], spec)
        return output({name: parts[task] for name, parts in weights.items()}, given)

    state = torch.get_rng_state()
    with module_lock.running(model):
        found = [one(task) for task in range(tasks)]
        if not torch.equal(torch.get_rng_state(), state):  # by the network, or by another thread?
            with torch.no_grad():
                again = zip(pytree.tree_leaves(found[0]), pytree.tree_leaves(one(0)), strict=True)
            if not all(torch.allclose(a, b, rtol=1e-4, atol=1e-5, equal_nan=True) for a, b in again):
                raise MetagradError(task_functions.draws("torch's own generator"))
    return found
