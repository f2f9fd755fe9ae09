"""Where inner solvers end, beside scipy's, jaxopt's and optimistix' minimisers; each task of a batch by itself.

The problems are smooth and strictly convex, so there is one answer: each of the others is asked for it in its own way.
"""

import numpy as np
import pytest
import torch
from referees import distance, jax_in_double, referee
from scipy import optimize

from metagrad import LBFGS, Adam, FirstOrder, GradientDescent, HessianFree, Nesterov, argmin

pytestmark = pytest.mark.slow

TASKS, EXAMPLES, SIZE = 4, 30, 6

MINIMISERS = {
    "descent": lambda: GradientDescent(lr=0.06, max_steps=9000, tol=1e-11),
    "descent with momentum": lambda: GradientDescent(lr=0.05, max_steps=3000, tol=1e-11, momentum=0.9),
    "descent with a line search": lambda: GradientDescent(lr=1.0, max_steps=6000, tol=1e-9, line_search=True),
    "nesterov": lambda: Nesterov(lr=0.05, max_steps=4000, tol=1e-11),
    "l-bfgs": lambda: LBFGS(max_steps=300, tol=1e-11),
    "newton": lambda: HessianFree(max_steps=60, tol=1e-11, cg_steps=SIZE, curvature="hessian"),
    "adam": lambda: Adam(lr=0.02, max_steps=6000, tol=1e-9),
}


def drawn():
    """Return tasks whose features differ in scale by ten, with labels −1 and 1."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(TASKS, EXAMPLES, SIZE)) * np.geomspace(0.3, 3.0, SIZE)
    return x, np.sign(x @ rng.normal(size=SIZE) + 2 * rng.normal(size=(TASKS, EXAMPLES)))


def smooth(w, x, y, xp):
    """Return a logistic loss with a small ridge."""
    margins = y * (x @ w)
    return xp.logaddexp(xp.zeros_like(margins), -margins).mean() + 0.02 * xp.square(w).sum()


def robust(w, x, y, xp):
    """Return the pseudo-Huber loss of a regression."""
    return (xp.sqrt(1 + xp.square(x @ w - y)) - 1).mean() + 0.02 * xp.square(w).sum()


OBJECTIVES = {"logistic": smooth, "robust": robust}


def by_scipy(loss, xs, ys):
    """Return the minimisers by Newton's method within a trust region."""
    return np.stack(
        [one_by_scipy(loss, *task) for task in zip(torch.from_numpy(xs), torch.from_numpy(ys), strict=True)]
    )


def one_by_scipy(loss, x, y):
    def value(w):
        return loss(w, x, y, torch)

    def called(function):
        return lambda w: function(torch.from_numpy(w)).numpy()

    slope, matrix = torch.func.grad(value), torch.func.hessian(value)
    options = {"jac": called(slope), "hess": called(matrix), "method": "trust-exact", "options": {"gtol": 1e-13}}
    return optimize.minimize(called(value), np.zeros(SIZE), **options).x


def by_jaxopt(loss, xs, ys):
    jaxopt, jnp = referee("jaxopt"), jax_in_double().numpy
    solver = jaxopt.BFGS(lambda w, x, y: loss(w, x, y, jnp), maxiter=300, tol=1e-12)
    return np.stack([solver.run(jnp.zeros(SIZE), x, y).params for x, y in zip(xs, ys, strict=True)])


def by_optimistix(loss, xs, ys):
    optimistix, jax = referee("optimistix"), jax_in_double()
    solver, slope = optimistix.Newton(rtol=1e-13, atol=1e-13), jax.grad(lambda w, of: loss(w, *of, jax.numpy))

    @jax.vmap
    def solve(x, y):
        start = jax.numpy.zeros(SIZE)
        return optimistix.root_find(slope, solver, start, (x, y), max_steps=50, throw=False).value

    return np.array(solve(xs, ys))


@pytest.mark.parametrize("other", [by_scipy, by_jaxopt, by_optimistix])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_all_end_at_the_same_place(name, other):
    loss, (x, y) = OBJECTIVES[name], drawn()
    expected = other(loss, x, y)
    data = torch.from_numpy(x), torch.from_numpy(y)
    init = {"w": torch.zeros(TASKS, SIZE, dtype=torch.float64)}
    for label, make in MINIMISERS.items():
        solver = make()
        solution = argmin(
            lambda phi, theta, data: loss(phi["w"], *data, torch), init, {}, data, solver=solver, adjoint=FirstOrder()
        )
        assert solution.grad_norm.max() <= solver.tol, label
        # The smallest curvature is at least 0.04: a gradient of norm tol is within tol / 0.04 of the solution.
        assert distance(solution.value, [expected]) < 25 * solver.tol + 1e-11, label
