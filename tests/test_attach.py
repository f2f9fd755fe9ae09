"""A solution found elsewhere is differentiated like one found here."""

import warnings

import pytest
import torch
from test_solvers import T, dense_newton, logistic

from metagrad import (
    CG,
    FirstOrder,
    GradientDescent,
    Implicit,
    MetagradWarning,
    NotFiniteError,
    Unroll,
    argmin,
    attach,
    tree,
)


def outer(solution):
    return sum(leaf.sin().sum() for leaf in solution.value.values())


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_any_way_to_the_solution_gives_its_gradient(curvature):
    """Found by Newton's method on the dense matrix, outside of the library, with a graph of its own to be ignored."""
    g, theta, data = logistic()
    theta = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
    flat = dense_newton(g, tree.detach(theta), data)
    sizes = [leaf.numel() for leaf in theta.values()]
    phi = {
        name: part.reshape(T, *theta[name].shape) + 0 * theta[name]
        for name, part in zip(theta, flat.split(sizes, 1), strict=True)
    }
    adjoint = Implicit(linear_solver=CG(max_steps=50, tol=1e-14), curvature=curvature)
    found = attach(phi, g, theta, data, adjoint=adjoint)
    assert found.grad_norm.max() < 1e-10
    assert (found.steps == 0).all()
    solver = GradientDescent(lr=0.5, max_steps=600)
    expected = argmin(g, tree.expand(theta, T), theta, data, solver=solver, adjoint=adjoint)
    gradients = [torch.autograd.grad(outer(one), list(theta.values())) for one in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-8, atol=1e-12)
    assert found.linear.residual.max() < 1e-10


def test_what_is_no_solution_says_so_and_what_is_not_finite_is_refused():
    g, theta, data = logistic()
    theta = {name: leaf.clone().requires_grad_() for name, leaf in theta.items()}
    with pytest.warns(MetagradWarning, match=r"attach: phi is not where .*inner gradient norm \d"):
        assert attach(tree.expand(theta, T), g, theta, data, adjoint=Implicit()).grad_norm.min() > 1e-3
    bad = {name: leaf * torch.nan for name, leaf in tree.expand(theta, T).items()}
    with pytest.raises(NotFiniteError):
        attach(bad, g, theta, data, adjoint=Implicit())


@pytest.mark.parametrize("adjoint", [Unroll(), FirstOrder()])
def test_steps_that_nobody_saw_are_not_unrolled(adjoint):
    g, theta, data = logistic()
    with pytest.raises(TypeError, match="attach goes with Implicit"):
        attach(tree.expand(theta, T), g, theta, data, adjoint=adjoint)


def test_a_solution_on_a_constraint_is_warned_about_and_a_solved_one_is_not():
    a = torch.tensor([1.0, -1.0], dtype=torch.float64, requires_grad=True)

    def nearest(phi, theta, data):
        return (phi["w"] - theta["a"]).square().sum() / 2

    with pytest.warns(MetagradWarning, match="a constraint"):
        attach({"w": a.detach().clamp(min=0)[None]}, nearest, {"a": a}, None, adjoint=Implicit())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach({"w": a.detach()[None] + 1e-4}, nearest, {"a": a}, None, adjoint=Implicit())
