"""iMAML: Rajeswaran, Finn, Kakade and Levine, "Meta-Learning with Implicit Gradients", NeurIPS 2019."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from metagrad.fewshot.algorithms import base
from metagrad.fewshot.algorithms.hyperparameters import Form, entries, hyper, require_positive, require_solves
from metagrad.fewshot.algorithms.start import BeginsHead, learned_start, one_row
from metagrad.fewshot.head import Adapts, adapted
from metagrad.fewshot.tasks import AnyBatch
from metagrad.implicit import CG, Adjoint, GradientDescent, Implicit, InnerSolver
from metagrad.tree import Params

_DESCENT = GradientDescent(lr=0.4, max_steps=5)
_IMPLICIT = Implicit(curvature="gauss_newton")


@dataclass(frozen=True, kw_only=True)
class IMAML(BeginsHead):
    """Adapt weights near theta; compute the meta-gradient from the inner solution alone (iMAML).

    Inner problem of a task (equation 3 of the paper): ``L(phi; S) + (lam / 2) ‖phi − theta‖²``. Meta-gradient:
    solve ``(H + lam I) u = ∇L(phi; Q)``, then ``dF/dtheta = lam u``. The defaults are those of ``metagrad train``,
    chosen on validation classes of Omniglot; :meth:`published` gives the paper's.

    Parameters
    ----------
    lam:
        strength of the pull towards theta; larger adapts less. The initial value if it is learned.
    learn_lam:
        whether ``lam`` is learned with the weights: not at all (``"fixed"``), as one number (``"scalar"``), one for
        each tensor (``"tensor"``) or one for each parameter (``"parameter"``). theta then holds its logarithm under
        names that begin with ``.log_lam``.
    solver:
        inner solver, any of them. The default is 5 steps of gradient descent of size 0.4.
    adjoint:
        how the solution is differentiated. The default is ``Implicit(curvature="gauss_newton")``: the exact Hessian is
        indefinite on ReLU networks at usual ``lam``.
    adapts:
        the weights that a task adapts, by a pattern of their names with ``*`` for any text (``"head.*"``). Tasks share
        the others, which are meta-learned. In Python also a module of the network.
    start, start_scale, head:
        see :class:`BeginsHead`.
    loss, metric:
        see :class:`~metagrad.fewshot.Method`.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    name: ClassVar[str] = "imaml"
    lam: float = 0.1
    learn_lam: Form = "fixed"
    solver: InnerSolver = _DESCENT
    adjoint: Adjoint = _IMPLICIT
    adapts: Adapts = "*"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "lam")
        require_solves(self)

    @classmethod
    def published(cls) -> IMAML:
        """Return the method as the paper has it: λ = 2, 16 steps of 0.1, 5 CG steps on the exact Hessian."""
        adjoint = Implicit(linear_solver=CG(max_steps=5, on_negative="continue"), curvature="hessian")
        return cls(lam=2.0, solver=GradientDescent(lr=0.1, max_steps=16), adjoint=adjoint)

    def init(self, model: nn.Module) -> Params:
        """Return the model's weights, and the logarithm of ``lam`` where it is learned."""
        weights = super().init(model)
        mine = {name: weights[name] for name in adapted(model, self.adapts)}
        learned = entries("lam", self.lam, self.learn_lam, one_row(self, model, mine))
        return learned_start(self, model, weights) | learned

    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> base.Inner:
        """Return every task's proximal problem, begun at theta."""
        names, lam = adapted(model, self.adapts), hyper("lam", self.lam, self.learn_lam)
        return self.begun(model, theta, support, names, self.solver, self.adjoint, lam=lam)
