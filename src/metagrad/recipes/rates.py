"""What an accurate meta-gradient costs as the condition number κ grows (table 1 of Rajeswaran et al. 2019).

Counted are gradient evaluations: inner gradients and products with the curvature, each as one. Unrolling takes one
product a step on its way back. Left out is what every method needs once: the query gradient, and for the implicit one
the graph at phi and the mixed derivative.

For iMAML: the fewest CG steps that bring the error to half the target at the exact solution, then the fewest inner
steps that with them bring it to the target. For MAML: the fewest unrolled steps. All are found by trying the solvers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad.implicit import CG, GradientDescent, Implicit, InnerSolver, Nesterov, Unroll
from metagrad.recipes.least_squares import Fit, power_law
from metagrad.recipes.protocols import RateProtocol
from metagrad.recipes.regression import Regression, as_found, diagonal, meta_gradient, relative_error, solve, spread

_CHUNK = 1000

Report = Callable[[float, float], None]
Work = Callable[[float], None]


@dataclass(frozen=True, kw_only=True)
class RateRow:
    """What one method needs at one condition number."""

    kappa: float
    """Condition number."""
    method: str
    """``"iMAML"`` (its linear system by CG) or ``"MAML"``."""
    solver: str
    """Inner solver."""
    inner_steps: int
    """Inner gradients."""
    products: int
    """Products with the curvature."""
    evaluations: int
    """Sum of both."""
    held: int
    """Inner iterates that the backward pass needs: all of MAML's, the last of iMAML's."""
    error: float
    """‖g − g*‖ / ‖g*‖ reached, the largest over tasks."""


def fits(rows: Sequence[RateRow]) -> dict[tuple[str, str], Fit]:
    """Return the exponent of the gradient evaluations in κ by (method, solver), where there are points enough."""
    curves: dict[tuple[str, str], list[RateRow]] = {}
    for row in rows:
        curves.setdefault((row.method, row.solver), []).append(row)
    return {
        curve: power_law([row.kappa for row in found], [row.evaluations for row in found])
        for curve, found in curves.items()
        if len(found) >= 3
    }


def least(error: Callable[[int], float], target: float, *, start: int) -> tuple[int, float]:
    """Return n with ``error(n) <= target < error(n − 1)``, and ``error(n)``, for an error that falls with n.

    Where the error ripples on its way down there are several such n: it is one of them.
    Goes up from ``start`` by where the logarithm points to, then narrows likewise, and by halves where that stalls.
    """
    low, high, low_error, stride = 0, max(start, 1), math.inf, max(start // 64, 1)
    while (high_error := error(high)) > target:
        if low_error < math.inf and high_error < low_error:
            needed = (high - low) * math.log(high_error / target) / math.log(low_error / high_error)
            stride = min(max(math.ceil(needed), 1), high)
        else:
            stride *= 2
        low, low_error, high = high, high_error, high + stride
    halve = False
    while (width := high - low) > 1:
        share = 0.5
        if not halve and low_error < math.inf and high_error > 0:
            share = math.log(low_error / target) / math.log(low_error / high_error)
        middle = min(max(low + math.ceil(share * width), low + 1), high - 1)
        found = error(middle)
        if found <= target:
            high, high_error = middle, found
        else:
            low, low_error = middle, found
        halve = not halve and high - low > width / 2
    return high, high_error


def measure(protocol: RateProtocol, report: Report | None = None) -> list[RateRow]:
    """Count for every method at every condition number; eigenvalues lie log-uniformly from lam = 1 to each.

    ``report`` is called with the work done and about the work in all, in gradient evaluations.
    """
    costs = [_cost(kappa, protocol) for kappa in protocol.kappas]
    rows: list[RateRow] = []
    for index, kappa in enumerate(protocol.kappas):
        generator = torch.Generator().manual_seed(protocol.seed)
        regression = diagonal(spread(kappa, protocol.dims), protocol.tasks, generator)
        work = _working(report, sum(costs[:index]), costs[index], sum(costs))
        rows += _Counter(regression, kappa, protocol, work).rows()
        work(costs[index])
    return rows


class _Counter:
    """Counts at one condition number; ``work`` is told every gradient evaluation of an inner solver."""

    def __init__(self, regression: Regression, kappa: float, protocol: RateProtocol, work: Work) -> None:
        self.regression, self.kappa, self.work = regression, kappa, work
        self.target, self.unrolls = protocol.target, kappa <= protocol.unrolled

    def rows(self) -> Iterator[RateRow]:
        """Count for every method."""
        descent, nesterov, linear = _starts(self.kappa, self.target)
        exact = self.regression.solution
        products, _ = least(lambda m: self._implicit_error(exact, m), self.target / 2, start=linear)

        on = _Resumed(self.regression, self._descent, self.work)
        found = least(lambda n: self._implicit_error(on(n), products), self.target, start=descent)
        yield self._row("iMAML", "gradient descent", found, products, held=1)
        if self.unrolls:
            found = least(lambda n: self._unrolled_error(self._descent(n), n), self.target, start=found[0])
            yield self._row("MAML", "gradient descent", found, found[0], held=found[0])

        found = least(lambda n: self._implicit_error(self._accelerated(n), products), self.target, start=nesterov)
        yield self._row("iMAML", "Nesterov", found, products, held=1)
        found = least(lambda n: self._unrolled_error(self._nesterov(n), n), self.target, start=found[0])
        yield self._row("MAML", "Nesterov", found, found[0], held=found[0])

    def _descent(self, steps: int) -> InnerSolver:
        # No constant step beats 2/(L + μ), but with it the steepest direction swings as long as the flattest lasts: the
        # error ripples, and rounding would decide where it first meets the target.
        return GradientDescent(lr=1.9 / (self.kappa + 1), max_steps=steps)

    def _nesterov(self, steps: int) -> InnerSolver:
        return Nesterov(lr=1 / self.kappa, max_steps=steps, convexity=1.0)

    def _accelerated(self, steps: int) -> Tensor:
        self.work(steps)
        return solve(self.regression, self._nesterov(steps))

    def _implicit_error(self, phi: Tensor, products: int) -> float:
        adjoint = Implicit(linear_solver=CG(max_steps=products, tol=0.0))
        return self._worst(meta_gradient(self.regression, as_found, adjoint, phi))

    def _unrolled_error(self, solver: InnerSolver, steps: int) -> float:
        self.work(3 * steps)
        return self._worst(meta_gradient(self.regression, solver, Unroll()))

    def _worst(self, found: Tensor) -> float:
        return relative_error(found, self.regression.exact).max().item()

    def _row(self, method: str, solver: str, found: tuple[int, float], products: int, *, held: int) -> RateRow:
        steps, error = found
        return RateRow(
            kappa=self.kappa, method=method, solver=solver, inner_steps=steps, products=products,
            evaluations=steps + products, held=held, error=error,
        )  # fmt: skip


class _Resumed:
    """phi after n steps of a solver without memory, which goes on from the last phi that it has been asked for."""

    def __init__(self, regression: Regression, solver: Callable[[int], InnerSolver], work: Work) -> None:
        self.regression, self.solver, self.work = regression, solver, work
        self.known = {0: regression.theta}

    def __call__(self, steps: int) -> Tensor:
        """Return phi after ``steps``."""
        at = max(n for n in self.known if n <= steps)
        phi = self.known[at]
        while at < steps:
            some = min(_CHUNK, steps - at)
            phi = solve(self.regression, self.solver(some), phi)
            at += some
            self.work(some)
        self.known[steps] = phi
        return phi


def _starts(kappa: float, target: float) -> tuple[int, int, int]:
    """Return steps of gradient descent, of Nesterov's method and of CG, about as few as are needed."""
    log = math.log(1 / target)
    return int(0.36 * kappa * log), int(0.9 * math.sqrt(kappa) * log), int(0.5 * math.sqrt(kappa) * log)


def _cost(kappa: float, protocol: RateProtocol) -> float:
    """Foresee the gradient evaluations of the searches: six trials each, unrolled ones three times as dear."""
    descent, nesterov, _ = _starts(kappa, protocol.target)
    return 1.3 * descent + 6 * nesterov + 18 * (nesterov + (descent if kappa <= protocol.unrolled else 0))


def _working(report: Report | None, before: float, most: float, total: float) -> Work:
    """Return what adds up one condition number's work and reports it, never more than was foreseen."""
    done = 0.0

    def add(some: float) -> None:
        nonlocal done
        done = min(done + some, most)
        if report is not None:
            report(before + done, total)

    return add
