"""One problem without a task axis (``batched=False``), against closed forms and a batch of one (float64)."""

import pytest
import torch
from ridge_problem import SOLVERS, D, N, given, randn, ridge, solved
from torch.nn import functional as F

from metagrad import (
    CG,
    LBFGS,
    Composed,
    Dense,
    FirstOrder,
    GradientDescent,
    Implicit,
    MetagradWarning,
    Proximal,
    Unroll,
    argmin,
    attach,
    check_meta_gradient,
)


@pytest.mark.parametrize("name", SOLVERS)
def test_one_problem_without_a_task_axis(name):
    theta, data = given()
    close = 1e-3 if name == "adam" else 1e-8
    solver, adjoint = SOLVERS[name](max_steps=400, tol=1e-10), Implicit(linear_solver=CG(max_steps=20))
    found = argmin(ridge, {"w": torch.zeros(D).double()}, theta, data, solver=solver, adjoint=adjoint, batched=False)
    exact = solved(data["x"], data["y"], theta["lam"])
    inputs = [theta["lam"], data["x"], data["y"]]
    expected = torch.autograd.grad(exact.sin().sum(), inputs)
    ours = torch.autograd.grad(found.value["w"].sin().sum(), inputs)
    assert (found.value["w"] - exact).norm() <= close
    for a, b in zip(ours, expected, strict=True):
        assert a.shape == b.shape
        assert (a - b).norm() <= close * (1 + b.norm())
    numbers = [found.steps, found.grad_norm, found.delta.value]
    numbers += [getattr(found.linear, at) for at in ("steps", "residual", "min_curvature", "stopped", "size")]
    assert all(part.shape == () for part in numbers)
    assert found.linear.value["w"].shape == (D,)


@pytest.mark.parametrize("adjoint", [Implicit(), Unroll(), Unroll(truncate=5), Unroll(checkpoint=4), FirstOrder()])
@pytest.mark.parametrize("dims", [(), (1,)])
def test_one_problem_is_a_batch_of_one(adjoint, dims):
    """Also with phi and data that are single numbers."""
    theta = {"a": torch.tensor(0.3, dtype=torch.float64, requires_grad=True)}
    init, y = randn(*dims, seed=2).requires_grad_(), randn(*dims, seed=3).requires_grad_()

    def objective(phi, theta, data):
        return ((phi["w"] - data).square() * theta["a"].exp() + 0.1 * phi["w"] ** 4).sum()

    ends = []
    for single in (True, False):
        found = argmin(objective, {"w": init if single else init[None]}, theta, y if single else y[None],
                       solver=GradientDescent(lr=0.1, max_steps=8), adjoint=adjoint, batched=not single)  # fmt: skip
        w = found.value["w"] if single else found.value["w"][0]
        gradients = torch.autograd.grad(w.square().sum(), [theta["a"], y, init], materialize_grads=True)
        ends.append([w, *gradients])
    for a, b in zip(*ends, strict=True):
        assert torch.equal(a, b)


def test_what_a_linear_solve_and_a_convex_problem_say_has_no_task_axis():
    theta, data = given()
    objective = Composed(
        lambda w, theta, data: data["x"] @ w,
        lambda out, data: (out - data["y"]).square().mean() / 2,
        Proximal(lambda theta: theta["lam"].exp(), towards="zero"),
        convex=True,
    )
    adjoint = Implicit(linear_solver=CG(max_steps=4, history=True), curvature="gauss_newton")
    w = torch.zeros(D).double()
    found = argmin(objective, w, theta, data, solver=LBFGS(max_steps=30), adjoint=adjoint, batched=False)
    assert found.linear is None
    found.value.sum().backward()
    assert found.delta.certain
    assert found.delta_prime.certain
    assert found.delta.value.shape == found.delta_prime.value.shape == ()
    assert found.linear.history.shape == (5,)
    assert found.linear.value.shape == (D,)
    warm = Implicit(linear_solver=CG(max_steps=4), curvature="gauss_newton", x0=found.linear.value)
    again = argmin(objective, w, theta, data, solver=LBFGS(max_steps=30), adjoint=warm, batched=False)
    again.value.sum().backward()
    assert again.linear.steps == 0, "begun at the solution"


@pytest.mark.parametrize("off", [False, True])
def test_the_check_takes_nests_one_problem_and_runs_where_gradients_are_off(off):
    w0, (_, data) = randn(D, seed=1), given()

    def objective(phi, theta, data):
        out = data["x"] @ phi[0]["w"]
        return (out - data["y"]).square().mean() / 2 + (phi[0]["w"] - theta["start"][0]).square().sum()

    def run():
        return check_meta_gradient(objective, lambda theta: [{"w": theta["start"][0].clone()}], {"start": [w0]}, data,
                                   outer=lambda phi, theta: phi[0]["w"].sin().sum(),
                                   solver=GradientDescent(lr=0.1, max_steps=2), adjoint=Implicit(),
                                   batched=False)  # fmt: skip

    with torch.set_grad_enabled(not off):
        found = run()
    theta = w0.clone().requires_grad_()
    x, y = data["x"].detach(), data["y"].detach()
    exact = torch.linalg.solve(x.mT @ x / N + 2 * torch.eye(D).double(), x.mT @ y / N + 2 * theta)
    assert torch.allclose(found.reference, torch.autograd.grad(exact.sin().sum(), theta)[0], rtol=1e-8)
    assert found.error > 1e-3
    for part in (found.grad_norm, found.residual, found.reference_grad_norm, found.reference_residual,
                 found.reference_min_curvature):  # fmt: skip
        assert part.shape == ()


def test_attach_takes_one_problem_and_a_nest():
    theta, data = given()
    exact = solved(data["x"], data["y"], theta["lam"])
    found = attach([exact], lambda phi, theta, data: ridge({"w": phi[0]}, theta, data), theta, data,
                   adjoint=Implicit(linear_solver=CG(max_steps=20)), batched=False)  # fmt: skip
    for a, b in zip(*(torch.autograd.grad(w.sin().sum(), [theta["lam"], data["x"]]) for w in (found.value[0], exact)),
                    strict=True):  # fmt: skip
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    assert found.steps == 0
    with pytest.warns(MetagradWarning, match="attach: phi is not where"):
        attach([exact + 1], lambda phi, theta, data: ridge({"w": phi[0]}, theta, data), theta, data,
               adjoint=Implicit(), batched=False)  # fmt: skip


def test_cross_entropy_of_one_problem():
    """A loss that depends on the number of axes."""
    x, y = randn(N, D, seed=0), torch.arange(N) % 2
    theta = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)

    def objective(w, lam, data):
        return F.cross_entropy(data[0] @ w, data[1]) + lam.exp() * w.square().sum()

    w = torch.zeros(D, 2).double()
    how = {"solver": LBFGS(max_steps=60, tol=1e-11), "adjoint": Implicit(linear_solver=Dense())}
    one = argmin(objective, w, theta, (x, y), batched=False, **how).value
    both = argmin(objective, w.expand(2, D, 2), theta, (x.expand(2, N, D), y.expand(2, N)), **how).value
    a, b = (torch.autograd.grad(found.square().sum(), theta)[0] for found in (one, both[0]))
    torch.testing.assert_close(one, both[0], rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
