"""Gradients of hyper-parameters through ridge and logistic regressions, beside jaxopt and optimistix.

jaxopt differentiates a root of the inner gradient by conjugate gradients of its own, optimistix by lineax's factorised
Hessian; both solve the inner problem by themselves first.
"""

import numpy as np
import pytest
import torch
from referees import distance, jax_in_double, referee

from metagrad import CG, LBFGS, Dense, HessianFree, Implicit, argmin

pytestmark = pytest.mark.slow

TASKS, EXAMPLES, SIZE = 3, 20, 5
SOLVERS = {
    "l-bfgs": LBFGS(max_steps=200, tol=1e-12),
    "newton": HessianFree(max_steps=30, tol=1e-12, cg_steps=20, curvature="hessian"),
}
ADJOINTS = {"dense": Implicit(linear_solver=Dense()), "cg": Implicit(linear_solver=CG(max_steps=40, tol=1e-15))}


def ridge_loss(w, x, y, weight, xp):
    return (weight * xp.square(x @ w - y)).mean()


def logistic_loss(w, x, y, weight, xp):
    """Return the mean of ``log(1 + exp(−y x·w))``, y the sign of a label."""
    margins = xp.where(y > 0, 1.0, -1.0) * (x @ w)
    zero = xp.zeros_like(margins)
    return (weight * xp.logaddexp(zero, -margins)).mean()


LOSSES = {"ridge": ridge_loss, "logistic": logistic_loss}


def drawn():
    """Return pictures, targets, a weight for each example and the logarithm of a strength for each feature."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(TASKS, EXAMPLES, SIZE)), rng.normal(size=(TASKS, EXAMPLES))
    return x, y, rng.uniform(0.5, 1.5, (TASKS, EXAMPLES)), rng.normal(size=SIZE) - 2.0


def judged(w, x, y, xp):
    return xp.sin(x @ w).sum() + xp.square(w - 0.3).sum() * y.mean()


def by_metagrad(loss, solver, adjoint):
    x, y, weight, strengths = (torch.from_numpy(part) for part in drawn())
    theta = {"strengths": strengths.requires_grad_()}
    y.requires_grad_()
    weight.requires_grad_()

    def objective(phi, theta, data):
        x, y, weight = data
        return loss(phi["w"], x, y, weight, torch) + (theta["strengths"].exp() * phi["w"].square()).sum()

    init = {"w": torch.zeros(TASKS, SIZE, dtype=torch.float64)}
    solution = argmin(objective, init, theta, (x, y, weight), solver=solver, adjoint=adjoint)
    assert solution.grad_norm.max() <= 1e-12
    fixed = y.detach()
    value = sum(judged(w, *of, torch) for w, *of in zip(solution.value["w"], x, fixed, strict=True))
    of = [theta["strengths"], weight] + [y] * (loss is ridge_loss)
    return list(torch.autograd.grad(value, of))


def by_jax(loss, solve):
    """Return the same gradients; ``solve`` has ``(objective, init, hyper-parameters) -> w``, differentiable."""
    jax = jax_in_double()
    jnp = jax.numpy
    x, y, weight, strengths = (jnp.asarray(part) for part in drawn())

    def objective(w, of):
        strengths, x, y, weight = of
        return loss(w, x, y, weight, jnp) + (jnp.exp(strengths) * jnp.square(w)).sum()

    def total(strengths, weight, y):
        found = [solve(objective, jnp.zeros(SIZE), (strengths, x[t], y[t], weight[t])) for t in range(TASKS)]
        return sum(judged(w, x[t], jax.lax.stop_gradient(y[t]), jnp) for t, w in enumerate(found))

    slope = jax.jit(jax.grad(total, argnums=(0, 1, 2) if loss is ridge_loss else (0, 1)))
    return [np.array(part) for part in slope(strengths, weight, y)]


def by_jaxopt(objective, init, of):
    jaxopt = referee("jaxopt")

    def solve_cg(product, b):
        return jaxopt.linear_solve.solve_cg(product, b, tol=1e-15, maxiter=100)

    solver = jaxopt.LBFGS(objective, maxiter=500, tol=1e-13, implicit_diff=True, implicit_diff_solve=solve_cg)
    return solver.run(init, of).params


def by_optimistix(objective, init, of):
    optimistix, lineax = referee("optimistix"), referee("lineax")
    solver = optimistix.Newton(rtol=1e-14, atol=1e-14, linear_solver=lineax.LU())
    adjoint = optimistix.ImplicitAdjoint(linear_solver=lineax.LU())
    slope = jax_in_double().grad(objective)
    return optimistix.root_find(slope, solver, init, of, adjoint=adjoint, max_steps=100, throw=False).value


REFEREES = {"jaxopt": by_jaxopt, "optimistix": by_optimistix}


@pytest.mark.parametrize("referee", REFEREES)
@pytest.mark.parametrize("loss", LOSSES)
def test_strengths_weights_of_examples_and_targets(loss, referee):
    expected = by_jax(LOSSES[loss], REFEREES[referee])
    for solver in SOLVERS.values():
        for adjoint in ADJOINTS.values():
            for found, right in zip(by_metagrad(LOSSES[loss], solver, adjoint), expected, strict=True):
                assert distance([found], [right]) < 1e-11
