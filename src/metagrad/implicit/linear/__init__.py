"""How the adjoint's linear system is solved, one file a solver."""

from metagrad.implicit.linear.base import LinearSolution, LinearSolver
from metagrad.implicit.linear.cg import CG

__all__ = ["CG", "LinearSolution", "LinearSolver"]
