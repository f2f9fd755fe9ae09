"""Unrolling less than everything: truncated and checkpointed, against plain autograd written out."""

import pytest
import torch
from test_solvers import T, logistic

from metagrad import Adam, FirstOrder, GradientDescent, Nesterov, Unroll, argmin
from metagrad.implicit import HessianFree, Problem


def asking():
    """Return a problem all of whose tensors ask for a gradient."""
    g, theta, data = logistic()
    theta = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
    data = tuple(leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf for leaf in data)
    init = {name: torch.full((T, *leaf.shape), 0.1, dtype=leaf.dtype).requires_grad_() for name, leaf in theta.items()}
    return g, init, theta, data


def gradients(adjoint, solver):
    """Return the gradients in init, theta and data of a function of the solution."""
    g, theta, data = logistic()
    theta = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
    data = tuple(leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf for leaf in data)
    init = {
        name: (0.1 * torch.ones_like(leaf)).expand(T, *leaf.shape).clone().requires_grad_()
        for name, leaf in theta.items()
    }
    solution = argmin(g, init, theta, data, solver=solver, adjoint=adjoint)
    loss = sum((leaf.sin() * torch.arange(leaf.numel()).view_as(leaf)).sum() for leaf in solution.value.values())
    asked = [*init.values(), *theta.values(), *(leaf for leaf in data if leaf.requires_grad)]
    return torch.autograd.grad(loss, asked, materialize_grads=True), solution


def written_out(steps, last, lr):
    """Return the same by descent in the open, with the state of before the last steps cut off."""
    g, theta, data = logistic()
    theta = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
    data = tuple(leaf.clone().requires_grad_() if leaf.is_floating_point() else leaf for leaf in data)
    init = {
        name: (0.1 * torch.ones_like(leaf)).expand(T, *leaf.shape).clone().requires_grad_()
        for name, leaf in theta.items()
    }
    total = 0.0
    index = {name: torch.arange(leaf.numel()).view_as(leaf) for name, leaf in init.items()}
    for task in range(T):
        phi = {name: leaf[task] for name, leaf in init.items()}
        one = tuple(leaf[task] for leaf in data)
        for step in range(steps):
            if step == steps - last:
                phi = {name: init[name][task] + (leaf - init[name][task]).detach() for name, leaf in phi.items()}
            gradient = torch.autograd.grad(g(phi, theta, one), list(phi.values()), create_graph=True)
            phi = {name: leaf - lr * part for (name, leaf), part in zip(phi.items(), gradient, strict=True)}
        if last == 0:
            phi = {name: init[name][task] + (leaf - init[name][task]).detach() for name, leaf in phi.items()}
        total = total + sum((leaf.sin() * index[name][task]).sum() for name, leaf in phi.items())
    asked = [*init.values(), *theta.values(), *(leaf for leaf in data if leaf.requires_grad)]
    return torch.autograd.grad(total, asked, materialize_grads=True)


def close(found, expected):
    return all(torch.allclose(a, b, rtol=1e-9, atol=1e-12) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("last", [0, 1, 3, 7, 20])
def test_truncated_is_descent_with_the_first_steps_cut_off(last):
    found, solution = gradients(Unroll(truncate=last), GradientDescent(lr=0.1, max_steps=7))
    assert close(found, written_out(7, min(last, 7), 0.1))
    assert (solution.steps == 7).all()


@pytest.mark.parametrize("solver", [
    GradientDescent(lr=0.1, max_steps=6), GradientDescent(lr=0.1, max_steps=6, momentum=0.5),
    GradientDescent(lr=0.5, max_steps=6, line_search=True), Nesterov(lr=0.1, max_steps=6), Adam(lr=0.1, max_steps=6),
])  # fmt: skip
def test_ends_of_truncation_are_the_methods_they_are_called(solver):
    assert close(gradients(Unroll(truncate=6), solver)[0], gradients(Unroll(), solver)[0])
    assert close(gradients(Unroll(truncate=0), solver)[0], gradients(FirstOrder(), solver)[0])


@pytest.mark.parametrize("every", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("lr", [0.1, lambda theta: theta["w"].square().mean() / 10])
def test_checkpoints_change_nothing(every, lr):
    solver = GradientDescent(lr=lr, max_steps=7)
    found, solution = gradients(Unroll(checkpoint=every), solver)
    assert close(found, gradients(Unroll(), solver)[0])
    assert (solution.steps == 7).all()


def test_what_is_kept(monkeypatch):
    """Graphs alive at once: with checkpoints those of one segment, truncated those of the last steps."""
    taken = []
    real = Problem.grad

    def counted(self, phi):
        taken.append(self.create_graph)
        return real(self, phi)

    monkeypatch.setattr(Problem, "grad", counted)
    gradients(Unroll(truncate=3), GradientDescent(lr=0.1, max_steps=10))
    assert sum(taken) == 3
    taken.clear()
    gradients(Unroll(checkpoint=4), GradientDescent(lr=0.1, max_steps=10))
    assert taken == [False] * 10 + [False] + [True] * 10  # forward, the norm at the end, backward


def test_refusals():
    for options, said in (({"truncate": -1}, "at least 0"), ({"checkpoint": 0}, "at least 1"),
                          ({"truncate": 1, "checkpoint": 1}, "do not go together")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            Unroll(**options)
    descent = GradientDescent(lr=0.1, max_steps=5, tol=1e-3)
    for adjoint, solver, said in (
        (Unroll(truncate=2), descent, "truncate needs to know"),
        (Unroll(truncate=2), lambda problem, init: init, "truncate needs to know"),
        (Unroll(truncate=2), GradientDescent(lr=lambda theta: theta["w"].mean(), max_steps=2), "a fixed lr"),
        (Unroll(checkpoint=2), descent, "checkpoint goes with GradientDescent"),
        (Unroll(checkpoint=2), Nesterov(lr=0.1, max_steps=5), "checkpoint goes with GradientDescent"),
        (Unroll(truncate=2), HessianFree(max_steps=2), "unroll"),
    ):
        with pytest.raises(ValueError, match=said):
            gradients(adjoint, solver)


def test_twice_is_refused():
    g, init, theta, data = asking()
    solver = GradientDescent(lr=0.1, max_steps=4)
    value = argmin(g, init, theta, data, solver=solver, adjoint=Unroll(checkpoint=2)).value
    with pytest.raises(RuntimeError, match="once only"):
        torch.autograd.grad(sum(leaf.sum() for leaf in value.values()), list(init.values()), create_graph=True)
