"""What every method offers: the same ``adapt`` for training, evaluation and a user's own task."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from metagrad import tree
from metagrad.errors import MetagradError, MetagradWarning, in_short
from metagrad.fewshot import batched_forward, judging, losses, module_lock, norms
from metagrad.fewshot.algorithms.hyperparameters import weights_of
from metagrad.fewshot.tasks import AnyBatch, Tasks, some_tasks
from metagrad.implicit import Adjoint, Composed, InnerSolver, Objective, Proximal, Solution, argmin
from metagrad.implicit.adjoints import require_parts
from metagrad.tree import Hyper, Params


@dataclass(frozen=True)
class MetaLoss(judging.Scored):
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
        """Return theta, leaf tensors that ask for a gradient."""
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
    """What :func:`~metagrad.argmin` is asked: a method's inner problems, how they are solved and differentiated."""

    objective: Objective
    init: Params
    theta: Params
    data: Any
    solver: InnerSolver
    adjoint: Adjoint

    def solve(self) -> Solution:
        """Ask it."""
        objective, init, theta, data, solver, adjoint = self
        return argmin(objective, init, theta, data, solver=solver, adjoint=adjoint)


class HasInner(Algorithm, Protocol):
    """A method whose tasks have inner problems."""

    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> Inner:
        """Return them, and how they are solved and differentiated."""
        ...


class Judged(NamedTuple):
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
        """Return theta, leaf tensors that ask for a gradient."""

    @abstractmethod
    def adapt(self, model: nn.Module, theta: Params, support: AnyBatch) -> Solution:
        """Solve the inner problems of the tasks in ``support``."""

    @abstractmethod
    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Any) -> Tensor:
        """Return outputs ``(T, N, ...)`` for inputs ``(T, N, ...)``."""

    def judge(self, model: nn.Module, theta: Params, solution: Solution, query: AnyBatch) -> Judged:
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
        judging.require_targets(self.loss, support, "support")
        return self.inner(model, theta, support).solve()

    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Any) -> Tensor:
        """Return each adapted network's outputs, ``(T, N, ways)``, for its inputs ``(T, N, ...)``."""
        return batched_forward.outputs(model, whole(solution.value, theta), x)

    def weights(self, model: nn.Module, theta: Params, solution: Solution) -> Params:
        """Return the adapted networks, all weights with a task axis; frozen ones stay in the model."""
        return whole(solution.value, theta)


def weights_of_model(model: nn.Module) -> Params:
    """Return a copy of the model's weights as theta; one that stands in several places has its first place's name."""
    averaging = [name for name, module in model.named_modules() if norms.keeps_averages(module)]
    if averaging:
        warnings.warn(
            f"batch norms in training mode go by each task's own batch, and their running averages stay as they are: "
            f"{in_short(', '.join(averaging), 80)}; leave the network in training mode, or put what is pretrained into "
            "eval mode first",
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
    for what, batch in (("support", tasks.support), ("query", tasks.query)):
        judging.require_targets(loss_of(algorithm), batch, what)
    solution = algorithm.adapt(model, theta, tasks.support)
    size, total = query_chunk or len(tasks), len(tasks)
    shared = [leaf for leaf in theta.values() if leaf.requires_grad]
    parts: list[Judged] = []
    slope = {name: torch.empty_like(leaf) for name, leaf in solution.value.items()}
    direct: list[Tensor | None] = [None] * len(shared)  # where predict itself looks at theta
    for first in range(0, total, size):
        here = slice(first, first + size)
        phi = {name: leaf[here].detach().requires_grad_() for name, leaf in solution.value.items()}
        with torch.enable_grad():
            part = judged(algorithm, model, theta, replace(solution, value=phi), some_tasks(tasks.query, here))
            found = torch.autograd.grad(part.losses.sum() / total, [*phi.values(), *shared], allow_unused=True)
        for leaf, gradient in zip(slope.values(), found, strict=False):
            leaf[here] = 0.0 if gradient is None else gradient
        direct = [
            old if new is None else new if old is None else old + new
            for old, new in zip(direct, found[len(phi) :], strict=True)
        ]
        parts.append(Judged(part.losses.detach(), part.score))
    known = [*zip(solution.value.values(), slope.values(), strict=True)]
    known += [(leaf, gradient) for leaf, gradient in zip(shared, direct, strict=True) if gradient is not None]
    inputs, slopes = zip(*known, strict=True)
    value = torch.cat([part.losses for part in parts]).sum() / total
    loss = _Known.apply(value, len(slope), len(known), *slopes, *inputs)
    return MetaLoss(loss, torch.cat([part.score for part in parts]), solution, metric_of(algorithm))


def judged(algorithm: Algorithm, model: nn.Module, theta: Params, solution: Solution, query: AnyBatch) -> Judged:
    """Judge a query set as the method does; an own one that does not say how, by its loss and metric, if any."""
    judge = getattr(algorithm, "judge", None)
    if judge is not None:
        found: Judged = judge(model, theta, solution, query)
        return found
    outputs = algorithm.predict(model, theta, solution, query.x)
    return judge_outputs(loss_of(algorithm), getattr(algorithm, "metric", None), outputs, query)


def judge_outputs(loss: losses.Loss, metric: losses.Metric | None, outputs: Tensor, query: AnyBatch) -> Judged:
    """Return each task's loss and metric of the outputs for its query set."""
    found = judging.loss_of_tasks(loss, outputs, query)
    with torch.no_grad():
        return Judged(found, judging.score_of_tasks(loss, metric, outputs.detach(), query.y, found))


def loss_of(algorithm: Algorithm) -> losses.Loss:
    """Return a method's loss; an own one that names none classifies."""
    found: losses.Loss = getattr(algorithm, "loss", losses.CROSS_ENTROPY)
    return found


def metric_of(algorithm: Algorithm) -> str:
    """Return the name of a method's metric."""
    return judging.metric_name(loss_of(algorithm), getattr(algorithm, "metric", None))


class _Known(torch.autograd.Function):
    """A loss whose gradient is known already: the query graphs are gone before the solution is differentiated.

    Its one backward hands the gradient over: the ``own`` first of its tensors without a copy, since nobody else holds
    them; what autograd returned may be a view of something, or one number seen many times.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, own: int, count: int, *args: Tensor) -> Tensor:
        ctx.own, ctx.slope = own, list(args[:count])
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> Any:
        if not ctx.slope:
            raise RuntimeError("a meta-loss can be differentiated once only: compute it again")
        given, ctx.slope = ctx.slope, []
        scaled = [part.mul_(weight) if place < ctx.own else part * weight for place, part in enumerate(given)]
        return None, None, None, *([None] * len(given)), *scaled


def support_loss(
    model: nn.Module,
    loss: losses.Loss = losses.CROSS_ENTROPY,
    *,
    lam: Hyper | None = None,
) -> Composed:
    """Return the mean loss of the model on one task's support set, plus ``(lam / 2) ‖phi − theta‖²``.

    Its data are a :class:`~metagrad.fewshot.Batch`, or what :func:`prepared` makes of one.
    """
    return Composed(
        outputs=lambda phi, theta, batch: module_lock.call(
            model, {**weights_of(theta), **phi}, batch.x.x if isinstance(batch.x, batched_forward.Prepared) else batch.x
        ),
        loss=lambda outputs, batch: judging.loss_of_one(loss, outputs, batch),
        regulariser=None if lam is None else Proximal(lam),
        outputs_of_tasks=lambda phi, theta, batch: batched_forward.outputs(model, whole(phi, theta), batch.x),
        loss_of_tasks=lambda outputs, batch: judging.loss_of_tasks(loss, outputs, batch),
    )


def classification(model: nn.Module, lam: Hyper | None = None) -> Composed:
    """Return :func:`support_loss` with the cross-entropy."""
    return support_loss(model, lam=lam)


def whole(phi: Params, theta: Params) -> Params:
    """Return all weights of T tasks: each task's own, and those that only theta has, which the tasks share."""
    tasks = tree.num_tasks(phi)
    return phi | tree.expand({name: leaf for name, leaf in weights_of(theta).items() if name not in phi}, tasks)


def prepared(model: nn.Module, support: AnyBatch) -> AnyBatch:
    """Do what depends on the images alone once for all inner steps and curvature products."""
    return support._replace(x=batched_forward.prepare(model, support.x))


_LEAST = 1e-37  # below it float32 has no digits, and then no number: 1e-50 is zero to it


def require_solves(algorithm: Any) -> None:
    """Refuse a solver or an adjoint that cannot be one, when the method is made.

    Raises
    ------
    MetagradError
        saying which.
    """
    try:
        require_parts(len, algorithm.solver, algorithm.adjoint)
    except TypeError as error:
        raise MetagradError(str(error)) from error


def require_positive(algorithm: Any, *names: str) -> None:
    """Refuse hyper-parameters that are not positive and finite, counts that are not whole.

    Raises
    ------
    MetagradError
        naming the first such.
    """
    for name in names:
        value = getattr(algorithm, name)
        if isinstance(value, np.number):  # numpy's numbers are numbers
            value = value.item()
            object.__setattr__(algorithm, name, value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not _LEAST < value < math.inf:
            raise MetagradError(f"{name} must be a number, positive and finite, got {value!r}")
        if name.endswith("_steps") and not isinstance(value, int):
            raise MetagradError(f"{name} must be a whole number, got {value!r}")
