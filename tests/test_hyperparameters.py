"""Learned regularisation and step sizes: against finite differences of problems that are solved exactly (float64)."""

import pytest
import torch
from test_meta_gradient import drawn
from test_solvers import T, dense_newton, logistic, mlp, quadratic

from metagrad import CG, GradientDescent, Implicit, Proximal, Unroll, Woodbury, argmin, tree
from metagrad.fewshot import IMAML, MAML, Conv4, meta_gradient
from metagrad.fewshot.algorithms import hyperparameters

FORMS = ["scalar", "tensor", "parameter"]
EXACT = {
    "hessian": Implicit(linear_solver=CG(max_steps=60, tol=1e-14)),
    "unroll": Unroll(),
}


def with_lam(make, form):
    """Give a problem a learned lam that differs everywhere it can."""
    g, weights, data = make()
    theta = weights | {
        name: leaf.detach() + 0.3 * torch.linspace(-1, 1, leaf.numel(), dtype=leaf.dtype).view_as(leaf)
        for name, leaf in hyperparameters.entries("lam", 1.0, form, weights).items()
    }
    g = type(g)(g.outputs, g.loss, Proximal(hyperparameters.hyper("lam", 1.0, form)))
    return g, theta, data


@pytest.mark.parametrize("adjoint", EXACT)
@pytest.mark.parametrize(
    ("make", "lr", "steps", "form"),
    [*((quadratic, 0.15, 400, form) for form in FORMS), (logistic, 0.3, 400, "tensor"), (mlp, 0.08, 900, "parameter")],
)
def test_gradient_of_lam_is_that_of_the_exact_solution(make, lr, steps, form, adjoint):
    g, theta, data = with_lam(make, form)
    asked = {name: leaf.requires_grad_() for name, leaf in theta.items()}
    solution = argmin(g, tree.expand(hyperparameters.weights_of(asked), T), asked, data,
                      solver=GradientDescent(lr=lr, max_steps=steps), adjoint=EXACT[adjoint])  # fmt: skip
    outer = sum(leaf.square().sum() + leaf.sum() for leaf in solution.value.values())
    found = dict(zip(asked, torch.autograd.grad(outer, list(asked.values())), strict=True))

    def exactly(theta):
        weights = hyperparameters.weights_of(theta)
        fixed = type(g)(g.outputs, g.loss, lambda phi, _: g.regulariser(phi, theta))
        phi = dense_newton(fixed, weights, data)
        return phi.square().sum() + phi.sum()

    plain = tree.detach(asked)
    for name in [*[key for key in plain if key.startswith(".")][:2], next(iter(plain))]:
        direction = torch.ones_like(plain[name]) if not plain[name].dim() else torch.sign(plain[name] + 0.1)
        ends = [exactly(plain | {name: plain[name] + h * direction}) for h in (1e-5, -1e-5)]
        expected = (ends[0] - ends[1]) / 2e-5
        assert abs((found[name] * direction).sum() - expected) <= 2e-6 * max(1.0, abs(expected)), name


@pytest.mark.parametrize("form", FORMS)
def test_gauss_newton_and_woodbury_agree_with_the_hessian_where_they_are_the_same(form):
    """Outputs linear in phi and a square loss: Gauss-Newton is the Hessian."""
    g, theta, data = with_lam(quadratic, form)
    asked = {name: leaf.requires_grad_() for name, leaf in theta.items()}
    found = []
    for adjoint in (
        EXACT["hessian"],
        Implicit(linear_solver=CG(max_steps=60, tol=1e-14), curvature="gauss_newton"),
        Implicit(linear_solver=Woodbury(), curvature="gauss_newton"),
    ):
        solution = argmin(g, tree.expand(hyperparameters.weights_of(asked), T), asked, data,
                          solver=GradientDescent(lr=0.15, max_steps=600), adjoint=adjoint)  # fmt: skip
        found.append(torch.autograd.grad(solution.value["w"].square().sum(), list(asked.values())))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert (a - b).norm() <= 1e-8 * b.norm()


def test_lam_that_is_not_positive_is_refused():
    g, weights, data = quadratic()
    g = type(g)(g.outputs, g.loss, Proximal(lambda theta: theta["lam"]))
    theta = weights | {"lam": torch.tensor(-1.0).double()}
    with pytest.raises(ValueError, match="lam of 'w' must be positive, got -1"):
        argmin(g, tree.expand(weights, T), theta, data, solver=GradientDescent(lr=0.1, max_steps=1), adjoint=Unroll())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("curvature", ["hessian", "gauss_newton"])
def test_a_network_learns_lam(form, curvature):
    """A constant lam has the meta-gradient of the fixed one, and its own derivative agrees between the forms."""
    model = Conv4(3, filters=4, image_size=14, generator=torch.Generator().manual_seed(0)).double()
    solver, adjoint = GradientDescent(lr=0.1, max_steps=3), Implicit(curvature=curvature)
    grads = {}
    for kind in ("fixed", "scalar", form):
        algorithm = IMAML(learn_lam=kind, solver=solver, adjoint=adjoint)
        theta = algorithm.init(model)
        meta_gradient(algorithm, model, theta, drawn())
        grads[kind] = {name: leaf.grad for name, leaf in theta.items()}
    for name, leaf in grads["fixed"].items():
        torch.testing.assert_close(grads[form][name], leaf, rtol=1e-9, atol=1e-12)
    total = sum(leaf.sum() for name, leaf in grads[form].items() if name.startswith(".log_lam"))
    torch.testing.assert_close(total, grads["scalar"][".log_lam"], rtol=1e-9, atol=1e-12)
    assert total != 0


@pytest.mark.parametrize("form", FORMS)
def test_a_network_learns_its_step_size(form):
    model = Conv4(3, filters=4, image_size=14, generator=torch.Generator().manual_seed(0)).double()
    grads = {}
    for kind in ("fixed", form):
        algorithm = MAML(inner_steps=2, learn_lr=kind)
        theta = algorithm.init(model)
        meta_gradient(algorithm, model, theta, drawn())
        grads[kind] = {name: leaf.grad for name, leaf in theta.items()}
    for name, leaf in grads["fixed"].items():
        torch.testing.assert_close(grads[form][name], leaf, rtol=1e-9, atol=1e-12)
    # All of them together: d/dlog(lr), by finite differences of the loss at another step size.
    total = sum(leaf.sum() for name, leaf in grads[form].items() if name.startswith(".log_lr"))
    losses = []
    for h in (1e-6, -1e-6):
        algorithm = MAML(inner_steps=2, inner_lr=0.4 * float(torch.tensor(h, dtype=torch.float64).exp()))
        losses.append(meta_gradient(algorithm, model, algorithm.init(model), drawn()).loss)
    torch.testing.assert_close(total, (losses[0] - losses[1]) / 2e-6, rtol=1e-5, atol=1e-8)


def test_summary_says_mean_and_range():
    weights = {"a": torch.zeros(2), "b": torch.zeros(3)}
    theta = weights | hyperparameters.entries("lam", 2.0, "tensor", weights)
    with torch.no_grad():
        theta[".log_lam/a"] += torch.tensor(2.0).log()
    found = hyperparameters.summary(theta)
    assert found == pytest.approx({"lam": 8**0.5, "lam_min": 2.0, "lam_max": 4.0})
    assert hyperparameters.summary(weights | hyperparameters.entries("lam", 2.0, "scalar", weights)) == pytest.approx(
        {"lam": 2.0}
    )
