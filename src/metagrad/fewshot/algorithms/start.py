"""Initial weights of a task's head: learned rows, or, for any number of ways, one shared row or the prototypes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from metagrad import tree
from metagrad.errors import MetagradError
from metagrad.fewshot.algorithms import base
from metagrad.fewshot.algorithms.closed_form import prototypes_of, require_linear, support_features
from metagrad.fewshot.algorithms.hyperparameters import entries, require_positive
from metagrad.fewshot.head import Adapts, Head
from metagrad.fewshot.tasks import AnyBatch
from metagrad.implicit import Adjoint, Composed, InnerSolver
from metagrad.tree import Hyper, Params

Start = Literal["rows", "shared", "prototypes"]


class _Centred(NamedTuple):
    """The data of an inner problem in what a head adds to its centre: ``centre`` has a task axis, as the batch has."""

    batch: Any
    centre: Params


@dataclass(frozen=True, kw_only=True)
class BeginsHead(base.AdaptsWeights):
    """A method whose heads start at learned rows, at one row for all classes, or at the class prototypes.

    Parameters
    ----------
    start:
        initial weights of a task's head, which are also the centre of its regulariser. ``"rows"``: one learned row for
        each output, as published. ``"shared"``: one learned row for all classes (Ye and Chao, "How to Train Your MAML
        to Excel in Few-Shot Classification", ICLR 2022); with cross-entropy any row gives the same, also zeros.
        ``"prototypes"``: weights ``2 s c`` and biases ``−s ‖c‖²`` from the class means c of the support features, with
        a learned s (Triantafillou et al., "Meta-Dataset", ICLR 2020, Proto-MAML). With the last two, tasks may have any
        number of ways.
    start_scale:
        initial value of s, for prototypes.
    head:
        the head, a linear layer that adapts: a pattern of its parameters' names. In Python also the module.
    """

    start: Start = "rows"
    start_scale: float = 0.1
    head: Adapts = "head.*"

    def __post_init__(self) -> None:
        require_start(self)

    @property
    def any_ways(self) -> bool:  # type: ignore[override]  # elsewhere a constant of the class
        """Whether tasks may have other ways than the network has outputs."""
        return self.start != "rows"

    def begun(
        self,
        model: nn.Module,
        theta: Params,
        support: AnyBatch,
        names: list[str],
        solver: InnerSolver,
        adjoint: Adjoint,
        *,
        lam: Hyper | None = None,
    ) -> base.Inner:
        """Return the support loss as an inner problem in the weights ``names``, begun as :attr:`start` says."""
        if self.start == "rows":
            return base.support_inner(self, model, theta, support, names, solver, adjoint, lam=lam)
        path = _linear_head(self, model).path
        rest = [name for name in names if not name.startswith(f"{path}.")]
        if len(rest) == len(names):
            raise MetagradError(
                f"start={self.start!r} needs a head that adapts, but {path} does not: include it in adapts"
            )
        inner = base.support_inner(self, model, theta, support, rest, solver, adjoint, lam=lam)
        return begun_at_centre(self, model, theta, support, inner)


def require_start(method: Any) -> None:
    """Refuse an unknown start, and a scale that is not positive.

    Raises
    ------
    MetagradError
        for these.
    """
    if method.start not in get_args(Start):
        raise MetagradError(f"start is one of {', '.join(get_args(Start))}, got {method.start!r}")
    require_positive(method, "start_scale")


def learned_start(method: Any, model: nn.Module, weights: Params) -> Params:
    """Return theta with the learned initial weights of heads in place of the head's own rows.

    Raises
    ------
    MetagradError
        if the head is not a linear layer.
    """
    if method.start == "rows":
        return weights
    head = _linear_head(method, model)
    rows = {name: weights[f"{head.path}.{name}"] for name in ("weight", "bias") if f"{head.path}.{name}" in weights}
    rest = {name: leaf for name, leaf in weights.items() if name.removeprefix(f"{head.path}.") not in rows}
    if method.start == "prototypes":
        return rest | entries("scale", method.start_scale, "scalar", rows)
    return rest | {f".start/{name}": leaf.detach().mean(0).requires_grad_() for name, leaf in rows.items()}


def one_row(method: Any, model: nn.Module, weights: Params) -> Params:
    """Return weights with one row of the head in place of all, where all begin alike: a learned lam has this shape."""
    if method.start == "rows":
        return weights
    prefix = f"{_linear_head(method, model).path}."
    return {name: leaf[:1] if name.startswith(prefix) else leaf for name, leaf in weights.items()}


def begun_at_centre(
    method: Any,
    model: nn.Module,
    theta: Params,
    support: AnyBatch,
    inner: base.Inner,
    features: Tensor | None = None,
) -> base.Inner:
    """Return inner problems in what else adapts as problems in the head too, begun at each task's centre.

    They are solved in what is added to the centre. That begins at zero, and is pulled to zero where the rest is pulled
    to theta. The centre is data that depends on theta, so the solution's derivative in data carries the gradient on.

    Parameters
    ----------
    features:
        of the support set, where they are known.
    """
    centre = centre_of(method, model, theta, support, features)
    zeros = {name: torch.zeros_like(leaf, requires_grad=False) for name, leaf in centre.items()}
    assert isinstance(inner.objective, Composed)
    return inner._replace(
        objective=_about(inner.objective),
        init=inner.init | zeros,
        theta=inner.theta | {name: leaf[0] for name, leaf in zeros.items()},
        data=_Centred(inner.data, centre),
        centre=centre,
    )


def with_raw_data(method: Any, model: nn.Module, inner: base.Inner, support: AnyBatch) -> base.Inner:
    """Return the inner problems of ``support`` with itself as data: the objective computes each task's centre.

    That is for what takes data as given, such as :func:`metagrad.check_meta_gradient`. It is slower, because the centre
    is computed at every evaluation.
    """
    if inner.centre is None:
        return inner
    objective, names = inner.objective, list(inner.centre)
    assert isinstance(objective, Composed)
    outputs_of_tasks, loss_of_tasks, regulariser = (
        objective.outputs_of_tasks,
        objective.loss_of_tasks,
        objective.regulariser,
    )
    assert outputs_of_tasks is not None
    assert loss_of_tasks is not None

    def outputs(phi: Params, theta: Params, data: Any) -> Tensor:
        return outputs_of_tasks(phi, theta, _Centred(data, centre_of(method, model, theta, data)))

    def pull(phi: Params, theta: Params) -> Tensor:
        assert regulariser is not None
        return regulariser(phi, theta | {name: torch.zeros_like(phi[name]) for name in names})

    inside = Composed(
        outputs=lambda phi, theta, data: outputs(_of_one(phi), theta, _of_one(data))[0],
        loss=lambda outputs, data: loss_of_tasks(outputs[None], _Centred(_of_one(data), {}))[0],
        regulariser=None if regulariser is None else pull,
        outputs_of_tasks=outputs,
        loss_of_tasks=lambda outputs, data: loss_of_tasks(outputs, _Centred(data, {})),
    )
    return inner._replace(objective=inside, data=support)


def _of_one(part: Any) -> Any:
    return tree.map_tensors(lambda leaf: leaf[None], part)


def centre_of(
    method: Any, model: nn.Module, theta: Params, support: AnyBatch, features: Tensor | None = None
) -> Params:
    """Return where each task's head begins, ``(T, ways, F)`` and ``(T, ways)``, named as in the network."""
    head = _linear_head(method, model)
    if support.y.is_floating_point():
        raise ValueError(f"start={method.start!r} needs labels: for other targets take start='rows'")
    if method.start == "shared":
        ways = int(support.y.max()) + 1  # all that the host reads
        rows = {name: theta[f".start/{name}"] for name in ("weight", "bias") if f".start/{name}" in theta}
        found = {name: leaf.expand(len(support.y), ways, *leaf.shape) for name, leaf in rows.items()}
    else:
        prototypes, _ = prototypes_of(support_features(model, theta, method.head, support, features), support.weight)
        scale = theta[".log_scale"].exp()
        found = {"weight": 2 * scale * prototypes, "bias": -scale * prototypes.square().sum(-1)}
    return {f"{head.path}.{name}": leaf for name, leaf in found.items()}


def _linear_head(method: Any, model: nn.Module) -> Head:
    head = Head.of(model, method.head)
    require_linear(head)
    if method.start == "prototypes" and head.module.bias is None:
        raise MetagradError(f"{head.path} has no bias, which prototypes need: take start='shared'")
    return head


def _about(objective: Composed) -> Composed:
    """Return an objective in what is added to a centre that comes with the data."""
    outputs_of_tasks, loss_of_tasks = objective.outputs_of_tasks, objective.loss_of_tasks
    assert outputs_of_tasks is not None
    assert loss_of_tasks is not None
    return replace(
        objective,
        outputs=lambda phi, theta, data: objective.outputs(base.added(phi, data.centre), theta, data.batch),
        loss=lambda outputs, data: objective.loss(outputs, data.batch),
        outputs_of_tasks=lambda phi, theta, data: outputs_of_tasks(base.added(phi, data.centre), theta, data.batch),
        loss_of_tasks=lambda outputs, data: loss_of_tasks(outputs, data.batch),
    )
