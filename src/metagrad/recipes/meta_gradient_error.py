"""Figure 2a of Rajeswaran et al. 2019: error of the meta-gradient against inner steps, for iMAML and for MAML.

The inner solver leaves phi short of phi*, conjugate gradients leave a residual: whichever is larger bounds the error.
MAML unrolls the same regularised objective, so that both have the same limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad.implicit import CG, GradientDescent, Implicit, InnerSolver, Nesterov, Unroll
from metagrad.recipes.protocols import ErrorProtocol
from metagrad.recipes.regression import Regression, as_found, dense, few, meta_gradient, relative_error, solve, spread

CG_STEPS = (2, 5, 20)
# The residual at which the linear system counts as solved: near what rounding allows at a condition number of 1000.
_SOLVED = 1e-12
_POINTS_A_DECADE = 6

Report = Callable[[float, float], None]


@dataclass(frozen=True, kw_only=True)
class ErrorRow:
    """One point of a curve; errors are ‖g − g*‖ / ‖g*‖."""

    spectrum: str
    """``"few"`` or ``"spread"`` eigenvalues."""
    solver: str
    """Solver of the inner problem."""
    method: str
    """``"iMAML"`` or ``"MAML"``."""
    cg: str
    """Most CG steps, ``"solved"`` for as many as it takes, empty for MAML."""
    inner_steps: int
    """Gradient steps from theta."""
    error: float
    """Median over tasks."""
    lowest: float
    """Smallest over tasks."""
    highest: float
    """Largest over tasks."""


def grid(most: int) -> list[int]:
    """Return numbers of steps from 1 to ``most``, evenly on a logarithmic axis as far as whole numbers allow."""
    powers = range(_POINTS_A_DECADE * len(str(most)))
    return sorted({step for power in powers if (step := round(10 ** (power / _POINTS_A_DECADE))) < most} | {most})


def measure(protocol: ErrorProtocol, report: Report | None = None) -> list[ErrorRow]:
    """Measure all curves; ``report`` is called with the work done and the work in all, in inner steps."""
    steps = grid(protocol.inner_steps)
    spectra = (("few", few), ("spread", spread))
    solvers = _solvers(protocol.kappa)
    done, total = 0, sum(steps) * len(spectra) * len(solvers)
    rows = []
    for spectrum, eigenvalues in spectra:
        generator = torch.Generator().manual_seed(protocol.seed)
        regression = dense(eigenvalues(protocol.kappa, protocol.dims), protocol.tasks, generator)
        for name, solver in solvers:
            for count in steps:
                for method, cg, found in _gradients(regression, solver(count)):
                    error = relative_error(found, regression.exact)
                    rows.append(ErrorRow(
                        spectrum=spectrum, solver=name, method=method, cg=cg, inner_steps=count,
                        error=error.median().item(), lowest=error.min().item(), highest=error.max().item(),
                    ))  # fmt: skip
                done += count
                if report is not None:
                    report(done, total)
    return rows


def _solvers(kappa: float) -> Sequence[tuple[str, Callable[[int], InnerSolver]]]:
    """Both take steps of 1/L; Nesterov's momentum is the one for the known smallest curvature, lam = 1."""
    return (
        ("gradient descent", lambda steps: GradientDescent(lr=1 / kappa, max_steps=steps)),
        ("Nesterov", lambda steps: Nesterov(lr=1 / kappa, max_steps=steps, convexity=1.0)),
    )


def _gradients(regression: Regression, solver: InnerSolver) -> Iterator[tuple[str, str, Tensor]]:
    """Yield (method, CG steps, meta-gradient): the inner problem solved once for all of iMAML's, once unrolled."""
    phi = solve(regression, solver)
    linear_solvers = {str(steps): CG(max_steps=steps) for steps in CG_STEPS}
    linear_solvers["solved"] = CG(max_steps=10 * phi.shape[1], tol=_SOLVED)
    for cg, linear_solver in linear_solvers.items():
        yield "iMAML", cg, meta_gradient(regression, as_found, Implicit(linear_solver=linear_solver), phi)
    yield "MAML", "", meta_gradient(regression, solver, Unroll())
