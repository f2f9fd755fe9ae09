"""Checks of an objective before it is solved, and of the solution: what would silently go wrong is refused."""

from __future__ import annotations

import math
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from metagrad import tree
from metagrad.errors import DivergedError, MetagradError, MetagradWarning, NotFiniteError
from metagrad.implicit import host
from metagrad.implicit.derivatives import ancestors, grads, leaves_of
from metagrad.implicit.each import each_task
from metagrad.implicit.fingerprint import fingerprint
from metagrad.implicit.linear import curvature_range
from metagrad.implicit.objective import Composed, Objective, Proximal
from metagrad.implicit.problem import Problem
from metagrad.implicit.solvers import InnerSolver, Nesterov, Solution
from metagrad.implicit.structure import at
from metagrad.tree import Params

# The latest objectives, with the names of phi that each makes no use of: validating costs two evaluations, and a
# training loop calls at every step.
_VALIDATED: OrderedDict[Hashable, tuple[list[weakref.ref[Any]], list[str]]] = OrderedDict()
_MOST = 256


def validate_objective(
    objective: Objective, init: Params, theta: Params, data: Any, *, guessed: bool = False
) -> list[str]:
    """Evaluate the objective on the first task; return the names of phi that it makes no use of.

    Once for the same code, captured objects and shapes. ``guessed``: nobody said that phi has a task axis.

    Raises
    ------
    ValueError
        if the value is not a scalar; if it does not depend on phi; if it still requires a gradient when all arguments
        are detached: then it captured a tensor from outside, which would get no gradient; if the functions of all
        tasks say something else than those of one; or if phi can be read with and without a task axis, and it matters.
    """
    if isinstance(objective, Composed) and isinstance(objective.regulariser, Proximal):
        _require_centre(objective.regulariser, init, theta)
        objective.regulariser.require_positive(theta, init)
    if torch.is_inference_mode_enabled():
        raise ValueError("argmin needs gradients, which torch.inference_mode() forbids: use torch.no_grad() around it")
    guessed = guessed and tree.num_tasks(init) > 1
    printed = fingerprint(objective, (init, theta, data, guessed))
    known = _VALIDATED.get(printed[0]) if printed else None
    if known is not None and all(ref() is not None for ref in known[0]):  # else another object may have the same id
        return known[1]
    unused = _unused(objective, init, theta, data, guessed)
    # Data say by their own axis what the tasks are.
    if guessed and not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(data)):
        _require_task_axis(objective, init, theta, data)
    if printed is not None:
        key, held = printed
        _VALIDATED[key] = held, unused
        if len(_VALIDATED) > _MOST:
            _VALIDATED.popitem(last=False)
    return unused


def _unused(objective: Objective, init: Params, theta: Params, data: Any, guessed: bool) -> list[str]:
    """Return the names of phi that the objective of the first task makes no use of; refuse what goes wrong there."""
    batched, whole = tree.map_tensors(lambda leaf: leaf[:1].detach(), (init, data)), data
    phi, data = tree.map_tensors(lambda leaf: leaf[0].detach(), (init, data))
    theta = tree.detach(theta)
    given = [leaf for leaf in pytree.tree_leaves((phi, theta, data)) if isinstance(leaf, Tensor)]
    versions = [leaf._version for leaf in given]
    with torch.enable_grad():
        try:
            value = objective(phi, theta, data)
        except Exception as error:
            ours = isinstance(error, MetagradError)
            if guessed and not ours and _as_one_problem(objective, init, theta, whole) is not None:
                raise ValueError(f"the objective fails with phi of one task: {_NO_AXIS}") from error
            if isinstance(error, RuntimeError | TypeError) and (why := mismatch(phi, theta, data)):
                raise ValueError(f"the objective fails, and {why}") from error
            raise
        if not isinstance(value, Tensor) or value.dim() != 0:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"the objective must return a scalar for one task, got {shape}")
        if value.requires_grad:
            raise ValueError(
                "the objective captured a tensor that requires a gradient and would silently get none "
                "(layers in a plain list? use nn.ModuleList): "
                "pass it in theta (shared by the tasks) or in data (one per task)"
            )
        if [leaf._version for leaf in given] != versions:
            raise ValueError(
                "the objective writes into phi, theta or data, which then differ at each call: let it work on copies "
                "(x + 1 in place of x.add_(1))"
            )
        if host.may_read(value) and not math.isfinite(value):
            require_finite_parts(theta, phi, data)
            raise NotFiniteError("the objective is not finite at the start, first in task 0")
        leaves = leaves_of(phi)
        used = ancestors(objective(leaves, theta, data))
        if isinstance(objective, Composed) and (objective.outputs_of_tasks or objective.loss_of_tasks):
            _require_agreement(objective, batched, theta, phi, data)
    if not used:
        raise ValueError("the objective does not depend on phi: there is nothing to minimise")
    return [name for name, leaf in leaves.items() if id(leaf) not in used]


def require_finite_parts(theta: Params, init: Params, data: Any) -> None:
    """Raise ``NotFiniteError`` for an argument that is not finite, and name it."""
    for what, part in (("theta", theta), ("init", init), ("data", data)):
        for leaf in pytree.tree_leaves(part):
            if isinstance(leaf, Tensor) and leaf.is_floating_point() and not leaf.isfinite().all():
                raise NotFiniteError(f"{what} holds a number that is not finite (NaN or infinite)")


def _require_agreement(objective: Composed, batched: Any, theta: Params, phi: Params, data: Any) -> None:
    """Compare the functions of all tasks with those of one, on one task; not under autocast, where both are rough."""
    if torch.is_autocast_enabled(next(iter(phi.values())).device.type):
        return
    one = objective.loss(objective.outputs(phi, theta, data), data)
    (all_at_once,) = objective.fit(batched[0], theta, batched[1])
    slack = 1e-6 if all_at_once.dtype == torch.float64 else 1e-2  # a GPU's convolutions may have 11 bits
    if not torch.allclose(all_at_once, one.to(all_at_once.dtype), rtol=slack, atol=slack, equal_nan=True):
        raise ValueError(
            f"outputs_of_tasks and loss_of_tasks say {all_at_once.item():.6g} for the first task, outputs and loss "
            f"{one.item():.6g}: they must be the same for each task"
        )


def _require_centre(proximal: Proximal, init: Params, theta: Params) -> None:
    if proximal.towards != "theta":
        return
    for name, leaf in init.items():
        centre = theta.get(name)
        if centre is None or centre.shape != leaf.shape[1:]:
            there = "is not there" if centre is None else f"is {tuple(centre.shape)}"
            if centre is not None and centre.shape == leaf.shape:
                there += " (one problem without a task axis goes with batched=False)"
            raise ValueError(
                f"Proximal pulls phi{at(name)}, {tuple(leaf.shape[1:])} in each task, towards theta{at(name)}, which "
                f"{there}: give theta one of that name and shape, or towards='zero'"
            )


def mismatch(phi: Params, theta: Params, data: Any) -> str | None:
    """Return how theta or data differ from phi, as a reason why an objective may have failed."""
    mine = next(iter(phi.values()))
    others = [leaf for leaf in (*theta.values(), *pytree.tree_leaves(data)) if isinstance(leaf, Tensor)]
    for leaf in others:
        if leaf.device != mine.device and (leaf.dim() or leaf.device.type != "cpu"):
            return f"phi is on {mine.device}, theta or data on {leaf.device}: put them on one device"
    for leaf in others:
        if leaf.is_floating_point() and leaf.dtype != mine.dtype:
            return f"phi is {mine.dtype}, theta or data {leaf.dtype}: give them one dtype"
    return None


_NO_AXIS = (
    "if it is one problem, without a task axis, say batched=False; if its first axis is one of tasks, say batched=True"
)


def _require_task_axis(objective: Objective, init: Params, theta: Params, data: Any) -> None:
    """Refuse to guess where phi makes sense as T tasks and as one problem, and the solutions differ.

    They do not differ where nothing joins the tasks' numbers. Where phi holds more than a number a task, it
    is read as T tasks unless the objective computes with a tensor of the shape of all of phi.
    """
    for step in (0.5, 0.05):  # not at the start itself, where all tasks may be equal; nor out of the domain
        apart = {name: leaf.detach() + step * (1 + leaf.detach().abs()) * _waves(leaf) for name, leaf in init.items()}
        whole = _as_one_problem(objective, apart, theta, data)
        if whole is None:
            return
        leaves = leaves_of(apart)
        with torch.enable_grad():
            total = each_task(objective, leaves, tree.detach(theta), data, shared=(1,)).sum()
            each = grads(total, leaves, create_graph=False)
        a, b = (torch.cat([part[name].flatten() for name in init]).double() for part in (whole, each))
        if a.isfinite().all() and b.isfinite().all():
            break
    else:
        return
    slack = 1e-4 * (a.norm() + b.norm())
    tasks = tree.num_tasks(init)
    if (a - b).norm() <= slack or (a - b / tasks).norm() <= slack:  # a sum over the numbers, or a mean
        return
    if all(leaf.dim() == 1 for leaf in init.values()) or _sees_shape_of(objective, init, theta, data):
        raise ValueError(f"phi can be read as {tasks} tasks or as one problem, which have other solutions: {_NO_AXIS}")


def _waves(leaf: Tensor) -> Tensor:
    return torch.arange(1, leaf.numel() + 1, device=leaf.device).to(leaf).sin().view(leaf.shape)


def _as_one_problem(objective: Objective, phi: Params, theta: Params, data: Any) -> Params | None:
    """Return the gradient of the objective at all of phi; ``None`` where it is no objective of that."""
    leaves = leaves_of(phi)
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = objective(leaves, tree.detach(theta), tree.detach(data))
            if isinstance(value, Tensor) and value.dim() == 0 and value.requires_grad:
                return grads(value, leaves, create_graph=False)
    except Exception:  # whatever a function says of arguments that it is not made for
        return None
    return None


def _sees_shape_of(objective: Objective, init: Params, theta: Params, data: Any) -> bool:
    """Whether the objective of one task calls anything with a tensor of the shape of all of phi."""
    phi = {name: leaf[0].detach() for name, leaf in init.items()}
    with _Shapes() as recorder:
        objective(phi, tree.detach(theta), data)
    return bool(recorder.shapes & {leaf.shape for leaf in init.values()})


class _Shapes(TorchFunctionMode):
    """Records the shapes of the tensors that functions are called with."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[torch.Size] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.shapes |= {part.shape for part in args if isinstance(part, Tensor)}
        return func(*args, **(kwargs or {}))


def require_finite(problem: Problem, init: Params, solver: InnerSolver, solution: Solution) -> None:
    """Refuse a solution that is not finite; where the host may not read, trust it.

    ``NotFiniteError``: theta, the start or the data are not finite, or the objective is not at the start.
    ``DivergedError``: the steps led there; with the largest stable step size, estimated at the start.
    """
    if not host.may_read(solution.grad_norm) or bool(solution.grad_norm.isfinite().all()):
        return
    problem, init = problem.detached(), tree.detach(init)
    require_finite_parts(problem.theta, init, problem.data)
    with torch.no_grad():
        finite = problem.value(init).isfinite()
    if not finite.all():
        raise NotFiniteError(f"the objective is not finite at the start, first in task {int((~finite).nonzero()[0])}")
    task = int((~solution.grad_norm.isfinite()).nonzero()[0])
    lr = getattr(solver, "lr", None)
    name = f"{type(solver).__name__}(lr={lr:g})" if isinstance(lr, int | float) else type(solver).__name__
    _, largest = curvature_range(problem.curvature(init, "hessian"), init)
    steepest = float(largest.max())  # of all tasks: they share the step size
    hint = ""
    if steepest > 0:
        what, factor = ("its steps are", 1) if isinstance(solver, Nesterov) else ("descent is", 2)
        hint = (
            f": the curvature at the start reaches {steepest:.3g}, and {what} stable for step sizes "
            f"below {factor / steepest:.2g}"
        )
    raise DivergedError(f"{name} diverged, first in task {task}{hint}")


def warn_unsolved(problem: Problem, solution: Solution) -> None:
    """Warn where a point handed over as a solution is none; where the host may not read, trust it.

    A gradient has the unit of g over that of phi: ‖dg/dphi‖ · ‖phi‖ is compared with g (1 in place of smaller numbers).
    """
    if not host.may_read(solution.grad_norm):
        return
    phi, problem = tree.detach(solution.value), problem.detached()
    with torch.no_grad():
        scale = problem.value(phi).abs().clamp(min=1.0) / tree.norm(phi).clamp(min=1.0)
    relative = solution.grad_norm / scale
    if bool((relative > 1e-2).any()):  # an inner problem solved to 1e-3 stays below
        task = int(relative.nan_to_num(torch.inf).argmax())
        warnings.warn(
            f"attach: phi is not where the objective is smallest (inner gradient norm "
            f"{float(solution.grad_norm[task]):.2g} in task {task}), so its derivative is wrong: solve further, or "
            "leave out what holds phi there (a constraint, a kink)",
            MetagradWarning,
            stacklevel=3,
        )
