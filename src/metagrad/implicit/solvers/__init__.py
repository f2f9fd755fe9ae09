"""How the inner problem is solved, one file a solver."""

from metagrad.implicit.solvers.adam import Adam
from metagrad.implicit.solvers.base import Bound, InnerSolver, Solution, Watch
from metagrad.implicit.solvers.gradient_descent import GradientDescent
from metagrad.implicit.solvers.hessian_free import HessianFree
from metagrad.implicit.solvers.lbfgs import LBFGS
from metagrad.implicit.solvers.nesterov import Nesterov
from metagrad.implicit.solvers.torch_optimizer import TorchOptimizer

__all__ = [
    "LBFGS", "Adam", "Bound", "GradientDescent", "HessianFree", "InnerSolver", "Nesterov", "Solution",
    "TorchOptimizer", "Watch",
]  # fmt: skip
