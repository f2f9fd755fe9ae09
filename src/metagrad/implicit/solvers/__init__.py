"""How the inner problem is solved, one file a solver."""

from metagrad.implicit.solvers.base import InnerSolver, Solution
from metagrad.implicit.solvers.gradient_descent import GradientDescent

__all__ = ["GradientDescent", "InnerSolver", "Solution"]
