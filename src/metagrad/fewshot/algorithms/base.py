"""What every method offers: the same ``adapt`` for training, evaluation and a user's own task."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from metagrad import tree
from metagrad.errors import MetagradWarning, in_short
from metagrad.fewshot import batched_forward, losses, module_lock, norms, task_losses
from metagrad.fewshot.algorithms.hyperparameters import weights_of
from metagrad.fewshot.tasks import AnyBatch, Tasks, num_tasks, some_tasks
from metagrad.implicit import Adjoint, Composed, InnerSolver, Objective, Proximal, Solution, argmin
from metagrad.tree import Hyper, Params


@dataclass(frozen=True)
class MetaLoss(task_losses.HasMetric):
    """What one batch of tasks says about theta.

    Attributes
    ----------
    loss:
        scalar, mean over tasks of the query loss; differentiable in theta.
    score:
        ``(T,)``, the metric of each task's query set. Detached.
    metric:
        what ``score`` is: ``"accuracy"``, a fraction, for classification.
    solution:
        the tasks' inner solutions; ``solution.linear`` is filled in by ``loss.backward()``.
    """

    loss: Tensor
    score: Tensor
    solution: Solution
    metric: str = "accuracy"


class Algorithm(Protocol):
    """A meta-learning method: frozen hyper-parameters and four functions."""

    def init(self, model: nn.Module) -> Params:
        """Return theta, leaf tensors with ``requires_grad``."""
        ...

    def adapt(self, model: nn.Module, theta: Params, support: AnyBatch) -> Solution:
        """Solve the inner problems of the tasks in ``support``."""
        ...

    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Tensor) -> Tensor:
        """Return outputs ``(T, N, ways)`` for inputs ``(T, N, ...)``."""
        ...

    def meta_loss(self, model: nn.Module, theta: Params, tasks: Tasks, *, query_chunk: int | None = None) -> MetaLoss:
        """Adapt on the support sets and score on the query sets, ``query_chunk`` tasks at a time (``None``: all)."""
        ...


class GivesNetworks(Algorithm, Protocol):
    """A method whose adapted tasks are networks that can be taken away."""

    def weights(self, model: nn.Module, theta: Params, solution: Solution) -> Params:
        """Return the adapted networks themselves, all weights with a task axis.

        Each gives :meth:`predict`'s outputs, up to a number for each input that all its outputs share.
        """
        ...


class Inner(NamedTuple):
    """The arguments of :func:`~metagrad.argmin`: a method's inner problems, their solver and their adjoint.

    ``centre``, with a task axis, is added to the solution, for problems in what is added to it.
    """

    objective: Objective
    init: Params
    theta: Params
    data: Any
    solver: InnerSolver
    adjoint: Adjoint
    centre: Params | None = None

    def solve(self, phi: Params | None = None) -> Solution:
        """Solve them, from ``phi`` on if it is given."""
        centre = self.centre or {}
        # In the method's order, which decides the order of sums: a checkpoint may have another.
        away = {name: -leaf for name, leaf in centre.items()}
        init = self.init if phi is None else added({name: phi[name] for name in self.init}, away)
        solution = argmin(self.objective, init, self.theta, self.data, solver=self.solver, adjoint=self.adjoint)
        return replace(solution, value=added(solution.value, centre)) if centre else solution


class HasInner(Algorithm, Protocol):
    """A method whose tasks have inner problems."""

    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> Inner:
        """Return them, and how they are solved and differentiated."""
        ...


class QueryScores(NamedTuple):
    """Each task's query loss and metric, ``(T,)``; the metric is detached."""

    losses: Tensor
    score: Tensor


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """What all methods have: a loss, a metric, and a query loss at what each task adapts.

    Parameters
    ----------
    loss:
        what a task's outputs cost, on the support set and on the query set: :class:`~metagrad.fewshot.CrossEntropy`,
        :class:`~metagrad.fewshot.SquaredError`, :class:`~metagrad.fewshot.BinaryCrossEntropy`, or any callable
        ``(outputs, targets) -> Tensor`` for one task (a scalar, or one value an example).
    metric:
        ``(outputs, targets) -> number`` for one task's query set, shown beside the loss; ``None``: the loss's own.
    """

    loss: losses.Loss = losses.CROSS_ENTROPY
    metric: losses.Metric | None = None
    name: ClassVar[str]  # in commands and results
    any_ways: ClassVar[bool] = False  # whether training tasks may have other ways than the network has outputs

    @abstractmethod
    def init(self, model: nn.Module) -> Params:
        """Return theta, leaf tensors with ``requires_grad``."""

    @abstractmethod
    def adapt(self, model: nn.Module, theta: Params, support: AnyBatch) -> Solution:
        """Solve the inner problems of the tasks in ``support``."""

    @abstractmethod
    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Any) -> Tensor:
        """Return outputs ``(T, N, ...)`` for inputs ``(T, N, ...)``."""

    def judge(self, model: nn.Module, theta: Params, solution: Solution, query: AnyBatch) -> QueryScores:
        """Predict a query set and judge it, by the method's loss and metric."""
        return judge_outputs(self.loss, self.metric, self.predict(model, theta, solution, query.x), query)

    def meta_loss(self, model: nn.Module, theta: Params, tasks: Tasks, *, query_chunk: int | None = None) -> MetaLoss:
        """Query loss at the adapted weights; what its backward does is the method."""
        return query_loss(self, model, theta, tasks, query_chunk)


@dataclass(frozen=True, kw_only=True)
class AdaptsWeights(Method):
    """A method that adapts weights of the network: all but its inner problem is common to them.

    What it does not adapt, tasks share: it comes from theta, or, frozen, from the model.
    """

    def init(self, model: nn.Module) -> Params:
        """Return a copy of the model's weights as theta; frozen ones (``requires_grad=False``) stay in the model."""
        return weights_of_model(model)

    @abstractmethod
    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> Inner:
        """Return the inner problems of the tasks in ``support``, and how they are solved and differentiated."""

    def adapt(self, model: nn.Module, theta: Params, support: AnyBatch) -> Solution:
        """Solve the inner problems of the tasks in ``support``."""
        task_losses.require_targets(self.loss, support, "support")
        return self.inner(model, theta, support).solve()

    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Any) -> Tensor:
        """Return each adapted network's outputs, ``(T, N, ways)``, for its inputs ``(T, N, ...)``."""
        return batched_forward.outputs(model, all_weights(solution.value, theta), x)

    def weights(self, model: nn.Module, theta: Params, solution: Solution) -> Params:
        """Return the adapted networks, all weights with a task axis; frozen ones stay in the model."""
        return all_weights(solution.value, theta)


def weights_of_model(model: nn.Module) -> Params:
    """Return a copy of the model's weights as theta; one that stands in several places has its first place's name."""
    averaging = [name for name, module in model.named_modules() if norms.keeps_averages(module)]
    if averaging:
        warnings.warn(
            f"batch norms in training mode use each task's own batch and do not update their running averages: "
            f"{in_short(', '.join(averaging), 80)}; put pretrained ones into eval mode first if they should use their "
            "running averages",
            MetagradWarning,
            stacklevel=4,
        )
    # Kernels with channels last where the network's own convolutions read them so: no copy each time.
    last = batched_forward.layered(model)
    return {
        name: leaf.detach()
        .clone(memory_format=torch.channels_last if last and leaf.dim() == 4 else torch.preserve_format)
        .requires_grad_()
        for name, leaf in module_lock.weights(model).items()
        if leaf.requires_grad
    }


def query_loss(
    algorithm: Algorithm, model: nn.Module, theta: Params, tasks: Tasks, query_chunk: int | None
) -> MetaLoss:
    """Adapt and score, ``query_chunk`` tasks at a time; the gradient of the scores is taken at once."""
    solution = algorithm.adapt(model, theta, tasks.support)  # which checks the support targets
    task_losses.require_targets(loss_of(algorithm), tasks.query, "query")
    return query_loss_at(algorithm, model, theta, solution, tasks.query, query_chunk)


def query_loss_at(
    algorithm: Algorithm,
    model: nn.Module,
    theta: Params,
    solution: Solution,
    query: AnyBatch,
    query_chunk: int | None,
) -> MetaLoss:
    """Return the query loss at inner solutions that are there already."""
    total = num_tasks(query)
    shared = [leaf for leaf in theta.values() if leaf.requires_grad]
    phi_gradient = {name: torch.empty_like(leaf) for name, leaf in solution.value.items()}
    shared_gradient: list[Tensor | None] = [None] * len(shared)  # where predict itself uses theta
    chunks: list[QueryScores] = []
    for first in range(0, total, query_chunk or total):
        here = slice(first, first + (query_chunk or total))
        phi = {name: leaf[here].detach().requires_grad_() for name, leaf in solution.value.items()}
        with torch.enable_grad():
            chunk = judge_query(algorithm, model, theta, replace(solution, value=phi), some_tasks(query, here))
            gradients = torch.autograd.grad(chunk.losses.sum() / total, [*phi.values(), *shared], allow_unused=True)
        for leaf, gradient in zip(phi_gradient.values(), gradients, strict=False):
            leaf[here] = 0.0 if gradient is None else gradient
        shared_gradient = [
            before if gradient is None else gradient if before is None else before + gradient
            for before, gradient in zip(shared_gradient, gradients[len(phi) :], strict=True)
        ]
        chunks.append(QueryScores(chunk.losses.detach(), chunk.score))
    pairs = [*zip(solution.value.values(), phi_gradient.values(), strict=True)]
    pairs += [(leaf, gradient) for leaf, gradient in zip(shared, shared_gradient, strict=True) if gradient is not None]
    inputs, known = zip(*pairs, strict=True)
    value = torch.cat([chunk.losses for chunk in chunks]).sum() / total
    loss = _KnownGradient.apply(value, len(phi_gradient), len(pairs), *known, *inputs)
    return MetaLoss(loss, torch.cat([chunk.score for chunk in chunks]), solution, metric_of(algorithm))


def judge_query(
    algorithm: Algorithm, model: nn.Module, theta: Params, solution: Solution, query: AnyBatch
) -> QueryScores:
    """Score query sets by the method's ``judge``; one without it, by its loss and metric."""
    if hasattr(algorithm, "judge"):
        scores: QueryScores = algorithm.judge(model, theta, solution, query)
        return scores
    outputs = algorithm.predict(model, theta, solution, query.x)
    return judge_outputs(loss_of(algorithm), getattr(algorithm, "metric", None), outputs, query)


def judge_outputs(loss: losses.Loss, metric: losses.Metric | None, outputs: Tensor, query: AnyBatch) -> QueryScores:
    """Return each task's loss and metric of the outputs for its query set."""
    values = task_losses.loss_of_tasks(loss, outputs, query)
    with torch.no_grad():
        return QueryScores(values, task_losses.score_of_tasks(loss, metric, outputs.detach(), query.y, values))


def loss_of(algorithm: Algorithm) -> losses.Loss:
    """Return a method's loss: the cross-entropy, for a user's own method that names none."""
    loss: losses.Loss = getattr(algorithm, "loss", losses.CROSS_ENTROPY)
    return loss


def metric_of(algorithm: Algorithm) -> str:
    """Return the name of a method's metric."""
    return task_losses.metric_name(loss_of(algorithm), getattr(algorithm, "metric", None))


class _KnownGradient(torch.autograd.Function):
    """A loss whose gradient is known already: the query graphs are freed before the solution is differentiated.

    It runs backward once. It scales the first ``owned`` gradients in place, since nobody else holds them; the others
    come from autograd and may be views.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, owned: int, count: int, *args: Tensor) -> Tensor:
        ctx.owned, ctx.gradients = owned, list(args[:count])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> Any:
        if not ctx.gradients:
            raise RuntimeError("a meta-loss can be differentiated once only: compute it again")
        gradients, ctx.gradients = ctx.gradients, []
        scaled = [leaf.mul_(weight) if place < ctx.owned else leaf * weight for place, leaf in enumerate(gradients)]
        return None, None, None, *([None] * len(gradients)), *scaled


def support_loss(
    model: nn.Module,
    loss: losses.Loss = losses.CROSS_ENTROPY,
    *,
    lam: Hyper | None = None,
) -> Composed:
    """Return the mean loss of the model on one task's support set, plus ``(lam / 2) ‖phi − theta‖²``.

    Its data are a :class:`~metagrad.fewshot.Batch`, or the result of :func:`prepared`.
    """
    return Composed(
        outputs=lambda phi, theta, batch: module_lock.call(
            model, {**weights_of(theta), **phi}, batch.x.x if isinstance(batch.x, batched_forward.Prepared) else batch.x
        ),
        loss=lambda outputs, batch: task_losses.loss_of_one(loss, outputs, batch),
        regulariser=None if lam is None else Proximal(lam),
        outputs_of_tasks=lambda phi, theta, batch: batched_forward.outputs(model, all_weights(phi, theta), batch.x),
        loss_of_tasks=lambda outputs, batch: task_losses.loss_of_tasks(loss, outputs, batch),
    )


def support_inner(
    method: Method,
    model: nn.Module,
    theta: Params,
    support: AnyBatch,
    names: Iterable[str],
    solver: InnerSolver,
    adjoint: Adjoint,
    *,
    lam: Hyper | None = None,
) -> Inner:
    """Return the support loss as an inner problem in the weights ``names``, begun at theta's.

    With ``lam`` they are pulled towards theta; without it theta's are only where they begin.
    """
    start = {name: theta[name] for name in names}
    parameters = {name: leaf for name, leaf in theta.items() if lam is not None or name not in start}
    objective, data = support_loss(model, method.loss, lam=lam), prepared(model, support)
    return Inner(objective, tree.expand(start, num_tasks(support)), parameters, data, solver, adjoint)


def classification(model: nn.Module, lam: Hyper | None = None) -> Composed:
    """Return :func:`support_loss` with the cross-entropy."""
    return support_loss(model, lam=lam)


def added(phi: Params, centre: Params) -> Params:
    """Return phi with the centre added to the tensors that it has."""
    return {name: leaf + centre[name] if name in centre else leaf for name, leaf in phi.items()}


def all_weights(phi: Params, theta: Params) -> Params:
    """Return all weights of T tasks: each task's own, and those that only theta has, which the tasks share."""
    tasks = tree.num_tasks(phi)
    return phi | tree.expand({name: leaf for name, leaf in weights_of(theta).items() if name not in phi}, tasks)


def prepared(model: nn.Module, support: AnyBatch) -> AnyBatch:
    """Compute what depends on the inputs alone once, for all inner steps and curvature products."""
    return support._replace(x=batched_forward.prepare(model, support.x))
