"""What a solution says of its own error is true (float64)."""

import pytest
import torch
from test_solvers import T, dense_newton, logistic, quadratic
from torch.nn import functional as F

from metagrad import (
    CG,
    Composed,
    DivergedError,
    GradientDescent,
    Implicit,
    Nesterov,
    NotFiniteError,
    Proximal,
    Woodbury,
    argmin,
    tree,
)
from metagrad.implicit import Problem
from metagrad.implicit.linear import solve


@pytest.mark.parametrize("make", [quadratic, logistic])
@pytest.mark.parametrize("steps", [1, 5, 30])
def test_delta_is_a_bound_where_it_is_called_one(make, steps):
    g, theta, data = make()
    g = Composed(g.outputs, g.loss, g.regulariser, convex=True)
    exact = dense_newton(g, theta, data)
    theta = {name: leaf.requires_grad_() for name, leaf in theta.items()}
    solution = argmin(g, tree.expand(theta, T), theta, data, solver=GradientDescent(lr=0.1, max_steps=steps),
                      adjoint=Implicit(linear_solver=CG(max_steps=2), curvature="gauss_newton"))  # fmt: skip
    off = (torch.cat([solution.value[name].reshape(T, -1) for name in theta], 1) - exact).norm(dim=1).detach()
    assert solution.delta.certain
    assert (off <= solution.delta.value).all()
    assert (solution.delta.value <= 50 * off + 1e-6).all()  # and not a vacuous one
    assert solution.delta_prime is None
    sum(leaf.square().sum() for leaf in solution.value.values()).backward()
    assert solution.delta_prime.certain


def test_delta_prime_bounds_the_product():
    """‖Λu − ΛA⁻¹v‖ against a dense solve, for a scalar and a diagonal Λ."""
    g, weights, data = quadratic()
    for lam in (lambda theta: torch.tensor(0.5).double(), lambda theta: {"w": torch.linspace(0.2, 3, 6).double()}):
        g = Composed(g.outputs, g.loss, Proximal(lam))
        theta = {"w": weights["w"].detach().requires_grad_()}
        solution = argmin(g, tree.expand(theta, T), theta, data, solver=GradientDescent(lr=0.1, max_steps=50),
                          adjoint=Implicit(linear_solver=CG(max_steps=2), curvature="gauss_newton"))  # fmt: skip
        solution.value["w"].square().sum().backward()
        strengths = torch.diag(torch.as_tensor(lam(None)["w"] if isinstance(lam(None), dict) else lam(None)).expand(6))
        u = torch.linalg.solve(data[0] + strengths, 2 * solution.value["w"].detach())
        off = ((solution.linear.value["w"] - u) @ strengths).norm(dim=1)
        assert solution.delta_prime.certain
        assert (off <= solution.delta_prime.value * (1 + 1e-12)).all()
        assert (off > 0).all()


def test_without_convexity_it_is_at_least_so_much_and_nothing_before_the_backward():
    g, theta, data = quadratic()
    theta["w"].requires_grad_()
    solution = argmin(g, tree.expand(theta, T), theta, data, solver=GradientDescent(lr=0.1, max_steps=5),
                      adjoint=Implicit(linear_solver=CG(max_steps=3)))  # fmt: skip
    assert solution.delta is None
    solution.value["w"].square().sum().backward()
    assert not solution.delta.certain
    assert not solution.delta_prime.certain
    torch.testing.assert_close(solution.delta.value, solution.grad_norm / solution.linear.min_curvature)


def test_negative_curvature_leaves_no_bound():
    def saddle(phi, theta, data):
        return (data * phi["w"].square()).sum() / 2 + 0.5 * theta["lam"] * (phi["w"] - theta["w"]).square().sum()

    theta = {"w": torch.ones(2).double().requires_grad_(), "lam": torch.tensor(1.0).double()}
    data = torch.tensor([[-3.0, 1.0]]).double()
    solution = argmin(saddle, {"w": torch.ones(1, 2).double()}, theta, data,
                      solver=GradientDescent(lr=0.1, max_steps=2), adjoint=Implicit())  # fmt: skip
    solution.value["w"].sum().backward()
    assert solution.linear.stopped.all()
    assert solution.delta.value.isinf().all()


@pytest.mark.parametrize("solver", [GradientDescent(lr=50.0, max_steps=500), Nesterov(lr=50.0, max_steps=500)])
def test_a_step_size_that_diverges_is_named_with_one_that_would_not(solver):
    g, theta, data = quadratic()
    largest = torch.linalg.eigvalsh(data[0]).amax(1) + 0.5
    with pytest.raises(DivergedError, match=r"\(lr=50\) diverged, first in task 0") as caught:
        argmin(g, tree.expand(theta, T), theta, data, solver=solver, adjoint=Implicit())
    factor = 2 if isinstance(solver, GradientDescent) else 1
    assert float(str(caught.value).rsplit(" ", 1)[1]) == pytest.approx(factor / largest.max().item(), rel=0.05)


def test_nan_is_found_where_it_is():
    g, theta, data = quadratic()
    for what, changed in (("data", (data[0], data[1] * torch.nan)), ("theta", None)):
        bad = {"w": theta["w"] * torch.inf} if what == "theta" else theta
        with pytest.raises(NotFiniteError, match=what):
            argmin(g, tree.expand(theta, T), bad, changed or data, solver=GradientDescent(lr=0.1, max_steps=2),
                   adjoint=Implicit())  # fmt: skip
    hole = Composed(g.outputs, lambda out, data: out.sum().log() * torch.nan, g.regulariser)
    with pytest.raises(NotFiniteError, match="objective is not finite at the start, first in task 0"):
        argmin(hole, tree.expand(theta, T), theta, data, solver=GradientDescent(lr=0.1, max_steps=2),
               adjoint=Implicit())  # fmt: skip


def test_a_sure_softmax_is_not_taken_for_a_loss_that_curves_down():
    """Its curvature is below rounding, whose sign says nothing: 400 tasks of it, in float32."""
    generator = torch.Generator().manual_seed(0)
    scores = 40 * torch.randn(400, 5, 5, generator=generator)
    direction = {"z": 40 * torch.randn(400, 5, 5, generator=generator)}
    labels = torch.randint(5, (400, 5), generator=generator)
    theta = {"z": torch.zeros(5, 5)}
    g = Composed(lambda phi, theta, y: phi["z"], F.cross_entropy, Proximal(0.1))
    operator = Problem(g, theta, labels).curvature({"z": scores}, "gauss_newton")
    bent = operator(direction)["z"] - 0.1 * direction["z"]
    assert ((bent * direction["z"]).sum((1, 2)) < 0).any()  # such rounding occurs
    assert solve(Woodbury(), operator, direction).residual.max() < 1e-5


def test_a_loss_that_is_not_convex_in_the_outputs_is_refused():
    g, theta, data = quadratic()
    bent = Composed(g.outputs, lambda out, data: -0.1 * out.square().sum() + out.cos().sum(), g.regulariser)
    theta["w"].requires_grad_()
    solution = argmin(bent, tree.expand(theta, T), theta, data, solver=GradientDescent(lr=0.1, max_steps=2),
                      adjoint=Implicit(curvature="gauss_newton"))  # fmt: skip
    with pytest.raises(ValueError, match="not convex in the outputs"):
        solution.value["w"].sum().backward()


def test_certain_bounds_hold_in_float32():
    """What the recursion of conjugate gradients carries falls on below what rounding leaves."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(T, 30, 12, generator=generator), torch.randn(T, 30, generator=generator)
    theta = {"w": torch.randn(12, generator=generator).requires_grad_()}
    g = Composed(
        outputs=lambda phi, theta, data: data[0] @ phi["w"],
        loss=lambda outputs, data: (outputs - data[1]).square().sum() / 2,
        regulariser=Proximal(1.0),
        convex=True,
    )
    adjoint = Implicit(linear_solver=CG(max_steps=20), curvature="gauss_newton")
    found = argmin(g, {"w": theta["w"].expand(T, 12)}, theta, (x, y),
                   solver=GradientDescent(lr=0.015, max_steps=4000), adjoint=adjoint)  # fmt: skip
    v = torch.randn(T, 12, generator=generator)
    (found.value["w"] * v).sum().backward()
    x, y = x.double(), y.double()
    A = x.mT @ x + torch.eye(12).double()
    exact = torch.linalg.solve(A, (x.mT @ y[..., None])[..., 0] + theta["w"].detach().double())
    u = torch.linalg.solve(A, v.double())
    assert found.delta.certain
    assert found.delta_prime.certain
    assert ((found.value["w"].detach().double() - exact).norm(dim=1) <= found.delta.value).all()
    off = (found.linear.value["w"].double() - u).norm(dim=1)
    assert (off <= found.delta_prime.value).all()
    assert (found.delta_prime.value < 1e-4).all()


def test_without_a_measurement_nothing_is_said():
    g, theta, data = quadratic()
    theta["w"].requires_grad_()
    told = {}
    for measure in (True, False):
        solution = argmin(g, tree.expand(theta, T), theta, data, solver=GradientDescent(lr=0.1, max_steps=50),
                          adjoint=Implicit(linear_solver=CG(max_steps=9), measure=measure))  # fmt: skip
        (told[measure],) = torch.autograd.grad(solution.value["w"].square().sum(), theta["w"])
        assert (solution.linear.residual is None) == (solution.delta_prime is None) == (not measure)
    assert torch.equal(told[True], told[False])
