"""Methods that cut the network in two: only its head adapts, or all but its head."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from metagrad import tree
from metagrad.errors import MetagradError
from metagrad.fewshot import batched_forward, module_lock, task_losses
from metagrad.fewshot.algorithms import base
from metagrad.fewshot.algorithms.closed_form import require_linear
from metagrad.fewshot.algorithms.hyperparameters import require_positive, require_solves, weights_of
from metagrad.fewshot.algorithms.start import BeginsHead, begun_at_centre, learned_start
from metagrad.fewshot.head import Adapts, Head, adapted, last_layer
from metagrad.fewshot.tasks import AnyBatch, num_tasks
from metagrad.implicit import (
    CG,
    Adjoint,
    GradientDescent,
    HessianFree,
    Implicit,
    InnerSolver,
    Proximal,
    Solution,
    Unroll,
)
from metagrad.tree import Params

Features = Literal["cached", "recomputed"]


@dataclass(frozen=True, kw_only=True)
class AdaptsHead(base.AdaptsWeights):
    """A method whose tasks share the body and adapt the head; each subclass defines its inner problem.

    Parameters
    ----------
    head:
        the weights that a task adapts, by a pattern of their names. In Python also a module of the network.
    features:
        when the body computes its features of the images: once (``"cached"``; the head must be the network's last
        module), or anew at every inner step and product, as published implementations do (``"recomputed"``). The
        gradients are the same to rounding.
    loss, metric:
        see :class:`~metagrad.fewshot.Method`.
    """

    head: Adapts = "head.*"
    features: Features = "cached"

    def __post_init__(self) -> None:
        if self.features not in ("cached", "recomputed"):
            raise MetagradError(f"features is 'cached' or 'recomputed', got {self.features!r}")

    def in_head(
        self,
        model: nn.Module,
        theta: Params,
        support: AnyBatch,
        start: Params,
        solver: InnerSolver,
        adjoint: Adjoint,
        regulariser: Proximal | None = None,
    ) -> base.Inner:
        """Return the inner problems in the head, begun at ``start`` for each task."""
        objective, body = base.support_loss(model, self.loss), self._body(model, theta)
        if self.features == "cached":
            head = Head.of(model, self.head)
            data = support._replace(x=head.features(body, support.x))
            objective = replace(
                objective,
                outputs=lambda phi, theta, batch: head.output(phi, batch.x),
                outputs_of_tasks=lambda phi, theta, batch: head.outputs(phi, batch.x),
                convex=isinstance(head.module, nn.Linear) and task_losses.is_convex(self.loss),
            )
            body = {}
        else:
            data = base.prepared(model, support)
        objective = replace(objective, regulariser=regulariser)
        return base.Inner(objective, tree.expand(start, num_tasks(support)), body, data, solver, adjoint)

    def predict(self, model: nn.Module, theta: Params, solution: Solution, x: Any) -> Tensor:
        """Return each task's outputs, ``(T, N, ways)``, for its inputs ``(T, N, ...)``."""
        body = self._body(model, theta)
        if self.features == "cached":
            head = Head.of(model, self.head)
            return head.outputs(solution.value, head.features(body, x))
        return batched_forward.outputs(model, base.all_weights(solution.value, body), x)

    def _body(self, model: nn.Module, theta: Params) -> Params:
        head = adapted(model, self.head)
        return {name: leaf for name, leaf in weights_of(theta).items() if name not in head}


@dataclass(frozen=True, kw_only=True)
class ANIL(BeginsHead, AdaptsHead):
    """MAML whose tasks adapt the head alone: Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse", 2020.

    Parameters
    ----------
    inner_lr:
        step size of gradient descent on the support loss.
    inner_steps:
        number of gradient descent steps on the support loss, from the meta-learned head.
    start, start_scale:
        see :class:`BeginsHead`.
    head, features:
        see :class:`AdaptsHead`.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    name: ClassVar[str] = "anil"
    inner_lr: float = 0.1
    inner_steps: int = 5

    def __post_init__(self) -> None:
        AdaptsHead.__post_init__(self)
        BeginsHead.__post_init__(self)
        require_positive(self, "inner_lr", "inner_steps")

    def init(self, model: nn.Module) -> Params:
        """Return the model's weights, and what the heads begin at."""
        return learned_start(self, model, super().init(model))

    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> base.Inner:
        """Return every task's support loss in the head, begun at theta's, and steps that are differentiated."""
        solver = GradientDescent(lr=self.inner_lr, max_steps=self.inner_steps)
        if self.start == "rows":
            rows = {name: theta[name] for name in adapted(model, self.head)}
            return self.in_head(model, theta, support, rows, solver, Unroll())
        inner = self.in_head(model, theta, support, {}, solver, Unroll())
        features = inner.data.x if self.features == "cached" else None
        return begun_at_centre(self, model, theta, support, inner, features)


@dataclass(frozen=True, kw_only=True)
class BOIL(base.AdaptsWeights):
    """MAML whose tasks adapt all but the head: Oh, Yoo, Kim and Yun, "BOIL", ICLR 2021.

    Parameters
    ----------
    inner_lr:
        step size of gradient descent on the support loss.
    inner_steps:
        number of gradient descent steps on the support loss.
    head:
        the weights that do not adapt, by a pattern of their names. In Python also a module of the network.

    Raises
    ------
    MetagradError
        for a value outside its range; when used, for a head that is the whole network.
    """

    name: ClassVar[str] = "boil"
    inner_lr: float = 0.4
    inner_steps: int = 1
    head: Adapts = "head.*"

    def __post_init__(self) -> None:
        require_positive(self, "inner_lr", "inner_steps")

    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> base.Inner:
        """Return every task's support loss in the body, begun at theta's, and steps that are differentiated."""
        head = adapted(model, self.head)
        body = [name for name in theta if name not in head]
        if not body:
            raise MetagradError(f"the head {self.head!r} is the whole network: nothing is left to adapt")
        solver = GradientDescent(lr=self.inner_lr, max_steps=self.inner_steps)
        return base.support_inner(self, model, theta, support, body, solver, Unroll())


@dataclass(frozen=True, kw_only=True)
class FromFixedHead(AdaptsHead):
    """A head that is not meta-learned: every task begins at the model's own, pulled to zero by ``l2``.

    Parameters
    ----------
    l2:
        strength of ``(l2 / 2) ‖phi‖²`` in the inner problem, which at 0 has no unique solution.
    start:
        what every task's head begins at: the network's own rows (``"rows"``; a run sets them to zero), or ``"zero"``,
        with a row for each class that the task has, as many as there are.
    head, features:
        see :class:`AdaptsHead`.
    """

    l2: float = 1e-2
    start: Literal["rows", "zero"] = "rows"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start not in ("rows", "zero"):
            raise MetagradError(f"start is 'rows' or 'zero', got {self.start!r}")
        if self.l2 != 0:
            require_positive(self, "l2")

    @property
    def any_ways(self) -> bool:  # type: ignore[override]  # elsewhere a constant of the class
        """Whether tasks may have other ways than the network has outputs."""
        return self.start == "zero"

    def init(self, model: nn.Module) -> Params:
        """Return the model's weights but the head's: none where the body is frozen."""
        weights, head = super().init(model), adapted(model, self.head)
        last = last_layer(model)
        # A body that has no weights, such as one that brings features to one length, still stands before the head.
        behind = (
            "." not in last
            and last in dict(list(model.named_children())[1:])
            and all(name.startswith(f"{last}.") for name in head)
        )
        if set(module_lock.weights(model)) <= set(head) and not behind:
            raise MetagradError(f"the head {self.head!r} is the whole network: there is no body to meta-learn")
        return {name: leaf for name, leaf in weights.items() if name not in head}

    def begun_at_model(
        self, model: nn.Module, theta: Params, support: AnyBatch, solver: InnerSolver, adjoint: Adjoint
    ) -> base.Inner:
        """Return the inner problems, begun at the model's head."""
        weights, like = module_lock.weights(model), next(iter(theta.values()), None)
        start = {name: weights[name].detach() for name in adapted(model, self.head)}
        if like is not None:
            start = {name: leaf.to(like.dtype) for name, leaf in start.items()}
        if self.start == "zero":
            require_linear(Head.of(model, self.head))
            ways = int(support.y.max()) + 1  # all that the host reads
            start = {name: leaf.new_zeros(ways, *leaf.shape[1:]) for name, leaf in start.items()}
        regulariser = Proximal(self.l2, towards="zero") if self.l2 else None
        return self.in_head(model, theta, support, start, solver, adjoint, regulariser)


@dataclass(frozen=True, kw_only=True)
class ITDBiO(FromFixedHead):
    """Head adaptation from a fixed start, differentiated through.

    Ji, Yang and Liang, "Bilevel Optimization: Convergence Analysis and Enhanced Design", ICML 2021.

    Parameters
    ----------
    inner_lr:
        step size of gradient descent on the inner problem.
    inner_steps:
        number of gradient descent steps.
    l2, start, head, features:
        see :class:`FromFixedHead` and :class:`AdaptsHead`.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    name: ClassVar[str] = "itd-bio"
    inner_lr: float = 0.1
    inner_steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "inner_lr", "inner_steps")

    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> base.Inner:
        """Return every task's inner problem, and steps that are differentiated."""
        solver = GradientDescent(lr=self.inner_lr, max_steps=self.inner_steps)
        return self.begun_at_model(model, theta, support, solver, Unroll())


_NEWTON = HessianFree(max_steps=3)
_IMPLICIT = Implicit(linear_solver=CG(max_steps=20), curvature="gauss_newton")


@dataclass(frozen=True, kw_only=True)
class MemoryReduced(FromFixedHead):
    """Head adaptation from a fixed start, differentiated implicitly; no history of the steps is kept.

    Yang, Ma and Yu, "Memory-Reduced Meta-Learning with Guaranteed Convergence", AAAI 2025. Of a linear head the
    Gauss-Newton matrix is the Hessian. As published, ``l2`` is 0 (:meth:`published`): then 25 images leave most of the
    head undetermined, and the linear solve ends with a residual well above 1.

    Parameters
    ----------
    solver:
        how a task is solved. The default is 3 steps of Newton's method: the gradient is that of a solution, and the
        published 20 steps of descent of size 0.1 end far from one; features then grow until they die
        (docs/results-diary.md).
    adjoint:
        how the solution is differentiated. The default is 20 steps of conjugate gradients.
    l2, start, head, features:
        see :class:`FromFixedHead` and :class:`AdaptsHead`.

    Raises
    ------
    MetagradError
        for a value outside its range.
    """

    name: ClassVar[str] = "memory-reduced"
    solver: InnerSolver = _NEWTON
    adjoint: Adjoint = _IMPLICIT

    def __post_init__(self) -> None:
        super().__post_init__()
        require_solves(self)

    @classmethod
    def published(cls, *, inner_lr: float = 0.1) -> MemoryReduced:
        """Return the method as published: 20 steps of descent, no damping, 20 products, features recomputed."""
        adjoint = Implicit(linear_solver=CG(max_steps=20, on_negative="continue"), curvature="hessian")
        solver = GradientDescent(lr=inner_lr, max_steps=20)
        return cls(l2=0.0, solver=solver, adjoint=adjoint, features="recomputed")

    def inner(self, model: nn.Module, theta: Params, support: AnyBatch) -> base.Inner:
        """Return every task's inner problem."""
        return self.begun_at_model(model, theta, support, self.solver, self.adjoint)
