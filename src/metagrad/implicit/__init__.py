"""Differentiable ``argmin``: what is solved, how it is solved, and how it is differentiated, kept apart."""

from metagrad.implicit.adjoints import Adjoint, FirstOrder, Implicit, Unroll, argmin
from metagrad.implicit.linear import CG, LinearSolution, LinearSolver
from metagrad.implicit.problem import Composed, Curvature, Objective, Operator, Problem, Proximal
from metagrad.implicit.solvers import (
    LBFGS,
    Adam,
    GradientDescent,
    HessianFree,
    InnerSolver,
    Nesterov,
    Solution,
    TorchOptimizer,
)

__all__ = [
    "CG",
    "LBFGS",
    "Adam",
    "Adjoint",
    "Composed",
    "Curvature",
    "FirstOrder",
    "GradientDescent",
    "HessianFree",
    "Implicit",
    "InnerSolver",
    "LinearSolution",
    "LinearSolver",
    "Nesterov",
    "Objective",
    "Operator",
    "Problem",
    "Proximal",
    "Solution",
    "TorchOptimizer",
    "Unroll",
    "argmin",
]
