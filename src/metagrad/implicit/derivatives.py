"""``autograd.grad`` on task-batched parameters: the gradient of a sum over tasks is every task's own."""

from __future__ import annotations

import torch
from torch import Tensor

from metagrad.tree import Params


def leaves_of(params: Params) -> Params:
    """Cut ``params`` from their history and ask for gradients."""
    return {name: leaf.detach().requires_grad_() for name, leaf in params.items()}


def grads(value: Tensor, phi: Params, *, create_graph: bool) -> Params:
    """Differentiate a sum over tasks; a parameter that has no influence gets zeros."""
    gradients = torch.autograd.grad(value, list(phi.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(phi, gradients, strict=True))


def ancestors(value: Tensor) -> set[int]:
    """Return the ``id`` of every leaf that asks for a gradient and that ``value`` was computed from."""
    leaves: set[int] = set()
    nodes, visited = [value.grad_fn], {value.grad_fn}
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if (leaf := getattr(node, "variable", None)) is not None:
            leaves.add(id(leaf))
        new = {before for before, _ in node.next_functions} - visited
        visited |= new
        nodes += new
    return leaves


def vjp(outputs: list[Tensor], inputs: list[Tensor], weights: list[Tensor], *, keep: bool) -> list[Tensor | None]:
    """Vector-Jacobian product through whichever outputs have a graph; ``None`` where nothing depends."""
    live = [(out, weight) for out, weight in zip(outputs, weights, strict=True) if out.requires_grad]
    if not live or not inputs:
        return [None] * len(inputs)
    outs, weights_of_live = zip(*live, strict=True)
    return list(torch.autograd.grad(outs, inputs, weights_of_live, retain_graph=keep, allow_unused=True))


def vjp_phi(outputs: list[Tensor], phi: Params, weights: list[Tensor]) -> Params:
    """As :func:`vjp`, graph kept, with zeros for missing dependence, named as ``phi``."""
    products = vjp(outputs, list(phi.values()), weights, keep=True)
    return {
        name: torch.zeros_like(leaf) if part is None else part
        for (name, leaf), part in zip(phi.items(), products, strict=True)
    }


def hessian_product(gradient: Params, phi: Params, v: Params) -> Params:
    """Multiply the Hessian, whose graph ``gradient`` holds, with v; v may list its tensors in another order."""
    return vjp_phi(list(gradient.values()), phi, [v[name] for name in gradient])


def minus_mixed(gradient: Params, inputs: list[Tensor], u: Params, *, keep: bool) -> list[Tensor | None]:
    """Return ``−(d gradient / d inputs)ᵀ u``."""
    return vjp(list(gradient.values()), inputs, [-u[name] for name in gradient], keep=keep)


def add_optional(first: list[Tensor | None], second: list[Tensor | None]) -> list[Tensor | None]:
    """Add what is there of two lists, entry by entry."""
    return [
        a + b if a is not None and b is not None else b if a is None else a for a, b in zip(first, second, strict=True)
    ]
