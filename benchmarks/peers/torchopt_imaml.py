"""iMAML with TorchOpt's implicit meta-gradients, through its public interface: one task after the other."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, grad
from torch.nn import functional as F

from metagrad.fewshot import Batch, Conv4, Tasks
from workload import Gradient, Workload, taken

NAME, NEEDS, FORM = "TorchOpt", "torchopt", "imaml"


def gradient(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Declare the inner solution a root of the inner gradient; TorchOpt's CG solves for the adjoint."""
    import torchopt

    for leaf in theta.values():
        leaf.grad = None
    names = list(theta)

    def one_task(support: Batch, query: Batch) -> Tensor:
        def inner(phi: tuple[Tensor, ...], meta: tuple[Tensor, ...]) -> Tensor:
            outputs = functional_call(model, dict(zip(names, phi, strict=True)), (support.x,))
            pull = sum((p - m).square().sum() for p, m in zip(phi, meta, strict=True))
            return F.cross_entropy(outputs, support.y) + 0.5 * work.lam * pull

        @torchopt.diff.implicit.custom_root(
            grad(inner, argnums=0),
            argnums=1,
            solve=torchopt.linear_solve.solve_cg(maxiter=work.cg_steps, rtol=0.0, atol=0.0),
        )
        def solve(phi: tuple[Tensor, ...], meta: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            fixed = tuple(leaf.detach() for leaf in meta)
            for _ in range(work.inner_steps):
                leaves = tuple(leaf.detach().requires_grad_() for leaf in phi)
                with torch.enable_grad():
                    g = torch.autograd.grad(inner(leaves, fixed), leaves)
                phi = tuple(leaf.detach() - work.inner_lr * part for leaf, part in zip(leaves, g, strict=True))
            return phi

        meta = tuple(theta.values())
        phi = solve(tuple(leaf.detach().clone() for leaf in meta), meta)
        return F.cross_entropy(functional_call(model, dict(zip(names, phi, strict=True)), (query.x,)), query.y)

    for task in range(len(tasks)):
        support, query = (Batch(part.x[task], part.y[task]) for part in tasks)
        (one_task(support, query) / len(tasks)).backward()
    return taken(theta)
