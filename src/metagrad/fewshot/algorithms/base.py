"""What every method offers: the same ``adapt`` for training, evaluation and a user's own task."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from metagrad import tree
from metagrad.errors import MetagradError, MetagradWarning, in_short
from metagrad.fewshot import many, module_lock, norms
from metagrad.fewshot.algorithms.learned import weights_of
from metagrad.fewshot.episodes import Batch, Tasks
from metagrad.implicit import Adjoint, Composed, InnerSolver, Proximal, Solution, argmin
from metagrad.tree import Hyper, Params


@dataclass(frozen=True)
class MetaLoss:
    """What one batch of tasks says about theta.

    Attributes
    ----------
    loss:
        scalar, mean over tasks of the query loss; differentiable in theta.
    accuracy:
        ``(T,)``, fraction of query examples classified rightly. Detached.
    solution:
        the tasks' inner solutions; ``solution.linear`` is filled in by ``loss.backward()``.
    """

    loss: Tensor
    accuracy: Tensor
    solution: Solution


class Algorithm(Protocol):
    """A meta-learning method: frozen hyper-parameters and four functions."""

    def init(self, model: nn.Module) -> Params:
        """Return theta, leaf tensors that ask for a gradient."""
        ...

    def adapt(self, model: nn.Module, theta: Params, support: Batch) -> Solution:
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

    objective: Composed
    init: Params
    theta: Params
    data: Any
    solver: InnerSolver
    adjoint: Adjoint

    def solve(self) -> Solution:
        """Ask it."""
        objective, init, theta, data, solver, adjoint = self
        return argmin(objective, init, theta, data, solver=solver, adjoint=adjoint)


class AdaptsWeights(ABC):
    """A method that adapts weights of the network: all but its inner problem is common to them.

    What it does not adapt, tasks share: it comes from theta, or, frozen, from the model.
    """

    def init(self, model: nn.Module) -> Params:
        """Return a copy of the model's weights as theta; frozen ones (``requires_grad=False``) stay in the model."""
        return weights_of_model(model)

    @abstractmethod
    def inner(self, model: nn.Module, theta: Params, support: Batch) -> Inner:
        """Return the inner problems of the tasks in ``support``, and how they are solved and differentiated."""

    def adapt(self, model: nn.Module, theta: Params, support: Batch) -> Solution:
        """Solve the inner problems of the tasks in ``support``."""
        return self.inner(model, theta, support).solve()

    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Tensor) -> Tensor:
        """Return each adapted network's outputs, ``(T, N, ways)``, for its inputs ``(T, N, ...)``."""
        return many.outputs(model, whole(solution.value, theta), x)

    def weights(self, model: nn.Module, theta: Params, solution: Solution) -> Params:
        """Return the adapted networks, all weights with a task axis; frozen ones stay in the model."""
        return whole(solution.value, theta)

    def meta_loss(self, model: nn.Module, theta: Params, tasks: Tasks, *, query_chunk: int | None = None) -> MetaLoss:
        """Query loss at the adapted weights; what its backward does is the method."""
        return query_loss(self, model, theta, tasks, query_chunk)


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
    last = many.layered(model)
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
    """Adapt and score, ``query_chunk`` tasks at a time; the gradient of the scores is had at once."""
    solution = algorithm.adapt(model, theta, tasks.support)
    size, total = query_chunk or len(tasks), len(tasks)
    shared = [leaf for leaf in theta.values() if leaf.requires_grad]
    losses, hits = [], []
    slope = {name: torch.empty_like(leaf) for name, leaf in solution.value.items()}
    direct: list[Tensor | None] = [None] * len(shared)  # where predict itself looks at theta
    for first in range(0, total, size):
        here = slice(first, first + size)
        phi = {name: leaf[here].detach().requires_grad_() for name, leaf in solution.value.items()}
        with torch.enable_grad():
            outputs = algorithm.predict(model, theta, replace(solution, value=phi), tasks.query.x[here])
            loss = F.cross_entropy(outputs.mT, tasks.query.y[here], reduction="none").mean(1).sum() / total
        found = torch.autograd.grad(loss, [*phi.values(), *shared], allow_unused=True)
        for leaf, part in zip(slope.values(), found, strict=False):
            leaf[here] = 0.0 if part is None else part
        direct = [
            old if new is None else new if old is None else old + new
            for old, new in zip(direct, found[len(phi) :], strict=True)
        ]
        losses.append(loss.detach())
        hits.append((outputs.detach().argmax(-1) == tasks.query.y[here]).float().mean(1))
    known = [*zip(solution.value.values(), slope.values(), strict=True)]
    known += [(leaf, part) for leaf, part in zip(shared, direct, strict=True) if part is not None]
    inputs, slopes = zip(*known, strict=True)
    loss = _Scored.apply(torch.stack(losses).sum(), len(slope), len(known), *slopes, *inputs)
    return MetaLoss(loss, torch.cat(hits), solution)


class _Scored(torch.autograd.Function):
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


def classification(model: nn.Module, lam: Hyper | None = None) -> Composed:
    """Mean cross-entropy of the model on one task's support set, plus ``(lam / 2) ‖phi − theta‖²``.

    Its data are a :class:`~metagrad.fewshot.Batch`, or what :func:`prepared` makes of one.
    """
    return Composed(
        outputs=lambda phi, theta, batch: module_lock.call(
            model, {**weights_of(theta), **phi}, batch.x.x if isinstance(batch.x, many.Prepared) else batch.x
        ),
        loss=cross_entropy,
        regulariser=None if lam is None else Proximal(lam),
        outputs_of_tasks=lambda phi, theta, batch: many.outputs(model, whole(phi, theta), batch.x),
        loss_of_tasks=cross_entropy_of_tasks,
    )


def whole(phi: Params, theta: Params) -> Params:
    """Return all weights of T tasks: each task's own, and those that only theta has, which the tasks share."""
    tasks = tree.num_tasks(phi)
    return phi | tree.expand({name: leaf for name, leaf in weights_of(theta).items() if name not in phi}, tasks)


def cross_entropy(outputs: Tensor, batch: Any) -> Tensor:
    """Return one task's mean cross-entropy, nats; a weighted mean for a :class:`WeightedBatch`."""
    if isinstance(batch, WeightedBatch):
        return (batch.weight * F.cross_entropy(outputs, batch.y, reduction="none")).mean()
    return F.cross_entropy(outputs, batch.y)


def cross_entropy_of_tasks(outputs: Tensor, batch: Any) -> Tensor:
    """Return each task's mean cross-entropy, ``(T,)``."""
    losses = F.cross_entropy(outputs.mT, batch.y, reduction="none")
    return (batch.weight * losses).mean(1) if isinstance(batch, WeightedBatch) else losses.mean(1)


class WeightedBatch(NamedTuple):
    """A support set whose examples count more or less in what is adapted: ``weight`` is ``(T, N)``, of mean 1."""

    x: Any
    y: Tensor
    weight: Tensor


class PreparedBatch(NamedTuple):
    """A support set whose images the network's first layers have seen: every inner step begins there."""

    x: many.Prepared
    y: Tensor


def prepared(model: nn.Module, support: Batch | WeightedBatch) -> PreparedBatch | WeightedBatch:
    """Do what depends on the images alone once for all inner steps and curvature products."""
    if isinstance(support, WeightedBatch):
        return support._replace(x=many.prepare(model, support.x))
    return PreparedBatch(many.prepare(model, support.x), support.y)


def require_positive(algorithm: Any, *names: str) -> None:
    """Refuse hyper-parameters that are not positive and finite, counts that are not whole.

    Raises
    ------
    MetagradError
        naming the first such.
    """
    for name in names:
        value = getattr(algorithm, name)
        if not isinstance(value, int | float) or not 0 < value < math.inf:
            raise MetagradError(f"{name} must be a number, positive and finite, got {value!r}")
        if name.endswith("_steps") and not isinstance(value, int):
            raise MetagradError(f"{name} must be a whole number, got {value!r}")
