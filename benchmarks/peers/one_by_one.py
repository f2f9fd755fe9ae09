"""iMAML as most implementations are written: a Python loop over tasks, ``torch.autograd`` in it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from metagrad.fewshot import Tasks
from workload import Gradient, Workload

NAME, NEEDS, FORM = "loop over tasks", None, "imaml"


def gradient(work: Workload, model: nn.Module, theta: Gradient, tasks: Tasks) -> Gradient:
    """Take one task after the other; conjugate gradients from zero, a fixed number of products."""
    start = [leaf.detach() for leaf in theta.values()]
    names = list(theta)
    total = [torch.zeros_like(leaf) for leaf in start]

    def loss(phi: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, dict(zip(names, phi, strict=True)), (x,)), y)

    for task in range(len(tasks)):
        support, query = ((batch.x[task], batch.y[task]) for batch in tasks)
        phi = [leaf.clone().requires_grad_() for leaf in start]
        for _ in range(work.inner_steps):
            slope = torch.autograd.grad(loss(phi, *support), phi)
            with torch.no_grad():
                for leaf, g, origin in zip(phi, slope, start, strict=True):
                    leaf -= work.inner_lr * (g + work.lam * (leaf - origin))
        target = torch.autograd.grad(loss(phi, *query), phi)
        slope = torch.autograd.grad(loss(phi, *support), phi, create_graph=True)
        for whole, part in zip(total, _solve(slope, phi, target, work), strict=True):
            whole += work.lam / len(tasks) * part
    return dict(zip(names, total, strict=True))


def _solve(slope: tuple[Tensor, ...], phi: list[Tensor], b: tuple[Tensor, ...], work: Workload) -> list[Tensor]:
    """Solve ``(H + lam) u = b``."""

    def dot(left: list[Tensor], right: list[Tensor]) -> Tensor:
        return torch.stack([(one * other).sum() for one, other in zip(left, right, strict=True)]).sum()

    def plus(left: list[Tensor], scale: Tensor, right: list[Tensor]) -> list[Tensor]:
        return [one + scale * other for one, other in zip(left, right, strict=True)]

    u, r, d = [torch.zeros_like(leaf) for leaf in b], list(b), list(b)
    rr = dot(r, r)
    for _ in range(work.cg_steps):
        bent = torch.autograd.grad(slope, phi, d, retain_graph=True)
        product = [part + work.lam * step for part, step in zip(bent, d, strict=True)]
        alpha = rr / dot(d, product)
        u, r = plus(u, alpha, d), plus(r, -alpha, product)
        rr_next = dot(r, r)
        d, rr = plus(r, rr_next / rr, d), rr_next
    return u
