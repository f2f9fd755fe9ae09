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
    found = torch.autograd.grad(value, list(phi.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(phi, found, strict=True))


def ancestors(value: Tensor) -> set[int]:
    """Return the ``id`` of every leaf that asks for a gradient and that ``value`` was computed from."""
    found: set[int] = set()
    nodes, seen = [value.grad_fn], {value.grad_fn}
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        if (leaf := getattr(node, "variable", None)) is not None:
            found.add(id(leaf))
        new = {before for before, _ in node.next_functions} - seen
        seen |= new
        nodes += new
    return found


def pull(outputs: list[Tensor], inputs: list[Tensor], weights: list[Tensor], *, keep: bool) -> list[Tensor | None]:
    """Vector-Jacobian product through whichever outputs have a graph; ``None`` where nothing depends."""
    live = [(out, weight) for out, weight in zip(outputs, weights, strict=True) if out.requires_grad]
    if not live or not inputs:
        return [None] * len(inputs)
    outs, grads = zip(*live, strict=True)
    return list(torch.autograd.grad(outs, inputs, grads, retain_graph=keep, allow_unused=True))


def pull_phi(outputs: list[Tensor], phi: Params, weights: list[Tensor]) -> Params:
    """As :func:`pull`, kept, with zeros for missing dependence, named as ``phi``."""
    found = pull(outputs, list(phi.values()), weights, keep=True)
    return {
        name: torch.zeros_like(leaf) if part is None else part
        for (name, leaf), part in zip(phi.items(), found, strict=True)
    }


def in_order(v: Params, phi: Params) -> list[Tensor]:
    """Pair by name: ``v`` may list its tensors in another order."""
    return [v[name] for name in phi]


def add_optional(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Add what is there of the two."""
    if a is None or b is None:
        return b if a is None else a
    return a + b
