"""A user's bilevel problem as a method, which is trained, resumed, checked and reported as the others are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from metagrad import task_functions, tree
from metagrad.errors import MetagradError
from metagrad.fewshot import task_losses
from metagrad.fewshot.algorithms import base
from metagrad.fewshot.tasks import AnyBatch, num_tasks
from metagrad.implicit import Adjoint, GradientDescent, Implicit, InnerSolver, Objective, Solution
from metagrad.tree import Params

_DESCENT = GradientDescent(lr=0.1, max_steps=100)
_IMPLICIT = Implicit()


@dataclass(frozen=True, kw_only=True)
class Bilevel(base.Method):
    """Minimise an outer objective of ``phi*`` and theta, where ``phi*`` minimises an inner one.

    theta may be anything: strengths of regularisers, weights of examples, a learned loss. There need be no network;
    without one an experiment's ``network`` is ``nn.Identity``.

    Parameters
    ----------
    theta:
        returns what theta begins at: a dictionary of floating tensors, without a task axis.
    phi:
        of theta, returns where the search for one task's phi begins: a dictionary of tensors, without a task axis.
    inner_objective, outer_objective:
        ``(phi, theta, batch) -> scalar``, written for ONE task: what phi minimises on the support set, and what theta
        does on the query set. ``batch`` is a :class:`~metagrad.fewshot.Batch` of that task. The inner one may be a
        :class:`~metagrad.Composed`.
    solver, adjoint:
        how the inner problem is solved, and how its solution is differentiated.
    metric:
        ``(phi, theta, batch) -> number`` on the query set, shown beside the outer loss; ``None``: that loss.

    Examples
    --------
    >>> import torch
    >>> from metagrad.fewshot import Bilevel, Tasks, meta_gradient
    >>> def fit(phi, theta, batch):
    ...     return (batch.x @ phi["w"] - batch.y).square().mean()
    >>> def ridge(phi, theta, batch):
    ...     return fit(phi, theta, batch) + theta["log_lam"].exp() * phi["w"].square().sum()
    >>> problem = Bilevel(theta=lambda: {"log_lam": torch.zeros(())}, phi=lambda theta: {"w": torch.zeros(3)},
    ...                   inner_objective=ridge, outer_objective=fit)
    >>> x = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(0))
    >>> theta = problem.init(torch.nn.Identity())
    >>> metrics = meta_gradient(problem, torch.nn.Identity(), theta, Tasks((x, x.sum(-1)), (x, x.sum(-1))))
    >>> theta["log_lam"].grad.item() > 0  # without noise, less of a ridge is better
    True
    """

    theta: Callable[[], Params]
    phi: Callable[[Params], Params]
    inner_objective: Objective
    outer_objective: Callable[[Params, Params, Any], Tensor]
    solver: InnerSolver = _DESCENT
    adjoint: Adjoint = _IMPLICIT
    loss: Any = None
    metric: Any = None
    name: ClassVar[str] = "bilevel"
    network: ClassVar[type[nn.Module]] = nn.Identity

    def init(self, model: nn.Module) -> Params:
        """Return what theta begins at, as leaf tensors with ``requires_grad``."""
        return {name: leaf.detach().clone().requires_grad_() for name, leaf in self.theta().items()}

    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> base.Inner:
        """Return the inner problems of the tasks in ``support``."""
        start = tree.expand(self.phi(theta), num_tasks(support))
        return base.Inner(self.inner_objective, start, theta, support, self.solver, self.adjoint)

    def adapt(self, model: nn.Module, theta: Params, support: AnyBatch) -> Solution:
        """Solve the inner problems of the tasks in ``support``."""
        return self.inner(model, theta, support).solve()

    def judge(self, model: nn.Module, theta: Params, solution: Solution, query: AnyBatch) -> base.QueryScores:
        """Return each task's outer loss, and its metric."""
        with task_functions.exact():
            losses = torch.vmap(self.outer_objective, in_dims=(0, None, 0))(solution.value, theta, query)
        if losses.shape != (num_tasks(query),):
            raise ValueError(f"outer_objective must return a scalar for one task, got {tuple(losses.shape[1:])}")
        score = losses.detach()
        if self.metric is not None:
            with torch.no_grad():
                score = task_losses.mean_of_each(
                    lambda phi, batch: self.metric(phi, theta, batch), len(losses), solution.value, query
                )
        return base.QueryScores(losses, score)

    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Any) -> Tensor:
        """Refuse: metagrad does not know how phi predicts.

        Raises
        ------
        MetagradError
            always.
        """
        raise MetagradError("a bilevel problem makes no predictions: look at solution.value")
