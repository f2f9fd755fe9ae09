"""How the adjoint's linear system is solved."""

from metagrad.implicit.linear.base import LinearSolution, LinearSolver, as_solution, measured, solve
from metagrad.implicit.linear.cg import CG
from metagrad.implicit.linear.dense import Dense
from metagrad.implicit.linear.fixed_point import FixedPoint, Neumann
from metagrad.implicit.linear.minres import MINRES
from metagrad.implicit.linear.spectrum import curvature_range, largest_curvature
from metagrad.implicit.linear.woodbury import Woodbury

__all__ = [
    "CG",
    "MINRES",
    "Dense",
    "FixedPoint",
    "LinearSolution",
    "LinearSolver",
    "Neumann",
    "Woodbury",
    "as_solution",
    "curvature_range",
    "largest_curvature",
    "measured",
    "solve",
]  # fmt: skip
