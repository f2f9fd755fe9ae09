"""The check of a meta-gradient finds the errors that were put in, and where they come from (float64 closed form)."""

import pytest
import torch
from test_solvers import T, conv4, logistic, mlp, quadratic

from metagrad import CG, Composed, FirstOrder, GradientDescent, HessianFree, Implicit, check_meta_gradient, tree
from metagrad.implicit import Problem, solve_on


def outer(phi, theta):
    return sum(leaf.square().sum() + leaf.sum() for leaf in phi.values())


def check(make, solver, adjoint, dtype=torch.float64):
    g, theta, data = make()
    theta, data = (tree.map_tensors(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, part)
                   for part in (theta, data))  # fmt: skip
    return check_meta_gradient(g, lambda theta: tree.expand(theta, T), theta, data, outer=outer, solver=solver,
                               adjoint=adjoint)  # fmt: skip


EXACT = Implicit(linear_solver=CG(max_steps=80, tol=1e-14))
TIGHT = HessianFree(max_steps=60, tol=1e-11, cg_steps=30)


def test_the_reference_is_the_closed_form():
    _, theta, (A, b) = quadratic()
    found = check(quadratic, GradientDescent(lr=0.1, max_steps=3), EXACT)
    w = theta["w"].requires_grad_()
    phi = torch.linalg.solve(A + 0.5 * torch.eye(6).double(), 0.5 * w - b)
    (exact,) = torch.autograd.grad(outer({"w": phi}, {}), w)
    assert (found.reference - exact).norm() <= 1e-8 * exact.norm()
    assert found.reference_grad_norm.max() <= 1e-9
    assert found.reference_residual.max() <= 1e-9


@pytest.mark.parametrize("make", [quadratic, logistic, mlp, pytest.param(conv4, marks=pytest.mark.slow)])
def test_each_cause_is_found_alone(make):
    fine = check(make, TIGHT, EXACT)
    assert fine.error < 1e-6
    assert fine.cosine > 1 - 1e-9
    lr = {quadratic: 0.15, logistic: 0.5, mlp: 0.08, conv4: 0.02}[make]
    inner = check(make, GradientDescent(lr=lr, max_steps=2), EXACT)
    assert inner.inner > 1e-3
    assert inner.linear < 1e-6
    assert inner.curvature == 0
    assert inner.error == pytest.approx(inner.inner, rel=1e-4)
    linear = check(make, TIGHT, Implicit(linear_solver=CG(max_steps=1)))
    assert linear.linear > 1e-3
    assert linear.inner < 1e-6
    assert linear.residual.max() > 1e-3
    curved = check(make, TIGHT, Implicit(linear_solver=CG(max_steps=200, tol=1e-14), curvature="gauss_newton"))
    if make in (mlp, conv4):
        assert curved.curvature > 1e-3
    else:  # outputs linear in phi: Gauss-Newton is the Hessian
        assert curved.curvature < 1e-7
    assert curved.linear < 1e-6


def test_first_order_and_float32():
    found = check(logistic, TIGHT, FirstOrder())
    assert found.linear is None
    assert found.inner is None
    assert found.error > 0.01
    rounded = check(logistic, HessianFree(max_steps=20, cg_steps=30), EXACT, dtype=torch.float32)
    assert 1e-9 < rounded.error < 1e-4
    assert rounded.reference.dtype == torch.float64
    assert rounded.error / 10 < rounded.arithmetic < 2 * rounded.error, "solved as well as float32 can"
    short = check(logistic, GradientDescent(lr=0.5, max_steps=2), EXACT, dtype=torch.float32)
    assert short.arithmetic < 1e-4 < short.inner


def test_fewer_digits_are_said():
    def bf16(make, dtype):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            return check(make, TIGHT, EXACT, dtype=dtype)

    fine = bf16(mlp, torch.float64)
    assert fine.arithmetic == 0, "float64 is left alone"
    rough = bf16(mlp, torch.float32)
    assert 1e-3 < rough.arithmetic < 0.5
    assert rough.reference == pytest.approx(fine.reference, rel=1e-5, abs=1e-5)


def test_an_objective_that_mixes_tasks_is_refused():
    g, theta, data = quadratic()

    def outputs(phi, theta, data):  # one task alone gives what it should
        own = torch.vmap(g.outputs, in_dims=(0, None, 0))(phi, theta, data)
        return own + own - own.mean(0)

    mixed = Composed(g.outputs, g.loss, g.regulariser, outputs_of_tasks=outputs)
    with pytest.raises(ValueError, match="mixes tasks"):
        check_meta_gradient(mixed, lambda theta: tree.expand(theta, T), theta, data, outer=outer,
                            solver=GradientDescent(lr=0.1, max_steps=1), adjoint=Implicit())  # fmt: skip


def test_the_reference_is_the_best_point_found():
    """Newton's method goes down in the value; where it goes up in the norm, the former point stays."""
    g, theta, data = mlp()
    problem = Problem(g, theta, data).detached()
    start = tree.expand(theta, T)
    norm = tree.norm(problem.grad(start))
    for tol in (1e-3, 1e-8):
        found = tree.norm(problem.grad(solve_on(problem, start, tol=tol)))
        assert (found <= norm).all()
        assert found.max() <= tol


def test_nothing_is_attributed_to_an_inner_solve_that_no_reference_improves():
    """The minimum of |phi - 0.2| + phi² / 2 lies on a kink, where no gradient is near zero."""
    told = []
    found = check_meta_gradient(
        lambda phi, theta, data: (phi["w"] - data).abs().sum() + 0.5 * (phi["w"] - theta["w"]).square().sum(),
        lambda theta: tree.expand(theta, T),
        {"w": torch.zeros(3).double()},
        torch.full((T, 3), 0.2).double(),
        outer=outer,
        solver=GradientDescent(lr=0.01, max_steps=2),
        adjoint=EXACT,
        report=told.append,
    )
    assert found.reference_grad_norm.max() > 0.5 * found.grad_norm.mean()
    assert found.inner is None
    assert found.linear is None
    assert found.curvature is None
    assert told[-1] == "reference: solving the linear system"
