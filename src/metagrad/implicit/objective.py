"""What an inner objective is: a function written for ONE task, which may show its structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from metagrad import scalars, tree
from metagrad.errors import NotFiniteError
from metagrad.implicit import host
from metagrad.implicit.each import each_task
from metagrad.tree import Hyper, Params

Objective = Callable[[Params, Params, Any], Tensor]


@dataclass(frozen=True)
class Proximal:
    """The regulariser ``½ (phi − c)ᵀ Λ (phi − c)``: phi stays near c, the theta of the same name and shape, or zero.

    Its derivatives are closed-form, which avoids about ten passes of autograd over the weights per step.

    Attributes
    ----------
    lam:
        Λ: a positive number, or a function of theta that gives a tensor (scalar λ) or one for each name of phi, of
        any shape that broadcasts to it (one λ a tensor, one λ a parameter). A function makes λ learnable: keep it
        positive by construction, as ``lambda theta: theta[".log_lam"].exp()`` does.
    towards:
        ``"theta"``; or ``"zero"``, which is weight decay.
    """

    lam: Hyper
    towards: Literal["theta", "zero"] = "theta"

    def __post_init__(self) -> None:
        if self.towards not in ("theta", "zero"):
            raise ValueError(f"towards is 'theta' or 'zero', got {self.towards!r}")
        scalars.require_positive(self, "lam", learnable=True)

    def __call__(self, phi: Params, theta: Params) -> Tensor:
        """Return the value for one task."""
        lam, off = self.at(theta, phi), self.offset(phi, theta)
        return torch.stack([(lam[name] * off[name].square()).sum() for name in phi]).sum() / 2

    def offset(self, phi: Params, theta: Params) -> Params:
        """Return ``phi − c``."""
        return phi if self.towards == "zero" else {name: leaf - theta[name] for name, leaf in phi.items()}

    def at(self, theta: Params, names: Iterable[str]) -> dict[str, Any]:
        """Return lam at ``theta``: for each name a number or a tensor that broadcasts to phi's."""
        lam = tree.resolve(self.lam, theta, names)
        return dict.fromkeys(names, lam) if isinstance(lam, float) else dict(lam)

    def require_positive(self, theta: Params, names: Iterable[str]) -> None:
        """Raise ``NotFiniteError`` for a learned lam that is not positive; where the host may not read, trust it."""
        if not callable(self.lam):
            return
        for name, lam in self.at(theta, names).items():
            if host.may_read(lam) and not (lam > 0).all():
                least = lam.min().item()
                raise NotFiniteError(
                    f"lam of {name!r} must be positive, got {least:.3g}: learn its logarithm, in smaller steps"
                )


@dataclass(frozen=True)
class Composed:
    """An objective with its structure showing: ``g = loss(outputs(phi, theta, data), data) + regulariser``.

    Callable like any objective. Knowing the parts allows the Gauss-Newton matrix ``JᵀBJ + Λ``: J the Jacobian of
    the outputs in phi, B the Hessian of the loss in the outputs, Λ the Hessian of the regulariser in phi.

    Attributes
    ----------
    outputs:
        ``(phi, theta, data) -> Tensor``, the model's outputs for one task.
    loss:
        ``(outputs, data) -> scalar``, convex in the outputs (cross-entropy, squared error).
    regulariser:
        ``(phi, theta) -> scalar``, quadratic in phi with a diagonal Hessian, or ``None``. :class:`Proximal` is fastest.
    outputs_of_tasks, loss_of_tasks:
        the same for T tasks at once (phi, data and outputs with their task axis, theta without; the loss is ``(T,)``),
        where the author can do better than ``vmap``; ``None``: ``vmap`` it is.
    convex:
        whether the loss is convex in phi (outputs linear in phi, as for a head alone). Then how far a solution may be
        from the exact one is known, and not only estimated.
    """

    outputs: Callable[[Params, Params, Any], Tensor]
    loss: Callable[[Tensor, Any], Tensor]
    regulariser: Callable[[Params, Params], Tensor] | None = None
    outputs_of_tasks: Callable[[Params, Params, Any], Tensor] | None = None
    loss_of_tasks: Callable[[Tensor, Any], Tensor] | None = None
    convex: bool = field(default=False, kw_only=True)

    def __call__(self, phi: Params, theta: Params, data: Any) -> Tensor:
        """Return the objective's value for one task."""
        value = self.loss(self.outputs(phi, theta, data), data)
        return value if self.regulariser is None else value + self.regulariser(phi, theta)

    def fit(self, phi: Params, theta: Params, data: Any) -> Tensor:
        """Return the loss of T tasks, ``(T,)``, without the regulariser."""
        return self.losses(self.outputs_batched(phi, theta, data), data)

    def outputs_batched(self, phi: Params, theta: Params, data: Any) -> Tensor:
        """Return the outputs of T tasks, with phi's digits at least.

        Under autocast a network gives fewer; the loss and its curvature are cheap, and lose nothing more.
        """
        if self.outputs_of_tasks:
            outputs = self.outputs_of_tasks(phi, theta, data)
        else:
            outputs = each_task(self.outputs, phi, theta, data, shared=(1,))
        if outputs.dim() == 0 or len(outputs) != tree.num_tasks(phi):
            raise ValueError(f"outputs_of_tasks must keep the task axis first, got {tuple(outputs.shape)}")
        return outputs.to(torch.promote_types(outputs.dtype, next(iter(phi.values())).dtype))

    def losses(self, outputs: Tensor, data: Any) -> Tensor:
        """Return the loss of each task's outputs, ``(T,)``.

        Raises
        ------
        ValueError
            for a loss of all tasks that has another shape: a mean over tasks would mix them.
        """
        losses = self.loss_of_tasks(outputs, data) if self.loss_of_tasks else each_task(self.loss, outputs, data)
        if losses.shape != outputs.shape[:1]:
            name = "loss_of_tasks" if self.loss_of_tasks else "loss"
            wanted = "(T,), one loss a task," if self.loss_of_tasks else "a scalar for one task,"
            raise ValueError(f"{name} must return {wanted} got {tuple(losses.shape)} for {len(outputs)} tasks")
        return losses
