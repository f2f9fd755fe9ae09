"""The curvature of the inner problems at one point, as products from graphs that are built once and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

from metagrad import tree
from metagrad.implicit import host
from metagrad.implicit.derivatives import add_optional, grads, hessian_product, leaves_of, minus_mixed, vjp, vjp_phi
from metagrad.implicit.each import each_task
from metagrad.implicit.objective import Composed, Objective, Proximal
from metagrad.tree import Params

if TYPE_CHECKING:
    from metagrad.implicit.problem import Problem

Curvature = Literal["hessian", "gauss_newton"]


@dataclass(frozen=True)
class GaussNewton:
    """The parts of ``A = JᵀBJ + Λ`` of every task at one point; the graphs behind them are kept, as A's is.

    Attributes
    ----------
    jvp:
        ``v -> J v``, shaped as the outputs.
    vjp:
        ``w -> Jᵀ w``, parameters.
    output_hessian:
        ``w -> B w``, shaped as the outputs.
    shape:
        of the outputs, ``(T, ...)``.
    """

    jvp: Callable[[Params], Tensor]
    vjp: Callable[[Tensor], Params]
    output_hessian: Callable[[Tensor], Tensor]
    shape: torch.Size


@dataclass(frozen=True)
class Operator:
    """The curvature matrix A of every task at one point, as a product.

    Attributes
    ----------
    matvec:
        ``v -> A v`` on task-batched parameters; the graph behind it is kept, so a product costs no forward pass.
    shift:
        the diagonal Λ that the regulariser adds to A (its row sums, should it not be diagonal), or ``None`` where the
        objective does not show one. A solver may fall back on it; ``matvec`` is exact without it.
    parts:
        what a Gauss-Newton matrix is made of; ``None`` for any other.
    """

    matvec: Callable[[Params], Params]
    shift: Params | None = None
    parts: GaussNewton | None = None

    def __call__(self, v: Params) -> Params:
        """Return ``A v``, task by task."""
        return self.matvec(v)


class Convexity(NamedTuple):
    """What is known of the curvature without measuring it.

    ``weakest`` and ``strongest``: smallest and largest entry of the proximal term's Λ; ``inner``: whether the rest of
    the inner objective is convex; ``system``: whether the rest of the curvature matrix is positive semi-definite.
    """

    weakest: float | Tensor
    strongest: float | Tensor
    inner: bool
    system: bool


@dataclass(frozen=True)
class Linearisation:
    """The second derivatives of one point, from one retained graph.

    Attributes
    ----------
    operator:
        the curvature matrix in phi.
    gradient:
        dg/dphi, detached.
    theta_vjp:
        ``u -> −(d²g / d(theta, data) dphi)ᵀ u``, one entry for each tensor of theta and data that asks for a
        gradient (``None`` where it has no influence). Frees the graph: call it last.
    convexity:
        what is known of the curvature; ``None`` without a proximal term.
    """

    operator: Operator
    gradient: Params
    theta_vjp: Callable[[Params], list[Tensor | None]]
    convexity: Convexity | None = None


def with_proximal(gradient: Params, proximal: Proximal, phi: Params, theta: Params) -> Params:
    """Return the gradient with that of the proximal term added."""
    lam = proximal.lam
    if not callable(lam):  # in place: each is as large as all weights
        gradient = {name: g.add(phi[name], alpha=lam) for name, g in gradient.items()}
        return (
            {n: g.sub_(theta[n], alpha=lam) for n, g in gradient.items()} if proximal.towards == "theta" else gradient
        )
    strengths, off = proximal.at(theta, phi), proximal.offset(phi, theta)
    return {name: torch.addcmul(g, strengths[name], off[name]) for name, g in gradient.items()}


@dataclass(frozen=True)
class _Regularisation:
    """Derivatives of the regulariser R at one point.

    ``shift``: the diagonal of ``d²R/dphi²``; ``add_gradient``: ``a -> a + dR/dphi``; ``add_product``:
    ``(a, v) -> a + d²R/dphi² v``, which may overwrite ``a``; ``mixed``: ``(inputs, u) -> −(d²R / dinputs dphi)ᵀ u``.
    """

    shift: Params | None
    add_gradient: Callable[[Params], Params]
    add_product: Callable[[Params, Params], Params]
    mixed: Callable[[list[Tensor], Params], list[Tensor | None]]


_NO_REGULARISER = _Regularisation(None, lambda a: a, lambda a, v: a, lambda inputs, u: [None] * len(inputs))


def _regularisation(objective: Objective, phi: Params, theta: Params) -> _Regularisation:
    regulariser = objective.regulariser if isinstance(objective, Composed) else None
    if regulariser is None:
        return _NO_REGULARISER
    if isinstance(regulariser, Proximal):
        return _proximal(regulariser, phi, theta)
    value = each_task(regulariser, phi, theta, shared=(1,)).sum()
    if not value.requires_grad:  # constant in phi
        return _NO_REGULARISER
    gradient = grads(value, phi, create_graph=True)
    return _Regularisation(
        hessian_product(gradient, phi, {name: torch.ones_like(g) for name, g in gradient.items()}),
        lambda a: tree.add(a, tree.detach(gradient)),
        lambda a, v: tree.add(a, hessian_product(gradient, phi, v)),
        lambda inputs, u: minus_mixed(gradient, inputs, u, keep=True),
    )


def _proximal(proximal: Proximal, phi: Params, theta: Params) -> _Regularisation:
    lam = proximal.at(theta, phi)
    flat_phi, flat_theta = tree.detach(phi), tree.detach(theta)
    known = tree.detach(lam)
    names = {id(theta[name]): name for name in phi} if proximal.towards == "theta" else {}

    def add_product(a: Params, v: Params) -> Params:
        # Popped: never two of all weights.
        if not callable(fixed := proximal.lam):
            return {name: a.pop(name).add(v[name], alpha=fixed) for name in list(a)}
        return {name: torch.addcmul(a.pop(name), known[name], v[name]) for name in list(a)}

    def mixed(inputs: list[Tensor], u: Params) -> list[Tensor | None]:
        through_theta = [
            known[names[id(leaf)]] * u[names[id(leaf)]].sum(0) if id(leaf) in names else None for leaf in inputs
        ]
        if not callable(proximal.lam):
            return through_theta
        off = proximal.offset(flat_phi, flat_theta)
        weights = [-(off[name] * u[name]).sum(0).sum_to_size(strength.shape) for name, strength in lam.items()]
        return add_optional(through_theta, vjp(list(lam.values()), inputs, weights, keep=True))

    shift = {
        name: torch.as_tensor(known[name], dtype=leaf.dtype, device=leaf.device).expand_as(leaf)
        for name, leaf in phi.items()
    }
    return _Regularisation(shift, lambda a: with_proximal(a, proximal, flat_phi, flat_theta), add_product, mixed)


def hessian(problem: Problem, phi: Params) -> Linearisation:
    """Linearise with the exact Hessian: products are derivatives of the kept gradient."""
    rest, proximal = problem.without_proximal()
    with torch.enable_grad():
        leaves = leaves_of(phi)
        gradient = grads(rest.value(leaves).sum(), leaves, create_graph=True)
        theta = problem.theta if proximal else tree.detach(problem.theta)
        regularisation = _regularisation(problem.objective, leaves, theta)
    # Any regulariser but a proximal one is in the gradient already.
    added = regularisation if proximal else _NO_REGULARISER

    def matvec(v: Params) -> Params:
        return added.add_product(hessian_product(gradient, leaves, v), v)

    def theta_vjp(u: Params) -> list[Tensor | None]:
        inputs = tree.differentiable((problem.theta, problem.data))
        return add_optional(minus_mixed(gradient, inputs, u, keep=False), added.mixed(inputs, u))

    operator, whole = Operator(matvec, regularisation.shift), added.add_gradient(tree.detach(gradient))
    return Linearisation(operator, whole, theta_vjp, _convexity(problem, phi, "hessian"))


def gauss_newton(problem: Problem, phi: Params) -> Linearisation:
    """Linearise with ``JᵀBJ + Λ``.

    For cross-entropy of a softmax and for squared errors, JᵀBJ is the Fisher matrix too, so that has no name of its own
    here. (The "empirical" Fisher matrix, of gradients at the labels, vanishes where a task is fitted.)

    ``Jᵀ w`` is a graph at ``w = 0``: it gives ``Jᵀ w`` for any w, and its own transpose is J. Both graphs are kept, so
    a product evaluates nothing anew. Forward mode would repeat the forward pass each time.
    """
    objective = problem.objective
    if not isinstance(objective, Composed):
        raise TypeError(
            "curvature='gauss_newton' needs the objective's structure: build it as "
            "metagrad.Composed(outputs, loss, regulariser), or use curvature='hessian'"
        )
    theta, data = problem.theta, problem.data
    with torch.enable_grad():
        leaves = leaves_of(phi)
        outputs = objective.outputs_batched(leaves, theta, data)
        cotangent = torch.zeros_like(outputs).requires_grad_()
        pulled = torch.autograd.grad(
            outputs, list(leaves.values()), cotangent, create_graph=True, materialize_grads=True
        )
        at_outputs = outputs.detach().requires_grad_()
        loss = objective.losses(at_outputs, data).sum()
        (loss_grad,) = torch.autograd.grad(loss, at_outputs, create_graph=True)
        regularisation = _regularisation(objective, leaves, theta)
    whole = regularisation.add_gradient(vjp_phi([outputs], leaves, [loss_grad.detach()]))

    def jvp(v: Params) -> Tensor:
        (forward,) = vjp(list(pulled), [cotangent], [v[name] for name in leaves], keep=True)
        return torch.zeros_like(cotangent) if forward is None else forward

    def output_hessian(w: Tensor) -> Tensor:
        (product,) = vjp([loss_grad], [at_outputs], [w], keep=True)
        return torch.zeros_like(w) if product is None else product

    def matvec(v: Params) -> Params:
        forward = jvp(v)
        product = output_hessian(forward)
        _require_convex(forward, product)
        return regularisation.add_product(parts.vjp(product), v)

    def theta_vjp(u: Params) -> list[Tensor | None]:
        inputs = tree.differentiable((theta, data))
        mixed = regularisation.mixed(inputs, u)
        # Does any input reach the loss? In iMAML none does, and asking costs nothing; features handed over as data do,
        # and then the whole mixed derivative is taken.
        probe = vjp([outputs, loss_grad], inputs, [torch.zeros_like(outputs), loss_grad.detach()], keep=True)
        if all(part is None for part in probe):
            return mixed
        with torch.enable_grad():
            gradient = grads(objective.losses(outputs, data).sum(), leaves, create_graph=True)
        return add_optional(mixed, minus_mixed(gradient, inputs, u, keep=False))

    parts = GaussNewton(jvp, lambda w: vjp_phi([outputs], leaves, [w]), output_hessian, outputs.shape)
    operator = Operator(matvec, regularisation.shift, parts)
    return Linearisation(operator, whole, theta_vjp, _convexity(problem, phi, "gauss_newton"))


def _require_convex(forward: Tensor, product: Tensor) -> None:
    """Refuse a loss that curves downwards in the outputs, where the host may read it."""
    if not host.may_read(forward):
        return
    forward, product = forward.reshape(len(forward), -1), product.reshape(len(product), -1)
    eps, size = torch.finfo(forward.dtype).eps, forward.norm(dim=1)
    # A softmax that is sure of itself has next to no curvature: what is left of it then is rounding, of either sign,
    # in proportion to the outputs and not to itself.
    rounding = eps**0.5 * size * product.norm(dim=1) + eps * size**2
    if ((forward * product).sum(1) < -rounding).any():
        raise ValueError("the loss is not convex in the outputs, so Gauss-Newton says nothing: use curvature='hessian'")


def _convexity(problem: Problem, phi: Params, kind: Curvature) -> Convexity | None:
    objective = problem.objective
    if not isinstance(objective, Composed) or not isinstance(objective.regulariser, Proximal):
        return None
    lam = objective.regulariser.lam
    inner, system = objective.convex, objective.convex or kind == "gauss_newton"
    if not callable(lam):
        return Convexity(lam, lam, inner, system)
    lams = torch.cat([part.flatten() for part in objective.regulariser.at(tree.detach(problem.theta), phi).values()])
    return Convexity(*lams.aminmax(), inner, system)
