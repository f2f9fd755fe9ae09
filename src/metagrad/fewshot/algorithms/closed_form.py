"""Two references without inner steps: nearest prototypes, and a ridge regression as the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from metagrad import tree
from metagrad.errors import MetagradError
from metagrad.fewshot import module_lock, task_losses
from metagrad.fewshot.algorithms import base
from metagrad.fewshot.algorithms.hyperparameters import entries, hyper, require_positive, weights_of
from metagrad.fewshot.head import Adapts, Head, adapted
from metagrad.fewshot.tasks import AnyBatch, Tasks, num_tasks
from metagrad.implicit import CG, Composed, Implicit, Problem, Proximal, Solution, argmin, host
from metagrad.torch_modes import full_digits
from metagrad.tree import Params


class SupportFeatures(NamedTuple):
    """Features of support examples, ``(T, N, F)``, and their targets, ``(T, N, ways)``: one-hot for labels."""

    features: Tensor
    targets: Tensor


@dataclass(frozen=True, kw_only=True)
class ProtoNet(base.Method):
    """Classify by the nearest prototype (class mean): Snell, Swersky and Zemel, "Prototypical Networks", NeurIPS 2017.

    Outputs are negative squared distances, times ``scale``. The network's own head is not used, so tasks may have any
    number of ways. A class that a task has no support example of gets −∞: it is never predicted.

    Parameters
    ----------
    scale:
        what a learned factor of the outputs begins at; theta holds its logarithm. ``None``: there is none, as
        published. Of unscaled distances the loss begins far above that of chance, and a network spends its first
        hundreds of meta-steps on making its features smaller: 0.1 spares it that.
    head:
        the network's last module, which is left out, by a pattern of its parameters' names. In Python also the module.
    loss, metric:
        see :class:`~metagrad.fewshot.Method`; of the query set. Targets are labels.

    Raises
    ------
    MetagradError
        for a ``scale`` that is not positive.
    ValueError
        when used: for targets that are no labels, or for a query label that the support set of its task lacks.
    """

    name: ClassVar[str] = "protonet"
    any_ways: ClassVar[bool] = True
    scale: float | None = None
    head: Adapts = "head.*"

    def __post_init__(self) -> None:
        if self.scale is not None:
            require_positive(self, "scale")

    def init(self, model: nn.Module) -> Params:
        """Return the model's weights but the head's, and the logarithm of ``scale`` where it is learned."""
        weights = without_head(model, self.head)
        if self.scale is None:
            return weights
        return weights | entries("scale", self.scale, "scalar", weights or tree.detach(module_lock.weights(model)))

    def adapt(self, model: nn.Module, theta: Params, support: AnyBatch) -> Solution:
        """Return the prototypes, which minimise the squared distances to each class's features."""
        if support.y.is_floating_point():
            raise ValueError("ProtoNet needs labels: for other targets take R2D2, or a method that adapts weights")
        task_losses.require_targets(self.loss, support, "support")
        prototypes, count = prototypes_of(support_features(model, theta, self.head, support), support.weight)
        absent = torch.zeros_like(count).masked_fill(count == 0, -torch.inf)
        zero = torch.zeros(len(prototypes), device=prototypes.device)
        return Solution({"prototypes": prototypes, "absent": absent}, zero.long(), zero)

    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Any) -> Tensor:
        """Return ``−scale · ‖f − p‖²`` for each class, ``(T, N, ways)``."""
        features, prototypes = features_of(model, theta, self.head, x), solution.value["prototypes"]
        shift = (solution.value["absent"] - prototypes.square().sum(-1)).unsqueeze(1)
        near = 2 * features @ prototypes.mT - features.square().sum(-1, keepdim=True) + shift
        return near if self.scale is None else theta[".log_scale"].exp() * near

    def weights(self, model: nn.Module, theta: Params, solution: Solution) -> Params:
        """Return networks with a linear head: ``2 p`` and ``−‖p‖²``, as ``‖f‖²`` is common to all classes; scaled."""
        prototypes, absent = solution.value["prototypes"], solution.value["absent"]
        scale = 1.0 if self.scale is None else theta[".log_scale"].exp()
        bias = absent - prototypes.square().sum(-1)
        return with_head(model, theta, self.head, scale * 2 * prototypes, scale * bias)

    def meta_loss(
        self, model: nn.Module, theta: Params, tasks: Tasks, *, query_chunk: int | None = None
    ) -> base.MetaLoss:
        """Query loss."""
        _require_known(tasks, getattr(self.loss, "ignore_index", None))
        return super().meta_loss(model, theta, tasks, query_chunk=query_chunk)


@dataclass(frozen=True, kw_only=True)
class R2D2(base.Method):
    """A head by ridge regression onto the labels: Bertinetto, Henriques, Torr and Vedaldi, ICLR 2019.

    ``W = argmin ½ ‖X W − Y‖² + (l2 / 2) ‖W‖²``, outputs ``scale · x W``. The solution comes from an N×N system, and the
    core differentiates it implicitly. ``l2`` and ``scale`` are learned, as logarithms. The network's own head is not
    used, so tasks may have any number of ways. ``Y`` has a column for each label, or, where targets are no labels, is
    the targets themselves (then begin at ``scale=1``).

    Parameters
    ----------
    l2:
        strength of the ridge penalty at the start; it is learned.
    scale:
        factor of the logits at the start; it is learned.
    head:
        the network's last module, which is left out, by a pattern of its parameters' names. In Python also the module.
    loss, metric:
        see :class:`~metagrad.fewshot.Method`; of the query set. The ridge regression has the squared error always.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    name: ClassVar[str] = "r2d2"
    any_ways: ClassVar[bool] = True
    l2: float = 50.0
    scale: float = 5.0
    head: Adapts = "head.*"

    def __post_init__(self) -> None:
        require_positive(self, "l2", "scale")

    def init(self, model: nn.Module) -> Params:
        """Return the model's weights but the head's, and the logarithms of ``l2`` and ``scale``."""
        weights = without_head(model, self.head)
        like = weights or tree.detach(module_lock.weights(model))  # a frozen body leaves none
        return weights | entries("l2", self.l2, "scalar", like) | entries("scale", self.scale, "scalar", like)

    def adapt(self, model: nn.Module, theta: Params, support: AnyBatch) -> Solution:
        """Solve the ridge regressions."""
        task_losses.require_targets(self.loss, support, "support")
        data = support_features(model, theta, self.head, support)
        if support.weight is not None:  # squares that count by their weights
            root = support.weight.sqrt()[..., None].to(data.features)
            data = SupportFeatures(root * data.features, root * data.targets)
        ridge = Composed(
            outputs=lambda phi, theta, data: data.features @ phi["w"],
            loss=lambda outputs, data: (outputs - data.targets).square().sum() / 2,
            regulariser=Proximal(hyper("l2", self.l2, "scalar"), towards="zero"),
            convex=True,
        )
        start = data.features.new_zeros(num_tasks(support), data.features.shape[2], data.targets.shape[2])
        strength = {".log_l2": theta[".log_l2"]}
        return argmin(ridge, {"w": start}, strength, data, solver=_solve_ridge, adjoint=_BY_CG)

    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Any) -> Tensor:
        """Return ``scale · x W``, ``(T, N, ways)``."""
        return theta[".log_scale"].exp() * (features_of(model, theta, self.head, x) @ solution.value["w"])

    def weights(self, model: nn.Module, theta: Params, solution: Solution) -> Params:
        """Return networks with the ridge regressions as their linear head."""
        weight = theta[".log_scale"].exp() * solution.value["w"].mT
        return with_head(model, theta, self.head, weight, weight.new_zeros(weight.shape[:2]))


# One eigenvalue for each of N images and one for all that they do not span: no more than N + 1 steps.
_BY_CG = Implicit(linear_solver=CG(max_steps=200), curvature="gauss_newton")


def _solve_ridge(problem: Problem, init: Params) -> Params:
    """Return ``Xᵀ (X Xᵀ + l2 I)⁻¹ Y``: as many equations as images, fewer than features."""
    x, targets = problem.data
    with full_digits(x.device.type):
        gram = x @ x.mT + problem.theta[".log_l2"].exp() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return {"w": x.mT @ torch.linalg.solve(gram, targets)}


def _require_known(tasks: Tasks, ignored: int | None) -> None:
    """Refuse a query label that its task has no support example of; labels that the host may not read pass."""
    if tasks.query.y.is_floating_point() or not host.may_read(tasks.query.y):
        return
    support, query = tasks.support.y.flatten(1), tasks.query.y.flatten(1)
    known = (query[:, :, None] == support[:, None]).any(2)
    if ignored is not None:
        known |= query == ignored
    if not known.all():
        task, place = (int(index) for index in (~known).nonzero()[0])
        raise ValueError(
            f"task {task} has label {int(query[task, place])} in its query set, but no support example of it: "
            "draw other tasks, or leave those queries out"
        )


def without_head(model: nn.Module, head: Adapts) -> Params:
    """Return the model's weights as theta, but for the head's."""
    names = adapted(model, head)
    return {name: leaf for name, leaf in base.weights_of_model(model).items() if name not in names}


def features_of(model: nn.Module, theta: Params, head: Adapts, x: Any) -> Tensor:
    """Return ``(T, N, F)`` for images ``(T, N, ...)``."""
    return Head.of(model, head).features(weights_of(theta), x).flatten(2)


def prototypes_of(support: SupportFeatures, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the mean features of each class, ``(T, ways, F)``, and how many examples it has, ``(T, ways)``."""
    features, member = support
    if weight is not None:
        member = member * weight[..., None].to(member)
    count = member.sum(1)
    return member.mT @ features / torch.where(count > 0, count, 1)[..., None], count


def support_features(
    model: nn.Module, theta: Params, head: Adapts, support: AnyBatch, features: Tensor | None = None
) -> SupportFeatures:
    """Return the features and targets of support sets; ``features`` where they are known."""
    features = features_of(model, theta, head, support.x) if features is None else features.flatten(2)
    # In theta's dtype: a network under autocast returns fewer digits.
    features = features.to(torch.promote_types(features.dtype, next(iter(theta.values()), features).dtype))
    if support.y.is_floating_point():
        if support.y.dim() != 3:
            raise ValueError(f"targets must be (T, N, outputs), got {tuple(support.y.shape)}: add the last axis")
        return SupportFeatures(features, support.y.to(features))
    if support.y.dim() != 2:
        raise ValueError(f"labels must be (T, N), got {tuple(support.y.shape)}")
    ways = torch.arange(int(support.y.max()) + 1, device=support.y.device)  # all that the host reads
    return SupportFeatures(features, (support.y[..., None] == ways).to(features))


def with_head(model: nn.Module, theta: Params, head: Adapts, weight: Tensor, bias: Tensor) -> Params:
    """Return all weights of T networks whose heads are linear, ``(T, ways, F)`` and ``(T, ways)``.

    Raises
    ------
    MetagradError
        if the model's head is not a linear layer.
    """
    last = Head.of(model, head)
    require_linear(last)
    return base.all_weights({f"{last.path}.weight": weight, f"{last.path}.bias": bias}, theta)


def require_linear(head: Head) -> None:
    """Refuse a head that is not a linear layer.

    Raises
    ------
    MetagradError
        for another.
    """
    if not isinstance(head.module, nn.Linear):
        raise MetagradError(f"{head.path} is not a linear layer: what takes its place would not be the same network")
