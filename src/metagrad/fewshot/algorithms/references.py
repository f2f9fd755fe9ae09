"""Two references without inner steps: nearest class means, and a ridge regression as the head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from metagrad import tree
from metagrad.errors import MetagradError
from metagrad.fewshot import module_lock
from metagrad.fewshot.algorithms import base
from metagrad.fewshot.algorithms.learned import entries, hyper, weights_of
from metagrad.fewshot.episodes import Batch, Tasks
from metagrad.fewshot.split import Adapts, Head, adapted
from metagrad.implicit import CG, Composed, Implicit, Problem, Proximal, Solution, argmin
from metagrad.torch_modes import full_digits
from metagrad.tree import Params


class Scored(NamedTuple):
    """Features of support images, ``(T, N, F)``, and which class each is of, ``(T, N, ways)``, 1 or 0."""

    features: Tensor
    hot: Tensor


@dataclass(frozen=True, kw_only=True)
class ProtoNet:
    """Classify by the nearest class mean of features: Snell, Swersky and Zemel, "Prototypical Networks", NeurIPS 2017.

    Outputs are negative squared distances. The network's own head is not used, so tasks may have any number of ways.

    Parameters
    ----------
    head:
        the network's last module, which is left out: a pattern of parameter names, or the module.
    """

    head: Adapts = "head.*"

    def init(self, model: nn.Module) -> Params:
        """Return the model's weights but the head's."""
        return without_head(model, self.head)

    def adapt(self, model: nn.Module, theta: Params, support: Batch) -> Solution:
        """Return the class means: what minimises the squared distances to each class's features."""
        data = seen(model, theta, self.head, support)
        means = data.hot.mT @ data.features / data.hot.sum(1)[..., None]
        none = torch.zeros(len(means), device=means.device)
        return Solution({"prototypes": means}, none.long(), none)

    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Tensor) -> Tensor:
        """Return ``−‖f − p‖²`` for each class, ``(T, N, ways)``."""
        features, means = features_of(model, theta, self.head, x), solution.value["prototypes"]
        return 2 * features @ means.mT - features.square().sum(-1, keepdim=True) - means.square().sum(-1).unsqueeze(1)

    def weights(self, model: nn.Module, theta: Params, solution: Solution) -> Params:
        """Return networks with a linear head: ``2 p`` and ``−‖p‖²``, as ``‖f‖²`` is common to all classes."""
        means = solution.value["prototypes"]
        return with_head(model, theta, self.head, 2 * means, -means.square().sum(-1))

    def meta_loss(
        self, model: nn.Module, theta: Params, tasks: Tasks, *, query_chunk: int | None = None
    ) -> base.MetaLoss:
        """Query loss."""
        return base.query_loss(self, model, theta, tasks, query_chunk)


@dataclass(frozen=True, kw_only=True)
class R2D2:
    """A head by ridge regression onto the labels: Bertinetto, Henriques, Torr and Vedaldi, ICLR 2019.

    ``W = argmin ½ ‖X W − Y‖² + (l2 / 2) ‖W‖²``, outputs ``scale · x W``. The solution is had from an N×N system, and
    differentiated implicitly: the core needs to know only what it solves. ``l2`` and ``scale`` are learned, as
    logarithms. The network's own head is not used, so tasks may have any number of ways.

    Parameters
    ----------
    l2, scale:
        what they begin at.
    head:
        the network's last module, which is left out: a pattern of parameter names, or the module.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    l2: float = 50.0
    scale: float = 5.0
    head: Adapts = "head.*"

    def __post_init__(self) -> None:
        base.require_positive(self, "l2", "scale")

    def init(self, model: nn.Module) -> Params:
        """Return the model's weights but the head's, and the logarithms of ``l2`` and ``scale``."""
        weights = without_head(model, self.head)
        like = weights or tree.detach(module_lock.weights(model))  # a frozen body leaves none
        return weights | entries("l2", self.l2, "scalar", like) | entries("scale", self.scale, "scalar", like)

    def adapt(self, model: nn.Module, theta: Params, support: Batch) -> Solution:
        """Solve the ridge regressions."""
        data = seen(model, theta, self.head, support)
        if isinstance(support, base.WeightedBatch):  # squares that count by their weights
            root = support.weight.sqrt()[..., None].to(data.features)
            data = Scored(root * data.features, root * data.hot)
        ridge = Composed(
            outputs=lambda phi, theta, data: data.features @ phi["w"],
            loss=lambda outputs, data: (outputs - data.hot).square().sum() / 2,
            regulariser=Proximal(hyper("l2", self.l2, "scalar"), towards="zero"),
            convex=True,
        )
        start = data.features.new_zeros(len(support.x), data.features.shape[2], data.hot.shape[2])
        strength = {".log_l2": theta[".log_l2"]}
        return argmin(ridge, {"w": start}, strength, data, solver=_solve_ridge, adjoint=_BY_CG)

    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Tensor) -> Tensor:
        """Return ``scale · x W``, ``(T, N, ways)``."""
        return theta[".log_scale"].exp() * (features_of(model, theta, self.head, x) @ solution.value["w"])

    def weights(self, model: nn.Module, theta: Params, solution: Solution) -> Params:
        """Return networks with the ridge regressions as their linear head."""
        slopes = theta[".log_scale"].exp() * solution.value["w"].mT
        return with_head(model, theta, self.head, slopes, slopes.new_zeros(slopes.shape[:2]))

    def meta_loss(
        self, model: nn.Module, theta: Params, tasks: Tasks, *, query_chunk: int | None = None
    ) -> base.MetaLoss:
        """Query loss; its backward solves the linear systems."""
        return base.query_loss(self, model, theta, tasks, query_chunk)


# One eigenvalue for each of N images and one for all that they do not span: no more than N + 1 steps.
_BY_CG = Implicit(linear_solver=CG(max_steps=200), curvature="gauss_newton")


def _solve_ridge(problem: Problem, init: Params) -> Params:
    """Return ``Xᵀ (X Xᵀ + l2 I)⁻¹ Y``: as many equations as images, fewer than features."""
    x, hot = problem.data
    with full_digits(x.device.type):
        gram = x @ x.mT + problem.theta[".log_l2"].exp() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        return {"w": x.mT @ torch.linalg.solve(gram, hot)}


def without_head(model: nn.Module, head: Adapts) -> Params:
    """Return the model's weights as theta, but for the head's."""
    mine = adapted(model, head)
    return {name: leaf for name, leaf in base.weights_of_model(model).items() if name not in mine}


def features_of(model: nn.Module, theta: Params, head: Adapts, x: Tensor) -> Tensor:
    """Return ``(T, N, F)`` for images ``(T, N, ...)``."""
    return Head.of(model, head).features(weights_of(theta), x).flatten(2)


def seen(model: nn.Module, theta: Params, head: Adapts, support: Batch) -> Scored:
    """Return what a classifier is made from."""
    features = features_of(model, theta, head, support.x)
    # What is computed from them has theta's digits, though a network under autocast gives fewer.
    features = features.to(torch.promote_types(features.dtype, next(iter(theta.values()), features).dtype))
    ways = torch.arange(int(support.y.max()) + 1, device=support.y.device)  # all that the host reads in a meta-step
    return Scored(features, (support.y[..., None] == ways).to(features))


def with_head(model: nn.Module, theta: Params, head: Adapts, weight: Tensor, bias: Tensor) -> Params:
    """Return all weights of T networks whose heads are linear, ``(T, ways, F)`` and ``(T, ways)``.

    Raises
    ------
    MetagradError
        if the model's head is none.
    """
    path = Head.of(model, head).path
    if not isinstance(model.get_submodule(path), nn.Linear):
        raise MetagradError(f"{path} is not a linear layer: what takes its place would not be the same network")
    return base.whole({f"{path}.weight": weight, f"{path}.bias": bias}, theta)
