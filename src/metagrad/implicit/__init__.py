"""Differentiable ``argmin``: what is solved, how it is solved, and how it is differentiated, kept apart."""

from metagrad.implicit.adjoints import Adjoint, FirstOrder, Implicit, Unroll, argmin
from metagrad.implicit.linear import (
    CG,
    MINRES,
    Dense,
    FixedPoint,
    LinearSolution,
    LinearSolver,
    Neumann,
    Woodbury,
    curvature_range,
    largest_curvature,
)
from metagrad.implicit.problem import Composed, Curvature, GaussNewton, Objective, Operator, Problem, Proximal
from metagrad.implicit.solvers import GradientDescent, InnerSolver, Solution

__all__ = [
    "CG",
    "MINRES",
    "Adjoint",
    "Composed",
    "Curvature",
    "Dense",
    "FirstOrder",
    "FixedPoint",
    "GaussNewton",
    "GradientDescent",
    "Implicit",
    "InnerSolver",
    "LinearSolution",
    "LinearSolver",
    "Neumann",
    "Objective",
    "Operator",
    "Problem",
    "Proximal",
    "Solution",
    "Unroll",
    "Woodbury",
    "argmin",
    "curvature_range",
    "largest_curvature",
]
