"""Differentiable ``argmin``: what is solved, how it is solved, and how it is differentiated, kept apart."""

from metagrad.implicit.adjoints import Adjoint, FirstOrder, Implicit, Unroll, argmin
from metagrad.implicit.linear import CG, LinearSolution, LinearSolver
from metagrad.implicit.problem import Composed, Curvature, Objective, Operator, Problem, Proximal
from metagrad.implicit.solvers import GradientDescent, InnerSolver, Solution

__all__ = [
    "CG",
    "Adjoint",
    "Composed",
    "Curvature",
    "FirstOrder",
    "GradientDescent",
    "Implicit",
    "InnerSolver",
    "LinearSolution",
    "LinearSolver",
    "Objective",
    "Operator",
    "Problem",
    "Proximal",
    "Solution",
    "Unroll",
    "argmin",
]
