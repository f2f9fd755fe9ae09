"""iMAML as a torch.func user would write it: vmap over tasks, forward over reverse for the products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional as F

from metagrad.fewshot import Conv4, Tasks
from workload import Gradient, Workload

NAME, NEEDS, FORM = "torch.func by hand", None, "imaml"


def gradient(work: Workload, model: Conv4, theta: Gradient, tasks: Tasks) -> Gradient:
    """Take all tasks at once; conjugate gradients from zero, a fixed number of products."""
    theta = {name: leaf.detach() for name, leaf in theta.items()}

    def loss(phi: Gradient, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, phi, (x,)), y)

    def inner(phi: Gradient, x: Tensor, y: Tensor) -> Tensor:
        pull = sum((phi[name] - theta[name]).square().sum() for name in phi)
        return loss(phi, x, y) + 0.5 * work.lam * pull

    support, query = tasks
    slope = vmap(grad(inner))
    phi = {name: leaf.expand(len(tasks), *leaf.shape) for name, leaf in theta.items()}
    for _ in range(work.inner_steps):
        g = slope(phi, *support)
        phi = {name: leaf - work.inner_lr * g[name] for name, leaf in phi.items()}

    def product(v: Gradient) -> Gradient:
        return vmap(lambda p, d, x, y: jvp(lambda q: grad(inner)(q, x, y), (p,), (d,))[1])(phi, v, *support)

    def dot(a: Gradient, b: Gradient) -> Tensor:
        return torch.stack([(a[name] * b[name]).flatten(1).sum(1) for name in a]).sum(0)

    def plus(a: Gradient, scale: Tensor, b: Gradient) -> Gradient:
        return {name: a[name] + scale.view(-1, *[1] * (a[name].dim() - 1)) * b[name] for name in a}

    r = vmap(grad(loss))(phi, *query)
    u, d, rr = {name: torch.zeros_like(leaf) for name, leaf in r.items()}, r, dot(r, r)
    for _ in range(work.cg_steps):
        product_d = product(d)
        alpha = rr / dot(d, product_d)
        u, r = plus(u, alpha, d), plus(r, -alpha, product_d)
        rr_next = dot(r, r)
        d, rr = plus(r, rr_next / rr, d), rr_next
    return {name: work.lam * leaf.mean(0) for name, leaf in u.items()}
