"""What is solved: one inner problem per task, and the derivatives every solver needs.

``Problem`` is the only place that calls ``vmap`` or ``autograd.grad``. An objective is written for ONE task;
tasks are independent, so the gradient of the sum over tasks is every task's own gradient. Taking it with
``torch.autograd`` on the vmapped value (rather than ``vmap(grad)``) keeps one graph that can be differentiated
again, which is how curvature products reuse a single forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from metagrad import tree
from metagrad.implicit import host
from metagrad.tree import Hyper, Params

Objective = Callable[[Params, Params, Any], Tensor]
Curvature = Literal["hessian", "gauss_newton"]


@dataclass(frozen=True)
class Proximal:
    """The regulariser ``½ (phi − theta)ᵀ Λ (phi − theta)``: phi stays near the theta of the same name and shape.

    A function of one task like any other, but known: its derivatives are written out, where autograd would pass over
    all weights ten times a step.

    Attributes
    ----------
    lam:
        Λ: a positive number, or a function of theta that gives a tensor (scalar λ) or one for each name of phi, of
        any shape that broadcasts to it (one λ a tensor, one λ a parameter). A function makes λ learnable: keep it
        positive by construction, as ``lambda theta: theta[".log_lam"].exp()`` does.
    """

    lam: Hyper

    def __post_init__(self) -> None:
        if not callable(self.lam) and not self.lam > 0:
            raise ValueError(f"lam must be positive, got {self.lam}")

    def __call__(self, phi: Params, theta: Params) -> Tensor:
        """Return the value for one task."""
        lam = self.at(theta, phi)
        return torch.stack([(lam[name] * (phi[name] - theta[name]).square()).sum() for name in phi]).sum() / 2

    def at(self, theta: Params, names: Iterable[str]) -> dict[str, Any]:
        """Return lam at ``theta``: for each name a number or a tensor that broadcasts to phi's."""
        lam = tree.resolve(self.lam, theta, names)
        return dict.fromkeys(names, lam) if isinstance(lam, float) else dict(lam)

    def require_positive(self, theta: Params, names: Iterable[str]) -> None:
        """Refuse a learned lam that is not positive; where the host may not look, trust it.

        Raises
        ------
        ValueError
            naming the parameter.
        """
        if not callable(self.lam):
            return
        for name, lam in self.at(theta, names).items():
            if host.may_look(lam) and not (lam > 0).all():
                raise ValueError(f"lam of {name!r} must be positive, got {lam.min().item():.3g}: learn its logarithm")


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
    """

    outputs: Callable[[Params, Params, Any], Tensor]
    loss: Callable[[Tensor, Any], Tensor]
    regulariser: Callable[[Params, Params], Tensor] | None = None
    outputs_of_tasks: Callable[[Params, Params, Any], Tensor] | None = None
    loss_of_tasks: Callable[[Tensor, Any], Tensor] | None = None

    def __call__(self, phi: Params, theta: Params, data: Any) -> Tensor:
        """Return the objective's value for one task."""
        value = self.loss(self.outputs(phi, theta, data), data)
        return value if self.regulariser is None else value + self.regulariser(phi, theta)

    def fit(self, phi: Params, theta: Params, data: Any) -> Tensor:
        """Return the loss of T tasks, ``(T,)``, without the regulariser."""
        return self.losses(self.outputs_batched(phi, theta, data), data)

    def outputs_batched(self, phi: Params, theta: Params, data: Any) -> Tensor:
        """Return the outputs of T tasks."""
        batched = self.outputs_of_tasks or torch.vmap(self.outputs, in_dims=(0, None, 0))
        return batched(phi, theta, data)

    def losses(self, outputs: Tensor, data: Any) -> Tensor:
        """Return the loss of each task's outputs, ``(T,)``."""
        return (self.loss_of_tasks or torch.vmap(self.loss))(outputs, data)


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


@dataclass(frozen=True)
class Problem:
    """T independent inner problems ``argmin_phi g(phi, theta; data)`` that share ``theta``.

    Attributes
    ----------
    objective:
        written for one task, returns a scalar.
    theta:
        what is meta-learned; no task axis.
    data:
        any nest of tensors (dictionaries, tuples, lists), each with a leading task axis.
    create_graph:
        whether values and gradients stay differentiable (for unrolling). Off: results are detached.
    """

    objective: Objective
    theta: Params
    data: Any
    create_graph: bool = field(default=False, kw_only=True)

    def detached(self) -> Problem:
        """Return the same problem with theta and data cut from the graph, and nothing recorded."""
        return Problem(self.objective, tree.detach(self.theta), tree.detach(self.data))

    def value(self, phi: Params) -> Tensor:
        """Return ``g`` per task, ``(T,)``."""
        objective = self.objective
        if not isinstance(objective, Composed):
            return torch.vmap(objective, in_dims=(0, None, 0))(phi, self.theta, self.data)
        value = objective.fit(phi, self.theta, self.data)
        if objective.regulariser is None:
            return value
        return value + torch.vmap(objective.regulariser, in_dims=(0, None))(phi, self.theta)

    def grad(self, phi: Params) -> Params:
        """Return ``dg/dphi`` per task, shaped as ``phi``."""
        with torch.enable_grad():
            leaves = phi if self.create_graph else _leaves(phi)
            rest, proximal = _without_proximal(self)
            found = _grads(rest.value(leaves).sum(), leaves, create_graph=self.create_graph)
        return found if proximal is None else _with_pull(found, proximal, phi, self.theta)

    def value_and_grad(self, phi: Params) -> tuple[Tensor, Params]:
        """Return ``g``, ``(T,)``, and ``dg/dphi`` from one pass."""
        with torch.enable_grad():
            leaves = phi if self.create_graph else _leaves(phi)
            rest, proximal = _without_proximal(self)
            value = rest.value(leaves)
            found = _grads(value.sum(), leaves, create_graph=self.create_graph)
        value = value if self.create_graph else value.detach()
        if proximal is None:
            return value, found
        return value + torch.vmap(proximal, in_dims=(0, None))(phi, self.theta), _with_pull(
            found, proximal, phi, self.theta
        )

    def linearise(self, phi: Params, kind: Curvature) -> Linearisation:
        """Build the graph at ``phi`` once, for any number of curvature products and mixed derivatives."""
        if kind == "hessian":
            return _hessian(self, phi)
        if kind == "gauss_newton":
            return _gauss_newton(self, phi)
        raise ValueError(f"curvature is 'hessian' or 'gauss_newton', got {kind!r}")

    def curvature(self, phi: Params, kind: Curvature) -> Operator:
        """Return the curvature operator at ``phi``.

        Raises
        ------
        TypeError
            if ``kind`` is ``"gauss_newton"`` and the objective does not show its structure.
        """
        return self.linearise(phi, kind).operator


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
    """

    operator: Operator
    gradient: Params
    theta_vjp: Callable[[Params], list[Tensor | None]]


def check_objective(objective: Objective, init: Params, theta: Params, data: Any) -> None:
    """Evaluate the objective on the first task and refuse what would silently go wrong.

    Raises
    ------
    ValueError
        if the value is not a scalar; if it does not depend on phi; or if it still requires a gradient when all
        arguments are detached: then it captured a tensor from outside, which would get no gradient.
    """
    phi, data = (tree.map_tensors(lambda leaf: leaf[0].detach(), part) for part in (init, data))
    theta = tree.detach(theta)
    if isinstance(objective, Composed) and isinstance(objective.regulariser, Proximal):
        objective.regulariser.require_positive(theta, init)
    if torch.is_inference_mode_enabled():
        raise ValueError("argmin needs gradients, which torch.inference_mode() forbids: use torch.no_grad() around it")
    with torch.enable_grad():
        value = objective(phi, theta, data)
        if not isinstance(value, Tensor) or value.dim() != 0:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the objective must return a scalar for one task, got {shape}")
        if value.requires_grad:
            raise ValueError(
                "the objective captured a tensor that requires a gradient and would silently get none: "
                "pass it in theta (shared by the tasks) or in data (one per task)"
            )
        if not objective(_leaves(phi), theta, data).requires_grad:
            raise ValueError("the objective does not depend on phi: there is nothing to minimise")


def _leaves(params: Params) -> Params:
    """Cut ``params`` from their history and ask for gradients."""
    return {name: leaf.detach().requires_grad_() for name, leaf in params.items()}


def _grads(value: Tensor, phi: Params, *, create_graph: bool) -> Params:
    """Differentiate a sum over tasks; a parameter that has no influence gets zeros."""
    found = torch.autograd.grad(value, list(phi.values()), create_graph=create_graph, materialize_grads=True)
    return dict(zip(phi, found, strict=True))


def _pull(outputs: list[Tensor], inputs: list[Tensor], weights: list[Tensor], *, keep: bool) -> list[Tensor | None]:
    """Vector-Jacobian product through whichever outputs have a graph; ``None`` where nothing depends."""
    live = [(out, weight) for out, weight in zip(outputs, weights, strict=True) if out.requires_grad]
    if not live or not inputs:
        return [None] * len(inputs)
    outs, grads = zip(*live, strict=True)
    return list(torch.autograd.grad(outs, inputs, grads, retain_graph=keep, allow_unused=True))


def _pull_phi(outputs: list[Tensor], phi: Params, weights: list[Tensor]) -> Params:
    """As :func:`_pull`, kept, with zeros for missing dependence, named as ``phi``."""
    found = _pull(outputs, list(phi.values()), weights, keep=True)
    return {
        name: torch.zeros_like(leaf) if part is None else part
        for (name, leaf), part in zip(phi.items(), found, strict=True)
    }


def _with_pull(gradient: Params, proximal: Proximal, phi: Params, theta: Params) -> Params:
    """Add the gradient of the proximal term."""
    lam = proximal.lam
    if not callable(lam):
        return {name: g.add(phi[name], alpha=lam).sub_(theta[name], alpha=lam) for name, g in gradient.items()}
    strengths = proximal.at(theta, phi)
    return {name: torch.addcmul(g, strengths[name], phi[name] - theta[name]) for name, g in gradient.items()}


def _without_proximal(problem: Problem) -> tuple[Problem, Proximal | None]:
    """Part a problem in what autograd differentiates and a proximal term, which needs none."""
    objective = problem.objective
    if isinstance(objective, Composed) and isinstance(objective.regulariser, Proximal):
        return replace(problem, objective=replace(objective, regulariser=None)), objective.regulariser
    return problem, None


@dataclass(frozen=True)
class _Bend:
    """Derivatives of the regulariser R at one point.

    ``shift``: the diagonal of ``d²R/dphi²``; ``add_gradient``: ``a -> a + dR/dphi``; ``add_product``:
    ``(a, v) -> a + d²R/dphi² v``, which may use a up; ``mixed``: ``(inputs, u) -> −(d²R / dinputs dphi)ᵀ u``.
    """

    shift: Params | None
    add_gradient: Callable[[Params], Params]
    add_product: Callable[[Params, Params], Params]
    mixed: Callable[[list[Tensor], Params], list[Tensor | None]]


_FLAT = _Bend(None, lambda a: a, lambda a, v: a, lambda inputs, u: [None] * len(inputs))


def _bend(objective: Objective, phi: Params, theta: Params) -> _Bend:
    regulariser = objective.regulariser if isinstance(objective, Composed) else None
    if regulariser is None:
        return _FLAT
    if isinstance(regulariser, Proximal):
        return _proximal_bend(regulariser, phi, theta)
    value = torch.vmap(regulariser, in_dims=(0, None))(phi, theta).sum()
    if not value.requires_grad:  # constant in phi
        return _FLAT
    gradient = _grads(value, phi, create_graph=True)

    def add(a: Params, b: Params) -> Params:
        return {name: part + b[name] for name, part in a.items()}

    return _Bend(
        _pull_phi(list(gradient.values()), phi, [torch.ones_like(g) for g in gradient.values()]),
        lambda a: add(a, tree.detach(gradient)),
        lambda a, v: add(a, _pull_phi(list(gradient.values()), phi, _in_order(v, phi))),
        lambda inputs, u: _pull(list(gradient.values()), inputs, [-part for part in _in_order(u, phi)], keep=True),
    )


def _proximal_bend(proximal: Proximal, phi: Params, theta: Params) -> _Bend:
    lam = proximal.at(theta, phi)
    flat_phi, flat_theta = tree.detach(phi), tree.detach(theta)
    known = {name: strength.detach() if isinstance(strength, Tensor) else strength for name, strength in lam.items()}
    names = {id(theta[name]): name for name in phi}

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
        weights = [
            -((flat_phi[name] - flat_theta[name]) * u[name]).sum(0).sum_to_size(strength.shape)
            for name, strength in lam.items()
        ]
        through_lam = _pull(list(lam.values()), inputs, weights, keep=True)
        return [_add(a, b) for a, b in zip(through_theta, through_lam, strict=True)]

    return _Bend(
        {
            name: torch.as_tensor(known[name], dtype=leaf.dtype, device=leaf.device).expand_as(leaf)
            for name, leaf in phi.items()
        },
        lambda a: _with_pull(a, proximal, flat_phi, flat_theta),
        add_product,
        mixed,
    )


def _hessian(problem: Problem, phi: Params) -> Linearisation:
    rest, proximal = _without_proximal(problem)
    with torch.enable_grad():
        leaves = _leaves(phi)
        gradient = list(_grads(rest.value(leaves).sum(), leaves, create_graph=True).values())
        # The regulariser is in the gradient already, unless it was taken out of it.
        bend = _bend(problem.objective, leaves, problem.theta if proximal else tree.detach(problem.theta))
        known = bend if proximal else _FLAT
    slope = known.add_gradient(tree.detach(dict(zip(phi, gradient, strict=True))))

    def matvec(v: Params) -> Params:
        return known.add_product(_pull_phi(gradient, leaves, _in_order(v, leaves)), v)

    def theta_vjp(u: Params) -> list[Tensor | None]:
        inputs = tree.differentiable((problem.theta, problem.data))
        found = _pull(gradient, inputs, [-part for part in _in_order(u, leaves)], keep=False)
        return [_add(a, b) for a, b in zip(found, known.mixed(inputs, u), strict=True)]

    return Linearisation(Operator(matvec, bend.shift), slope, theta_vjp)


def _gauss_newton(problem: Problem, phi: Params) -> Linearisation:
    """``JᵀBJ + Λ``, with ``Jᵀ w`` as a graph at ``w = 0``: it gives ``Jᵀ w`` for any w, and its own transpose is J.

    Both graphs are kept, so a product evaluates nothing anew. Forward mode would repeat the forward pass each time.
    """
    objective = problem.objective
    if not isinstance(objective, Composed):
        raise TypeError(
            "curvature='gauss_newton' needs the objective's structure: build it as "
            "metagrad.Composed(outputs, loss, regulariser), or use curvature='hessian'"
        )
    theta, data = problem.theta, problem.data
    with torch.enable_grad():
        leaves = _leaves(phi)
        outputs = objective.outputs_batched(leaves, theta, data)
        cotangent = torch.zeros_like(outputs).requires_grad_()
        pulled = list(
            torch.autograd.grad(outputs, list(leaves.values()), cotangent, create_graph=True, materialize_grads=True)
        )
        at_outputs = outputs.detach().requires_grad_()
        loss = objective.losses(at_outputs, data).sum()
        (loss_grad,) = torch.autograd.grad(loss, at_outputs, create_graph=True)
        bend = _bend(objective, leaves, theta)
    slope = bend.add_gradient(_pull_phi([outputs], leaves, [loss_grad.detach()]))

    def jvp(v: Params) -> Tensor:
        (forward,) = _pull(pulled, [cotangent], _in_order(v, leaves), keep=True)
        return torch.zeros_like(cotangent) if forward is None else forward

    def vjp(w: Tensor) -> Params:
        return _pull_phi([outputs], leaves, [w])

    def output_hessian(w: Tensor) -> Tensor:
        (bent,) = _pull([loss_grad], [at_outputs], [w], keep=True)
        return torch.zeros_like(w) if bent is None else bent

    def matvec(v: Params) -> Params:
        return bend.add_product(vjp(output_hessian(jvp(v))), v)

    def theta_vjp(u: Params) -> list[Tensor | None]:
        inputs = tree.differentiable((theta, data))
        mixed = bend.mixed(inputs, u)
        # Does any input reach the loss? In iMAML none does, and asking costs nothing; features handed over as data do,
        # and then the whole mixed derivative is taken.
        probe = _pull([outputs, loss_grad], inputs, [torch.zeros_like(outputs), loss_grad.detach()], keep=True)
        if any(part is not None for part in probe):
            with torch.enable_grad():
                value = objective.losses(outputs, data).sum()
                gradient = list(_grads(value, leaves, create_graph=True).values())
            through_loss = _pull(gradient, inputs, [-part for part in _in_order(u, leaves)], keep=False)
            mixed = [_add(a, b) for a, b in zip(mixed, through_loss, strict=True)]
        return mixed

    parts = GaussNewton(jvp, vjp, output_hessian, outputs.shape)
    return Linearisation(Operator(matvec, bend.shift, parts), slope, theta_vjp)


def _in_order(v: Params, phi: Params) -> list[Tensor]:
    """Pair by name: ``v`` may list its tensors in another order."""
    return [v[name] for name in phi]


def _add(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return b if a is None else a
    return a + b
