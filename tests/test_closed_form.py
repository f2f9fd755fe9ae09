"""The oracle: a quadratic inner problem whose meta-gradient is known exactly (float64, 1e-8 relative)."""

import pytest
import torch

from metagrad import CG, Composed, FirstOrder, GradientDescent, Implicit, Unroll, Woodbury, argmin
from metagrad.fewshot import R2D2, Batch, Conv4, Tasks, meta_gradient

T, P = 3, 6


def quadratic(seed=0):
    """L = ½ phiᵀA phi + bᵀphi per task, with A positive definite and well conditioned."""
    g = torch.Generator().manual_seed(seed)
    m = torch.randn(T, P, P, dtype=torch.float64, generator=g)
    A = m @ m.mT / P + torch.eye(P, dtype=torch.float64)
    b, theta = (torch.randn(*s, dtype=torch.float64, generator=g) for s in ((T, P), (P,)))
    target = torch.randn(T, P, dtype=torch.float64, generator=g)
    return A, b, theta, target


def objective(phi, theta, data):
    A, b = data
    d = phi["w"] - theta["w"]
    return 0.5 * phi["w"] @ A @ phi["w"] + b @ phi["w"] + 0.5 * (theta["lam"] * d) @ d


def as_composed():
    """Write g with its structure: outputs are Lᵀphi for A = LLᵀ, the loss their half square."""
    return Composed(
        outputs=lambda phi, theta, data: torch.linalg.cholesky(data[0]).mT @ phi["w"],
        loss=lambda out, data: 0.5 * out @ out + data[1] @ torch.linalg.solve(torch.linalg.cholesky(data[0]).mT, out),
        regulariser=lambda phi, theta: 0.5 * (theta["lam"] * (phi["w"] - theta["w"])) @ (phi["w"] - theta["w"]),
    )


def exact(A, b, theta, lam, target):
    """Differentiate the dense solution (A+Λ)⁻¹(Λ theta − b) by autograd."""
    Lam = torch.diag(lam.expand(P))
    phi = torch.linalg.solve(A + Lam, (Lam @ theta).expand(T, P) - b)
    return phi, ((phi - target) ** 2).sum() / 2


@pytest.mark.parametrize("lam_value", [torch.tensor(2.0), torch.linspace(0.5, 3.0, P)], ids=["scalar", "diagonal"])
@pytest.mark.parametrize("route", ["hessian", "gauss_newton", "woodbury", "unroll"])
def test_meta_gradient_is_exact(lam_value, route):
    A, b, theta, target = quadratic()
    theta, lam = theta.requires_grad_(), lam_value.double().requires_grad_()
    phi_star, loss = exact(A, b, theta, lam, target)
    expected = torch.autograd.grad(loss, (theta, lam))
    solver = Woodbury() if route == "woodbury" else CG(max_steps=50, tol=1e-14)
    curvature = "gauss_newton" if route in ("gauss_newton", "woodbury") else "hessian"
    adjoint = Unroll() if route == "unroll" else Implicit(linear_solver=solver, curvature=curvature)
    g = as_composed() if curvature == "gauss_newton" else objective
    solution = argmin(g, {"w": theta.expand(T, P)}, {"w": theta, "lam": lam}, (A, b),
                      solver=GradientDescent(lr=0.15, max_steps=400), adjoint=adjoint)  # fmt: skip
    torch.testing.assert_close(solution.value["w"], phi_star, rtol=1e-8, atol=1e-10)
    found = torch.autograd.grad(((solution.value["w"] - target) ** 2).sum() / 2, (theta, lam))
    for a, e in zip(found, expected, strict=True):
        assert (a - e).norm() <= 1e-8 * e.norm()
    assert solution.grad_norm.max() < 1e-10
    if route != "unroll":
        assert solution.linear.residual.max() < 1e-12
        assert (solution.linear.steps <= P + 2).all()


@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_gradient_reaches_data(curvature):
    A, b, theta, target = quadratic(1)
    b.requires_grad_()
    lam = torch.tensor(2.0, dtype=torch.float64)
    (expected,) = torch.autograd.grad(exact(A, b, theta, lam, target)[1], b)
    g = as_composed() if curvature == "gauss_newton" else objective
    solution = argmin(g, {"w": theta.expand(T, P)}, {"w": theta, "lam": lam}, (A, b),
                      solver=GradientDescent(lr=0.15, max_steps=400),
                      adjoint=Implicit(linear_solver=CG(max_steps=50, tol=1e-14), curvature=curvature))  # fmt: skip
    (found,) = torch.autograd.grad(((solution.value["w"] - target) ** 2).sum() / 2, b)
    assert (found - expected).norm() <= 1e-8 * expected.norm()


def test_unrolled_obeys_its_recursion_and_meets_implicit():
    """J₀ = I, J_{k+1} = (I − α(A+λI)) J_k + αλI → λ(A+λI)⁻¹."""
    A, b, theta, target = quadratic(2)
    theta.requires_grad_()
    lam, lr, eye = torch.tensor(1.5, dtype=torch.float64), 0.1, torch.eye(P, dtype=torch.float64)
    for steps in (1, 7):
        solution = argmin(objective, {"w": theta.expand(T, P)}, {"w": theta, "lam": lam}, (A, b),
                          solver=GradientDescent(lr=lr, max_steps=steps), adjoint=Unroll())  # fmt: skip
        J = eye.expand(T, P, P)
        for _ in range(steps):
            J = (eye - lr * (A + lam * eye)) @ J + lr * lam * eye
        v = solution.value["w"].detach() - target
        (found,) = torch.autograd.grad(((solution.value["w"] - target) ** 2).sum() / 2, theta)
        expected = (J.mT @ v[..., None]).sum(0)[:, 0]
        assert (found - expected).norm() <= 1e-12 * expected.norm()


def test_first_order_is_the_plain_gradient():
    A, b, theta, target = quadratic(3)
    theta.requires_grad_()
    solution = argmin(objective, {"w": theta.expand(T, P)}, {"w": theta, "lam": torch.tensor(1.0).double()}, (A, b),
                      solver=GradientDescent(lr=0.1, max_steps=3), adjoint=FirstOrder())  # fmt: skip
    (found,) = torch.autograd.grad(((solution.value["w"] - target) ** 2).sum() / 2, theta)
    torch.testing.assert_close(found, (solution.value["w"].detach() - target).sum(0), rtol=1e-12, atol=1e-12)


def test_ridge_regression_is_differentiated_to_the_digits_of_its_dtype():
    generator = torch.Generator().manual_seed(0)
    model = Conv4(5, filters=8, generator=generator).double()
    y = torch.arange(5).repeat_interleave(2)
    support, query = (Batch(torch.rand(1, 10, 1, 28, 28, generator=generator).double(), y[None]) for _ in range(2))
    theta = R2D2().init(model)
    meta_gradient(R2D2(), model, theta, Tasks(support, query))
    weights = {name: leaf.detach().clone().requires_grad_() for name, leaf in theta.items() if name.startswith("body.")}
    names = {name.removeprefix("body."): leaf for name, leaf in weights.items()}
    a, b = (torch.func.functional_call(model.body, names, (batch.x[0],)) for batch in (support, query))
    hot = torch.nn.functional.one_hot(y, 5).double()
    scores = 5 * b @ (a.T @ torch.linalg.solve(a @ a.T + 50 * torch.eye(10).double(), hot))
    exact = torch.autograd.grad(torch.nn.functional.cross_entropy(scores, y), list(weights.values()))
    found, wanted = (torch.cat([part.flatten() for part in some]) for some in ((theta[k].grad for k in weights), exact))
    assert (found - wanted).norm() <= 1e-9 * wanted.norm()
