"""Regressions linear in their parameters: inner problems whose exact meta-gradient is known.

For a task with n support examples (X, y), m query examples (X', y') and d weights phi::

    g(phi, theta) = 1/(2n) ‖X phi − y‖² + (lam/2) ‖phi − theta‖²        f(phi) = 1/(2m) ‖X' phi − y'‖²
    A = XᵀX/n + lam I,   phi* = A⁻¹ (Xᵀy/n + lam theta),   dF/dtheta = lam A⁻¹ X'ᵀ(X' phi* − y')/m

(section 4.1 of Rajeswaran et al. 2019; here with lam = 1, the unit in which curvatures are given). Every task has its
own theta, which ``argmin`` takes as data: so one backward gives each task's own meta-gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metagrad.implicit import Adjoint, Composed, FirstOrder, InnerSolver, Problem, argmin
from metagrad.tree import Params

QUERIES = 25
NOISE = 0.1
_LAM = 1.0


@dataclass(frozen=True, eq=False)
class Regression:
    """T tasks, their solutions and their exact meta-gradients."""

    objective: Composed
    """Inner objective g of one task; a function of ``phi["w"]``, (d,), and ``data``."""
    data: Callable[[Tensor], Any]
    """Function of theta, (T, d), to what ``argmin`` takes as data."""
    theta: Tensor
    """(T, d), where the proximal term pulls each task's phi, and where the search for phi begins."""
    query_features: Tensor
    """(T, m, d)."""
    query_labels: Tensor
    """(T, m)."""
    solution: Tensor
    """phi*, (T, d)."""
    exact: Tensor
    """dF/dtheta, (T, d)."""

    def query_loss(self, phi: Tensor) -> Tensor:
        """Return f, summed over tasks."""
        return (_product(self.query_features, phi) - self.query_labels).square().mean(1).sum() / 2


def few(kappa: float, dims: int) -> Tensor:
    """Return the ``dims`` eigenvalues of A with few distinct ones: four, from ``√kappa`` to ``kappa``, and lam = 1."""
    four = [kappa ** (power / 6) for power in (3, 4, 5, 6)]
    return torch.tensor([1.0] * (dims - 4) + four, dtype=torch.float64)


def spread(kappa: float, dims: int) -> Tensor:
    """Return the ``dims`` eigenvalues of A, log-uniform from lam = 1 to ``kappa``."""
    return torch.logspace(0, math.log10(kappa), dims, dtype=torch.float64)


def dense(eigenvalues: Tensor, tasks: int, generator: torch.Generator) -> Regression:
    """Draw tasks whose support features have random singular vectors; as many examples as A has eigenvalues above 1.

    Parameters
    ----------
    eigenvalues:
        (d,), those of A, at least lam = 1.
    tasks:
        T.
    generator:
        source of all randomness.
    """
    dims = len(eigenvalues)
    curvature = eigenvalues[eigenvalues > _LAM] - _LAM
    examples = len(curvature)
    right = torch.linalg.qr(_normal(generator, tasks, dims, dims))[0][:, :, :examples]
    left = torch.linalg.qr(_normal(generator, tasks, examples, examples))[0]
    x = left * (examples * curvature).sqrt() @ right.mT
    truth, theta = _normal(generator, tasks, dims), _normal(generator, tasks, dims)
    y = _product(x, truth) + NOISE * _normal(generator, tasks, examples)

    pull = math.sqrt(_LAM) * torch.eye(dims, dtype=x.dtype).expand(tasks, dims, dims)
    features = torch.cat([x / math.sqrt(examples), pull], 1)

    def data(theta: Tensor) -> tuple[Tensor, Tensor]:
        return features, torch.cat([y / math.sqrt(examples), math.sqrt(_LAM) * theta], 1)

    A = x.mT @ x / examples + _LAM * torch.eye(dims, dtype=x.dtype)

    def divide(b: Tensor) -> Tensor:
        return torch.linalg.solve(A, b[..., None])[..., 0]

    solution = divide(_product(x.mT, y) / examples + _LAM * theta)
    query = _query(truth, generator)
    exact = _LAM * divide(_query_gradient(solution, *query))
    return Regression(_least_squares(_product), data, theta, *query, solution, exact)


def diagonal(eigenvalues: Tensor, tasks: int, generator: torch.Generator) -> Regression:
    """Draw tasks in the coordinates where A is diagonal: thousands of dimensions at the price of a vector.

    Gradient descent, Nesterov's method and conjugate gradients do not depend on the coordinates, so nothing is lost.
    Arguments as for :func:`dense`.
    """
    dims = len(eigenvalues)
    curvature = eigenvalues - _LAM
    truth, theta = _normal(generator, tasks, dims), _normal(generator, tasks, dims)
    pull = curvature * truth + curvature.sqrt() * NOISE * _normal(generator, tasks, dims)  # Xᵀy/n
    A = eigenvalues.expand(tasks, dims)

    def data(theta: Tensor) -> tuple[Tensor, Tensor]:
        return A.sqrt(), (pull + _LAM * theta) / A.sqrt()

    solution = (pull + _LAM * theta) / A
    query = _query(truth, generator)
    exact = _LAM * _query_gradient(solution, *query) / A
    return Regression(_least_squares(torch.mul), data, theta, *query, solution, exact)


def _least_squares(product: Callable[[Tensor, Tensor], Tensor]) -> Composed:
    """Return g as half a squared error, its prox term counted as d more examples, up to a constant.

    It is written for one task and for T at once: ``vmap`` would take most of the time of a step so small.
    """

    def outputs(phi: Params, theta: Params, data: Any) -> Tensor:
        return product(data[0], phi["w"])

    def loss(outputs: Tensor, data: Any) -> Tensor:
        return (outputs - data[1]).square().sum(-1) / 2

    return Composed(outputs, loss, outputs_of_tasks=outputs, loss_of_tasks=loss)


def solve(regression: Regression, solver: InnerSolver, start: Tensor | None = None) -> Tensor:
    """Return the phi, (T, d), that ``solver`` reaches from ``start`` (theta, where not given)."""
    theta = regression.theta
    init = {"w": theta if start is None else start}
    with torch.no_grad():
        solution = argmin(regression.objective, init, {}, regression.data(theta), solver=solver, adjoint=FirstOrder())
    return solution.value["w"]


def meta_gradient(regression: Regression, solver: InnerSolver, adjoint: Adjoint, start: Tensor | None = None) -> Tensor:
    """Return the derivative of each task's query loss in its theta, (T, d), as ``argmin`` gives it."""
    theta = regression.theta.clone().requires_grad_()
    init = {"w": theta if start is None else start}
    solution = argmin(regression.objective, init, {}, regression.data(theta), solver=solver, adjoint=adjoint)
    (gradient,) = torch.autograd.grad(regression.query_loss(solution.value["w"]), theta)
    return gradient


def as_found(problem: Problem, init: Params) -> Params:
    """Inner solver for a phi that another has found: the start is the solution, only differentiating it is left."""
    del problem
    return init


def relative_error(gradient: Tensor, exact: Tensor) -> Tensor:
    """Return ‖gradient − exact‖ / ‖exact‖ per task, (T,)."""
    return (gradient - exact).norm(dim=1) / exact.norm(dim=1)


def _query(truth: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw the query set of each task whose weights are ``truth``: features (T, m, d), labels (T, m)."""
    x = _normal(generator, len(truth), QUERIES, truth.shape[1])
    return x, _product(x, truth) + NOISE * _normal(generator, len(truth), QUERIES)


def _query_gradient(phi: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return _product(x.mT, _product(x, phi) - y) / y.shape[1]


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)
