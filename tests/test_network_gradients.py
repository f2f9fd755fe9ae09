"""Meta-gradients of networks: against a plain loop over tasks, finite differences, and a CG written apart."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from metagrad import CG, GradientDescent, Implicit, argmin, tree
from metagrad.fewshot import MAML, MLP, Batch, Conv4, Tasks, meta_gradient, support_loss

WAYS = 5


def tasks(seed, count=3, size=28, queries=2, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(count, WAYS, 1, size, size, generator=g, dtype=dtype)

    def batch(per_class):
        x = prototypes.repeat_interleave(per_class, 1)
        noise = 0.3 * torch.rand(x.shape, generator=g, dtype=dtype)
        return Batch(x + noise, torch.arange(WAYS).repeat_interleave(per_class).expand(count, -1))

    return Tasks(batch(1), batch(queries))


def network(kind, seed=0, dtype=torch.float64, size=28):
    g = torch.Generator().manual_seed(seed)
    if kind == "conv4":
        return Conv4(WAYS, filters=8, image_size=size, generator=g).to(dtype)
    return MLP((size * size, 16, WAYS), activation=nn.Tanh, generator=g).to(dtype)


def gradient(algorithm, model, theta, drawn):
    meta_gradient(algorithm, model, theta, drawn)
    return torch.cat([leaf.grad.flatten() for leaf in theta.values()])


def unit_vector(shape, seed):
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return direction / direction.norm()


def smooth(model):
    """Replace ReLU by tanh: finite differences and curvature mean little across kinks."""
    for module in model.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, nn.ReLU):
                setattr(module, name, nn.Tanh())
    return model


def plain_steps(model, phi, theta, x, y, lam, lr, steps):
    """Gradient descent on the proximal objective, one task, plain autograd with a graph."""
    for _ in range(steps):
        loss = F.cross_entropy(functional_call(model, phi, (x,)), y)
        loss = loss + 0.5 * lam * sum(((phi[n] - theta[n]) ** 2).sum() for n in phi)
        grads = torch.autograd.grad(loss, list(phi.values()), create_graph=True)
        phi = {n: p - lr * g for (n, p), g in zip(phi.items(), grads, strict=True)}
    return phi


@pytest.mark.parametrize("kind", ["conv4", "mlp"])
def test_maml_equals_a_plain_loop_and_finite_differences(kind):
    model, drawn = smooth(network(kind)), tasks(2, count=2)
    algorithm = MAML(inner_lr=0.1, inner_steps=3)
    theta = algorithm.init(model)
    found = gradient(algorithm, model, theta, drawn)

    def loss_at(point):
        total = 0.0
        for t in range(2):
            start = {n: p.clone() for n, p in point.items()}
            phi = plain_steps(model, start, start, drawn.support.x[t], drawn.support.y[t], 0.0, 0.1, 3)
            total = total + F.cross_entropy(functional_call(model, phi, (drawn.query.x[t],)), drawn.query.y[t]) / 2
        return total

    leaves = {n: p.detach().clone().requires_grad_() for n, p in theta.items()}
    looped = torch.autograd.grad(loss_at(leaves), list(leaves.values()))
    looped = torch.cat([g.flatten() for g in looped])
    torch.testing.assert_close(found, looped, rtol=1e-9, atol=1e-12)
    for seed in range(3):
        direction = unit_vector(found.shape, seed)
        parts = tree.unravel(direction[None], {n: p[None].contiguous() for n, p in leaves.items()})
        moved = [
            loss_at({n: (p + s * 3e-5 * parts[n][0]).detach().requires_grad_() for n, p in leaves.items()}).item()
            for s in (1, -1)
        ]
        assert (moved[0] - moved[1]) / 6e-5 == pytest.approx((found @ direction).item(), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("kind", ["conv4", "mlp"])
def test_implicit_gradient_equals_finite_differences_of_the_solved_problem(kind):
    """Strong proximal term, solved to 1e-12: theta moves, everything is solved again."""
    size = 8
    model, drawn = smooth(network(kind, size=size)), tasks(3, count=2, size=size)
    objective = support_loss(model, lam=100.0)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}

    def query(theta):
        solution = argmin(objective, tree.expand(theta, 2), theta, drawn.support,
                          solver=GradientDescent(lr=0.007, max_steps=150),
                          adjoint=Implicit(linear_solver=CG(max_steps=200, tol=1e-13)))  # fmt: skip
        assert solution.grad_norm.max() < 1e-9
        outputs = torch.vmap(lambda p, x: functional_call(model, p, (x,)))(solution.value, drawn.query.x)
        return F.cross_entropy(outputs.flatten(0, 1), drawn.query.y.flatten())

    found = torch.cat([g.flatten() for g in torch.autograd.grad(query(leaves), list(leaves.values()))])
    for seed in range(3):
        direction = unit_vector(found.shape, seed)
        parts = tree.unravel(direction[None], {n: p[None].contiguous() for n, p in leaves.items()})
        with torch.no_grad():
            high, low = (query({n: p + s * 3e-5 * parts[n][0] for n, p in leaves.items()}).item() for s in (1, -1))
        assert (high - low) / 6e-5 == pytest.approx((found @ direction).item(), rel=1e-6, abs=1e-9)


def reference_cg(product, b, steps):
    x, r = torch.zeros_like(b), b
    d = r
    for _ in range(steps):
        Ad = product(d)
        alpha = (r @ r) / (d @ Ad)
        x, r_new = x + alpha * d, r - alpha * Ad
        d, r = r_new + (r_new @ r_new) / (r @ r) * d, r_new
    return x


def reference_meta_gradient(model, theta, phi, x, y, query_x, query_y, lam, steps, curvature):
    """One task, plain torch.autograd, flat vectors: lam (C + lam I)⁻¹ ∇ query loss by `steps` of CG."""
    names, shapes = list(theta), [theta[n].shape for n in theta]
    sizes = [s.numel() for s in shapes]

    def named(flat):
        return {n: p.view(s) for n, p, s in zip(names, flat.split(sizes), shapes, strict=True)}

    point = torch.cat([phi[n].flatten() for n in names]).detach().requires_grad_()
    (v,) = torch.autograd.grad(F.cross_entropy(functional_call(model, named(point), (query_x,)), query_y), point)

    def outputs(flat):
        return functional_call(model, named(flat), (x,))

    if curvature == "hessian":
        (g,) = torch.autograd.grad(F.cross_entropy(outputs(point), y), point, create_graph=True)

        def product(d):
            return torch.autograd.grad(g, point, d, retain_graph=True)[0] + lam * d
    else:

        def product(d):
            out, forward = torch.func.jvp(outputs, (point.detach(),), (d,))
            p = out.softmax(-1)
            bent = (p * forward - p * (p * forward).sum(-1, keepdim=True)) / len(y)
            return torch.autograd.grad(outputs(point), point, bent)[0] + lam * d

    return lam * reference_cg(product, v, steps)


@pytest.mark.parametrize(
    ("curvature", "dtype", "tolerance"),
    [("hessian", torch.float64, 1e-8), ("gauss_newton", torch.float64, 1e-8), ("gauss_newton", torch.float32, 1e-4)],
    ids=["hessian-64", "gauss-newton-64", "gauss-newton-32"],
)
def test_five_cg_steps_match_the_reference_on_the_standard_network(curvature, dtype, tolerance):
    model = Conv4(WAYS, generator=torch.Generator().manual_seed(4)).to(dtype)  # 64 filters, 28×28
    drawn, lam, steps = tasks(5, count=2, queries=15, dtype=dtype), 2.0, 5
    theta = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}

    solver = CG(max_steps=steps, tol=0.0, on_negative="continue")
    solution = argmin(support_loss(model, lam=lam), tree.expand(theta, 2), theta, drawn.support,
                      solver=GradientDescent(lr=0.1, max_steps=16),
                      adjoint=Implicit(linear_solver=solver, curvature=curvature))  # fmt: skip
    outputs = torch.vmap(lambda p, x: functional_call(model, p, (x,)))(solution.value, drawn.query.x)
    losses = torch.vmap(F.cross_entropy)(outputs, drawn.query.y)
    for t in range(2):
        found = torch.autograd.grad(losses[t], list(theta.values()), retain_graph=True)
        found = torch.cat([g.flatten() for g in found])
        phi = {n: p[t].detach() for n, p in solution.value.items()}
        expected = reference_meta_gradient(
            model, theta, phi, drawn.support.x[t], drawn.support.y[t], drawn.query.x[t], drawn.query.y[t],
            lam, steps, curvature,
        )  # fmt: skip
        assert (found - expected).norm() <= tolerance * expected.norm()
