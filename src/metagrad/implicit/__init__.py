"""Differentiable ``argmin``: what is solved, how it is solved, and how it is differentiated, kept apart."""

from metagrad.implicit.adjoints import Adjoint, FirstOrder, Implicit
from metagrad.implicit.check import GradientCheck, check_meta_gradient, solve_on
from metagrad.implicit.curvature import Convexity, Curvature, GaussNewton, Linearisation, Operator
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
from metagrad.implicit.objective import Composed, Objective, Proximal
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers import (
    LBFGS,
    Adam,
    Bound,
    GradientDescent,
    HessianFree,
    InnerSolver,
    Nesterov,
    Solution,
    TorchOptimizer,
    Watch,
)
from metagrad.implicit.solving import argmin, attach
from metagrad.implicit.unroll import Unroll

__all__ = [
    "CG", "LBFGS", "MINRES", "Adam", "Adjoint", "Bound", "Composed", "Convexity", "Curvature", "Dense", "FirstOrder",
    "FixedPoint", "GaussNewton", "GradientCheck", "GradientDescent", "HessianFree", "Implicit", "InnerSolver",
    "LinearSolution", "LinearSolver", "Linearisation", "Nesterov", "Neumann", "Objective", "Operator", "Problem",
    "Proximal", "Solution", "TorchOptimizer", "Unroll", "Watch", "Woodbury", "argmin", "attach",
    "check_meta_gradient", "curvature_range", "largest_curvature", "solve_on",
]  # fmt: skip
