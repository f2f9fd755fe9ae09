"""How memory-reduced meta-learning converges (Yang, Ma and Yu 2025), on quadratics whose solution is known.

Task i: ``g = ½ phiᵀH phi − phiᵀ(M theta + c)``, ``f = ½ ‖phi − y‖²``, and ``½ μ ‖theta‖²`` in the meta-loss. All tasks
together have one theta at which the meta-gradient vanishes, by a linear system.

Deterministic form: all tasks at every step, a few inner steps and products. Where both solves begin where they ended,
the error goes to zero; where they begin anew, it stays where their own errors leave it. Stochastic form: a batch of
tasks is drawn; with a step of fixed length the squared error comes down to a floor in proportion to 1 / batch, with
steps that shrink as 1 / iteration it goes on falling as 1 / iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad.implicit import CG, GradientDescent, Implicit, argmin
from metagrad.recipes.least_squares import power_law
from metagrad.recipes.protocols import ConvergenceProtocol
from metagrad.tree import Params

WARM, COLD, SHRINKING, FIXED = "all tasks, warm start", "all tasks, cold start", "sampled, shrinking steps", "sampled"


@dataclass(frozen=True)
class ConvergenceRow:
    """One point of the curve of one of the four forms."""

    form: str
    iteration: int
    """Meta-steps taken."""
    batch: int
    """Tasks of each meta-step."""
    error: float
    """``‖theta − theta*‖² / ‖theta*‖²``, mean over repetitions; of ``"sampled"`` over the last half too."""


@dataclass(frozen=True)
class Quadratics:
    """Tasks and their common solution; matrices ``(N, p, p)``, ``(N, p, q)``, vectors ``(N, p)``."""

    H: Tensor
    M: Tensor
    c: Tensor
    y: Tensor
    mu: float

    @classmethod
    def drawn(cls, tasks: int, protocol: ConvergenceProtocol) -> Quadratics:
        """Draw them, with eigenvalues of H from 1 to ``protocol.kappa``."""
        g = torch.Generator().manual_seed(protocol.seed)
        p, q = protocol.dims, protocol.shared

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=g, dtype=torch.float64)

        turned = torch.linalg.qr(normal(tasks, p, p)).Q
        values = torch.logspace(0, torch.tensor(protocol.kappa).log10().item(), p, dtype=torch.float64)
        M = normal(1, p, q) + 0.5 * normal(tasks, p, q)
        return cls(turned * values @ turned.mT, M, normal(tasks, p), normal(1, p) + normal(tasks, p), 0.1)

    def solution(self) -> Tensor:
        """Return theta*."""
        to_phi = torch.linalg.solve(self.H, self.M)
        rest = torch.linalg.solve(self.H, self.c[..., None])[..., 0]
        eye = torch.eye(self.M.shape[2], dtype=torch.float64)
        left = (to_phi.mT @ to_phi).mean(0) + self.mu * eye
        return torch.linalg.solve(left, (to_phi.mT @ (self.y - rest)[..., None])[..., 0].mean(0))

    def gradient(
        self, theta: Tensor, chosen: Tensor, adjoint: Implicit, solver: GradientDescent, init: Params
    ) -> tuple[Tensor, Params, Params]:
        """Return the meta-gradient of some tasks, where their inner solves ended, and where their linear ones did."""
        leaf = theta.detach().requires_grad_()
        data = tuple(part[chosen] for part in (self.H, self.M, self.c))
        solution = argmin(_inner, init, {"theta": leaf}, data, solver=solver, adjoint=adjoint)
        off = solution.value["phi"] - self.y[chosen]
        loss = off.square().sum(1).mean() / 2 + self.mu / 2 * leaf.square().sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert solution.linear is not None
        return gradient, {"phi": solution.value["phi"].detach()}, solution.linear.value


def _inner(phi: Params, theta: Params, data: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    H, M, c = data
    return phi["phi"] @ H @ phi["phi"] / 2 - phi["phi"] @ (M @ theta["theta"] + c)


def measure(protocol: ConvergenceProtocol, progress: Callable[[float, float], None]) -> list[ConvergenceRow]:
    """Run all four forms."""
    rows: list[ConvergenceRow] = []
    total = 3 + len(protocol.batches)
    few = Quadratics.drawn(protocol.few, protocol)
    for number, form in enumerate((WARM, COLD)):
        errors = _all_tasks(few, protocol, warm=form == WARM)
        rows += [ConvergenceRow(form, at, protocol.few, errors[at - 1]) for at in _shown(len(errors))]
        progress(number + 1, total)
    many = Quadratics.drawn(protocol.many, protocol)
    errors = _sampled(many, protocol, protocol.batches[0], shrinking=True)
    rows += [ConvergenceRow(SHRINKING, at, protocol.batches[0], errors[at - 1]) for at in _shown(len(errors))]
    for number, batch in enumerate(protocol.batches):
        progress(3 + number, total)
        errors = _sampled(many, protocol, batch, shrinking=False)
        rows.append(ConvergenceRow(FIXED, len(errors), batch, sum(errors[len(errors) // 2 :]) / (len(errors) // 2)))
    progress(total, total)
    return rows


def _shown(steps: int) -> list[int]:
    return sorted({*range(1, 10), *(round(10 ** (k / 8)) for k in range(8, 40)), steps} & set(range(1, steps + 1)))


def _all_tasks(tasks: Quadratics, protocol: ConvergenceProtocol, *, warm: bool) -> list[float]:
    """Return the squared error after each meta-step."""
    goal = tasks.solution()
    theta, everyone = torch.zeros_like(goal), torch.arange(len(tasks.c))
    cold = {"phi": torch.zeros_like(tasks.c)}
    phi, u = cold, None
    solver = GradientDescent(lr=1 / protocol.kappa, max_steps=protocol.inner_steps)
    errors = []
    for _ in range(protocol.iterations):
        adjoint = Implicit(linear_solver=CG(max_steps=protocol.products, tol=0.0), x0=u)
        gradient, phi, u = tasks.gradient(theta, everyone, adjoint, solver, phi)
        if not warm:
            phi, u = cold, None
        theta = theta - protocol.step * gradient
        errors.append(float((theta - goal).square().sum() / goal.square().sum()))
    return errors


def _sampled(tasks: Quadratics, protocol: ConvergenceProtocol, batch: int, *, shrinking: bool) -> list[float]:
    """Return the squared error after each meta-step, the mean over repetitions; both solves are exact."""
    goal = tasks.solution()
    errors = torch.zeros(protocol.iterations, dtype=torch.float64)
    to_phi = torch.linalg.solve(tasks.H, tasks.M)
    rest = torch.linalg.solve(tasks.H, tasks.c[..., None])[..., 0] - tasks.y
    g = torch.Generator().manual_seed(protocol.seed + 1)
    theta = torch.zeros(protocol.repeats, len(goal), dtype=torch.float64)
    for step in range(protocol.iterations):
        chosen = torch.randint(len(tasks.c), (protocol.repeats, batch), generator=g)
        off = torch.einsum("rbpq,rq->rbp", to_phi[chosen], theta) + rest[chosen]
        gradient = torch.einsum("rbpq,rbp->rq", to_phi[chosen], off) / batch + tasks.mu * theta
        lr = protocol.step / (1 + step / protocol.shrink) if shrinking else protocol.step / 4
        theta = theta - lr * gradient
        errors[step] = (theta - goal).square().sum(1).mean() / goal.square().sum()
    return errors.tolist()


@dataclass(frozen=True)
class Rates:
    """Exponents by least squares: of the squared error in the iteration (shrinking steps) and in the batch."""

    iteration: float
    batch: float


def rates(rows: list[ConvergenceRow]) -> Rates:
    """Fit both, the first over the last nine tenths of the decades."""
    late = [row for row in rows if row.form == SHRINKING]
    late = [row for row in late if row.iteration >= late[-1].iteration / 10]
    batches = [row for row in rows if row.form == FIXED]
    return Rates(
        power_law([row.iteration for row in late], [row.error for row in late]).value,
        power_law([row.batch for row in batches], [row.error for row in batches]).value,
    )
