"""A check of a network before it is meta-learned: how its parts run, and whether its derivatives are right.

The check is optional: every method takes every network.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metagrad import torch_modes, tree
from metagrad.errors import MetagradError, MetagradWarning, in_short
from metagrad.fewshot import batched_forward, module_lock, norms
from metagrad.fewshot.returned import describe
from metagrad.implicit import Composed, Problem
from metagrad.task_functions import draws
from metagrad.tree import Params


@dataclass(frozen=True, kw_only=True)
class NetworkCheck:
    """How a network runs for many tasks.

    Attributes
    ----------
    runs:
        ``"layers"``: its layers take all tasks at once; ``"vmap"``: it runs under ``torch.vmap``; ``"one by one"``.
    because:
        what keeps tasks from running at once; ``None`` where they do.
    learned, frozen:
        how many weights are trainable, and how many are frozen (``requires_grad=False``): those stay the model's.
    frozen_names:
        the names of the frozen ones.
    by_the_batch:
        batch norms that use the statistics of the batch at hand; those in eval mode do not.
    dropout_off:
        modules that drop or draw in training mode: they are off while a task adapts, as in eval mode. ``"forward"``
        where the forward pass does so by a function.
    transductive:
        whether an example's outputs depend on the others of its batch.
    error:
        relative difference between a curvature product of two tasks at once and one at a time, in float64; ``None``
        where nothing is trainable.
    """

    runs: Literal["layers", "vmap", "one by one"]
    because: str | None
    learned: int
    frozen: int
    frozen_names: tuple[str, ...]
    by_the_batch: tuple[str, ...]
    dropout_off: tuple[str, ...]
    transductive: bool
    error: float | None


@torch_modes.recording()
def check_network(model: nn.Module, x: Any) -> NetworkCheck:
    """Return how ``model`` runs for many tasks, and check its derivatives; the model stays as it is.

    One curvature product in the trainable weights is computed for two tasks at once and compared with one task at a
    time, and that with its transpose.

    Parameters
    ----------
    model:
        any module that maps ``(N, ...)`` to outputs ``(N, ...)``.
    x:
        a few example inputs, ``(N, ...)``, or a nest of such, with which the model is called as its one argument; at
        least 2 where the model normalises over the batch.

    Raises
    ------
    MetagradError
        if the model does not return one row for each input, if a forward pass changes a buffer or draws random numbers,
        if it has no second derivative, or if the two products disagree; the message says what to do.
    """
    if not isinstance(model, nn.Module):
        raise MetagradError(f"the network must be an nn.Module, got {in_short(repr(model), 60)}")
    _require_registered(model)
    lazy = nn.UninitializedParameter | nn.parameter.UninitializedBuffer
    if any(isinstance(part, lazy) for part in (*model.parameters(), *model.buffers())):
        raise MetagradError("the network has lazy modules, whose weights are not there yet: call it once before")
    if _num_examples(x) == 0:
        raise MetagradError("there are no example inputs to check the network with: give a few")
    for leaf in pytree.tree_leaves(x):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.isfinite().all():
            raise MetagradError("the example inputs hold numbers that are not finite: give ordinary ones")
    _require_stateless(model, x)
    weights = module_lock.weights(model)
    names = [name for name, leaf in weights.items() if leaf.requires_grad]
    with module_lock.LOCK:
        double = copy.deepcopy(model).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MetagradWarning)  # `because` says the same
        error = _compare_products(double, tree.map_tensors(_double, x), names) if names else None
    because, modules = batched_forward.one_by_one(double), list(model.named_modules())
    frozen = [name for name in weights if name not in names]
    return NetworkCheck(
        runs="layers" if batched_forward.layered(model) else "vmap" if because is None else "one by one",
        because=because,
        learned=sum(weights[name].numel() for name in names),
        frozen=sum(weights[name].numel() for name in frozen),
        frozen_names=tuple(frozen),
        by_the_batch=tuple(name for name, module in modules if norms.uses_batch_statistics(module)),
        dropout_off=tuple(name for name, module in modules if _drops(module)) or _drops_by_function(model, x),
        transductive=norms.is_transductive(model) or _mixes_examples(model, x),
        error=error,
    )


def admit(model: nn.Module, x: Any) -> nn.Module:
    """Return a copy of ``model`` without running averages, after :func:`check_network`.

    A batch norm in training mode is replaced by :class:`metagrad.fewshot.norms.BatchNorm` (same parameters, no running
    averages, in any mode), with a warning that names it; one in eval mode, and every other module, stays.

    Parameters
    ----------
    model, x:
        as in :func:`check_network`.

    Raises
    ------
    MetagradError
        as :func:`check_network` does.
    """
    with module_lock.LOCK:
        model = copy.deepcopy(model)
    if replaced := _replace_norms(model):
        warnings.warn(
            f"replaced {', '.join(replaced)} by metagrad's version, which always uses the current batch's statistics "
            "and keeps no running averages; put a pretrained one into eval mode first to keep its running averages",
            MetagradWarning,
            stacklevel=2,
        )
    setattr(model, norms.MEASURED_TRANSDUCTIVE, check_network(model, x).transductive)
    return model


def _replace_norms(model: nn.Module) -> list[str]:
    replaced = []
    for parent_name, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and norms.uses_batch_statistics(child):
                ours = norms.BatchNorm(child.num_features, eps=child.eps, affine=child.affine)
                ours.weight, ours.bias = child.weight, child.bias
                setattr(parent, name, ours)
                replaced.append(f"{parent_name}.{name}".lstrip(".") + f" ({type(child).__name__})")
    return replaced


def _drops(module: nn.Module) -> bool:
    if not module.training:
        return False
    if isinstance(module, nn.MultiheadAttention | nn.RNNBase):
        return module.dropout > 0
    return isinstance(module, nn.modules.dropout._DropoutNd | nn.RReLU)


def _drops_by_function(model: nn.Module, x: Any) -> tuple[str, ...]:
    """Return ``("forward",)`` if two calls of the network as it is give different outputs."""
    with module_lock.LOCK, norms.stateless(model), torch.no_grad(), torch.random.fork_rng(devices=[]):
        return () if _same(model(x), model(x)) else ("forward",)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=1e-3, atol=1e-4, equal_nan=True)


def _num_examples(x: Any) -> int:
    try:
        return tree.num_tasks(x)
    except ValueError as error:
        raise MetagradError(
            "the inputs are a tensor, (N, ...), or a nest of dictionaries, tuples and lists of such, with the same N "
            f"everywhere, got {describe(x)}"
        ) from error


def _double(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf


def _require_stateless(model: nn.Module, x: Any) -> None:
    """Refuse outputs of another length, buffers that change, and outputs that differ the second time."""
    with module_lock.LOCK, torch.no_grad():
        before = {name: buffer.clone() for name, buffer in model.named_buffers()}
        try:
            outputs, again = _run(model, x), _run(model, x)
        finally:
            for name, buffer in model.named_buffers():
                if not torch.equal(buffer, before[name]):
                    buffer.copy_(before[name])
    if outputs.dim() == 0 or len(outputs) != _num_examples(x):
        raise MetagradError(
            f"the model must return one tensor with a row for each of its {_num_examples(x)} inputs, got shape "
            f"{tuple(outputs.shape)}: wrap it in a module that does"
        )
    if not _same(outputs, again):
        raise MetagradError(draws("other outputs for the same inputs"))


def _require_registered(model: nn.Module) -> None:
    """Refuse layers that are in a plain list or dictionary alone, so that PyTorch does not see their weights."""
    known = {id(part) for part in (*model.modules(), *model.parameters())}
    for module in model.modules():
        for name, value in vars(module).items():
            held = value.values() if isinstance(value, dict) else value
            if name.startswith("_") or not isinstance(held, list | tuple | type({}.values())):
                continue
            if any(isinstance(one, nn.Module | nn.Parameter) and id(one) not in known for one in held):
                raise MetagradError(
                    f"{type(module).__name__}.{name} holds layers in a plain {type(value).__name__}, so their weights "
                    "are not part of the network: use nn.ModuleList or nn.ModuleDict"
                )


def _run(model: nn.Module, x: Any) -> Tensor:
    try:
        return module_lock.call(model, {}, x)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
        by_name = "; one that takes them by name is wrapped in a module that calls it so, `self.network(**x)`"
        by_name = by_name if isinstance(x, Mapping) else ""
        dtypes = {str(leaf.dtype) for leaf in pytree.tree_leaves(x) if isinstance(leaf, Tensor)}
        raise MetagradError(
            f"the model does not take the example inputs, {describe(x)} of {', '.join(sorted(dtypes))}: "
            f"{type(error).__name__}: {in_short(error, 160)}{by_name}"
        ) from error


def _mixes_examples(model: nn.Module, x: Any) -> bool:
    """Whether the first example's outputs change when the others do."""
    if _num_examples(x) < 2:
        return False

    def with_others(leaf: Tensor) -> Tensor:
        # Whole numbers may be indices: doubled, they may be out of range.
        others = leaf[1:].flip(-1) * 2 if leaf.is_floating_point() else leaf[:1].expand_as(leaf[1:])
        return torch.cat([leaf[:1], others])

    with torch.no_grad():
        one, other = (module_lock.call(model, {}, given)[0] for given in (x, tree.map_tensors(with_others, x)))
    return not torch.allclose(one, other, rtol=1e-4, atol=1e-5)


def _compare_products(model: nn.Module, x: Any, names: list[str]) -> float:
    """Return the relative difference of ``H v`` for two tasks at once and one at a time; refuse a wrong one."""
    weights = module_lock.weights(model)
    device = weights[names[0]].device
    generator = torch.Generator(device=device).manual_seed(0)

    def around(leaf: Tensor) -> Tensor:
        noise = torch.randn(2, *leaf.shape, dtype=leaf.dtype, device=leaf.device, generator=generator)
        return leaf.detach() + 0.1 * noise

    objective = Composed(
        outputs=lambda phi, theta, data: module_lock.call(model, phi, data[0]),
        loss=lambda outputs, data: (outputs * data[1]).sum() + outputs.square().sum(),
        outputs_of_tasks=lambda phi, theta, data: batched_forward.outputs(model, phi, data[0]),  # as methods run it
    )
    phi, v, u = ({name: around(weights[name]) for name in names} for _ in range(3))
    with torch.no_grad():
        outputs = _run(model, x)
        coefficients = torch.randn(2, *outputs.shape, dtype=outputs.dtype, device=device, generator=generator)
    try:
        alone = torch.stack([_product(objective, phi, v, (x, coefficients[task]), task) for task in range(2)])
        transposed = _product(objective, phi, u, (x, coefficients[0]), 0)
    except (RuntimeError, NotImplementedError) as error:
        raise MetagradError(
            f"the network has no second derivative, and only first-order methods (FOMAML, Reptile) do without: "
            f"{in_short(error, 160)}"
        ) from error
    u0, v0 = (torch.cat([leaf[0].flatten() for leaf in part.values()]) for part in (u, v))
    skew = (u0 @ alone[0] - v0 @ transposed).abs()
    size = u0.norm() * alone[0].norm() + v0.norm() * transposed.norm()
    if skew > 1e-9 * size:  # torch ignores parts that are differentiable once only, without an error
        raise MetagradError(
            f"the network has no right second derivative (its Hessian is not symmetric, {float(skew / size):.1e} off): "
            "a function in it is differentiable once only; write it in primitives, or take a first-order method "
            "(FOMAML, Reptile)"
        )
    twice = tree.map_tensors(lambda leaf: leaf.expand(2, *leaf.shape), x)
    product = Problem(objective, {}, (twice, coefficients)).curvature(phi, "hessian")(v)
    together = torch.cat([product[name].reshape(2, -1) for name in names], 1)
    off = float(((together - alone).norm(dim=1) / alone.norm(dim=1).clamp(min=1e-4)).max())
    if off > 1e-8:
        raise MetagradError(
            f"a module of this model is wrong under vmap: its curvature product is {off:.1e} off (relative) from one "
            "task at a time; replace the module by one written in primitives"
        )
    return off


def _product(objective: Composed, phi: Params, v: Params, data: tuple[Any, Tensor], task: int) -> Tensor:
    """Return one task's ``H v``, by plain autograd."""
    p = {name: leaf[task].clone().requires_grad_() for name, leaf in phi.items()}
    value = objective(p, {}, data)
    gradient = torch.autograd.grad(value, list(p.values()), create_graph=True, materialize_grads=True)
    inner = torch.stack([(g * v[name][task]).sum() for name, g in zip(p, gradient, strict=True)]).sum()
    if not inner.requires_grad:  # linear
        return torch.cat([leaf.detach().flatten() * 0 for leaf in p.values()])
    product = torch.autograd.grad(inner, list(p.values()), materialize_grads=True)
    return torch.cat([part.flatten() for part in product])
