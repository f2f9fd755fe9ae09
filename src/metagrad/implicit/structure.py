"""What a caller hands over, in whatever nests it comes, as the core has it: flat dictionaries of tensors of T tasks.

Here alone: behind it phi and theta are ``dict[str, Tensor]``, phi and data have a task axis. Names of nested tensors
are joined by dots (``"encoder.w"``; ``"0"`` for the first of a list; ``""`` for a tensor that stands by itself).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from metagrad import tree
from metagrad.implicit.linear import LinearSolution
from metagrad.implicit.objective import Composed, Objective, Proximal
from metagrad.implicit.solvers import Solution
from metagrad.tree import Params


@dataclass(frozen=True)
class Nest:
    """How a nest of tensors is put together from a flat dictionary.

    ``names``: one for each tensor, in order, ``None`` for what is no tensor; that is in ``others`` at the same place.
    """

    spec: pytree.TreeSpec
    names: tuple[str | None, ...]
    others: tuple[Any, ...]

    def of(self, flat: Params) -> Any:
        """Return the nest."""
        leaves = [other if name is None else flat[name] for name, other in zip(self.names, self.others, strict=True)]
        return pytree.tree_unflatten(leaves, self.spec)


def flatten(part: Any, what: str) -> tuple[Params, Nest | None]:
    """Lay a nest of tensors flat; the :class:`Nest` is ``None`` where it was a flat dictionary.

    Two tensors of one name, and what is neither a tensor nor a plain number, text or ``None``, are errors.
    """
    part = as_dicts(part)
    if type(part) is dict and all(isinstance(leaf, Tensor) and isinstance(name, str) for name, leaf in part.items()):
        return part, None
    paths, spec = pytree.tree_flatten_with_path(part)
    names = tuple(".".join(map(_word, path)) if isinstance(leaf, Tensor) else None for path, leaf in paths)
    params: Params = {}
    for name, (path, leaf) in zip(names, paths, strict=True):
        if name is None:
            _require_plain(leaf, what, ".".join(map(_word, path)))
        elif name in params:
            raise ValueError(f"{what} has two tensors by the name of {name!r}: leave the dots out of its keys")
        else:
            params[name] = leaf
    others = tuple(None if isinstance(leaf, Tensor) else leaf for _, leaf in paths)
    return params, Nest(spec, names, others)


def as_dicts(part: Any) -> Any:
    """Return a nest with every mapping (of parameters, ordered, read-only) as a plain dictionary."""
    if isinstance(part, Tensor) or part is None:
        return part
    if isinstance(part, Mapping | nn.ParameterDict):
        return {key: as_dicts(value) for key, value in part.items()}
    if isinstance(part, nn.ParameterList):
        return list(part)
    if type(part) in (list, tuple):
        return type(part)(as_dicts(value) for value in part)
    if isinstance(part, tuple) and hasattr(part, "_fields"):  # a named tuple
        return type(part)(*(as_dicts(value) for value in part))
    return part


def _word(key: Any) -> str:
    """Return one step of a path into a nest as text."""
    return str(next(getattr(key, at) for at in ("key", "idx", "name") if hasattr(key, at)))


def _require_plain(leaf: Any, what: str, name: str) -> None:
    """Refuse what could hold examples that nobody would take apart."""
    where = f" at {name!r}" if name else ""
    if isinstance(leaf, np.ndarray):
        raise TypeError(f"{what} holds a NumPy array{where}: make it a tensor with torch.from_numpy")
    if isinstance(leaf, nn.Module):
        raise TypeError(f"{what} holds a module{where}: take dict(module.named_parameters())")
    if not isinstance(leaf, _PLAIN):
        raise TypeError(
            f"{what} holds a {type(leaf).__name__}{where}: it takes tensors in dictionaries, tuples and lists, and "
            "None, numbers and texts beside them"
        )


_PLAIN = (type(None), Number, str, bytes, Enum, np.generic, torch.dtype, torch.device)


def _add_axis(part: Any) -> Any:
    return tree.map_tensors(lambda leaf: leaf.unsqueeze(0), part)


@dataclass(frozen=True)
class Structure:
    """How the caller's phi and theta are nested; turns them into flat dictionaries and back.

    ``single``: the caller has one problem, without a task axis.
    """

    phi: Nest | None
    theta: Nest | None
    single: bool

    def init(self, init: Any) -> Params:
        """Return a start as the core takes it; refuse one that is not nested as phi is."""
        params, nest = flatten(init, "phi")
        if nest != self.phi:
            raise ValueError("the start is not built as phi is: the same nest of dictionaries, tuples and lists")
        return _add_axis(params) if self.single else params

    def value(self, phi: Params) -> Any:
        """Return phi as the caller has it."""
        return _nested(self.phi, {name: leaf.squeeze(0) for name, leaf in phi.items()} if self.single else phi)

    def theta_of(self, theta: Params) -> Any:
        """Return theta as the caller has it."""
        return _nested(self.theta, theta)

    def numbers(self, numbers: Tensor) -> Tensor:
        """Return numbers of the tasks, ``(T,)`` or ``(..., T)``, as the caller has them."""
        return numbers.squeeze(-1) if self.single and numbers.numel() else numbers

    def objective(self, objective: Objective) -> Objective:
        """Return the caller's objective as one of flat dictionaries; its structure stays."""
        if self.phi is None and self.theta is None:
            return objective
        if not isinstance(objective, Composed):
            return self._of_flat(objective)
        regulariser, of_tasks = objective.regulariser, objective.outputs_of_tasks
        if isinstance(regulariser, Proximal):
            regulariser = replace(regulariser, lam=self._hyper(regulariser.lam))
        elif regulariser is not None:
            regulariser = self._of_flat(regulariser)
        return replace(
            objective,
            outputs=self._of_flat(objective.outputs),
            regulariser=regulariser,
            outputs_of_tasks=of_tasks and self._of_flat(of_tasks),
        )

    def solver(self, solver: Any) -> Any:
        """Return a solver whose learned step size is called with theta as the caller has it."""
        lr = getattr(solver, "lr", None)
        learned = callable(lr) and dataclasses.is_dataclass(solver)
        return replace(solver, lr=self._hyper(lr)) if learned else solver

    def adjoint(self, adjoint: Any) -> Any:
        """Return an adjoint whose linear solve begins at a flat dictionary."""
        x0 = getattr(adjoint, "x0", None)
        if x0 is None or not dataclasses.is_dataclass(adjoint):
            return adjoint
        changed: Any = replace(adjoint, x0=self.init(x0))  # type: ignore[type-var]
        return changed

    def solution(self, solution: Solution) -> Solution:
        """Return a solution as the caller has it."""
        if self.phi is None and not self.single:
            return solution
        solution.value = self.value(solution.value)
        solution.steps, solution.grad_norm = self.numbers(solution.steps), self.numbers(solution.grad_norm)
        solution._shown = self.linear
        return solution

    def linear(self, solution: LinearSolution) -> LinearSolution:
        """Return the linear solve's solution as the caller has it."""
        numbers = {name: self.numbers(part) for name, part in vars(solution).items() if isinstance(part, Tensor)}
        return replace(solution, value=self.value(solution.value), **numbers)

    def _of_flat(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function of nests as one of flat dictionaries."""
        return lambda phi, theta, *data: function(_nested(self.phi, phi), self.theta_of(theta), *data)

    def _hyper(self, hyper: Any) -> Any:
        """Return a hyper-parameter as a function of flat theta; what it gives may be a nest built as phi is."""
        if not callable(hyper) or (self.phi is None and self.theta is None):
            return hyper

        def of_flat(theta: Params) -> Tensor | Params:
            value = hyper(self.theta_of(theta))
            return value if isinstance(value, Tensor) else flatten(value, "a hyper-parameter")[0]

        return of_flat


def _nested(nest: Nest | None, flat: Params) -> Any:
    return flat if nest is None else nest.of(flat)


def enter(init: Any, theta: Any, data: Any, *, single: bool) -> tuple[Structure, Params, Params, Any]:
    """Return the structure, then init, theta and data as the core has them; refuse what no problem is made of."""
    phi, nest = flatten(init, "phi")
    fixed, theta_nest = flatten(theta, "theta")
    _require_variables(phi, nest)
    data = _require_plain_data(data)
    if single:
        phi, data = _add_axis((phi, data))
    else:
        _require_task_axis(phi, data)
    return Structure(nest, theta_nest, single), phi, fixed, data


def _require_variables(phi: Params, nest: Nest | None) -> None:
    """Refuse a phi that no solver could move."""
    if nest is not None and None in nest.names:
        other = nest.others[nest.names.index(None)]
        raise TypeError(f"phi holds a {type(other).__name__}: it takes tensors alone, a constant goes into theta")
    if not phi:
        raise ValueError("phi is empty: there is nothing to solve for")
    for name, leaf in phi.items():
        if not leaf.is_floating_point():
            raise ValueError(f"phi{at(name)} is {leaf.dtype}: a solver needs floating numbers, as of .float()")
    for what, kinds in (("dtype", {leaf.dtype for leaf in phi.values()}), ("device", {v.device for v in phi.values()})):
        if len(kinds) > 1:
            raise ValueError(f"phi has tensors of {_listed(kinds)}: give them one {what}")


def _require_plain_data(data: Any) -> Any:
    """Return data with plain dictionaries."""
    leaves = pytree.tree_leaves(data)
    if all(isinstance(leaf, Tensor) for leaf in leaves):
        return data
    if any(isinstance(leaf, Mapping | nn.ParameterDict | nn.ParameterList) for leaf in leaves):
        data = as_dicts(data)
    if any(not isinstance(leaf, (Tensor, *_PLAIN)) for leaf in pytree.tree_leaves(data)):
        for path, leaf in pytree.tree_flatten_with_path(data)[0]:
            if not isinstance(leaf, Tensor):
                _require_plain(leaf, "data", ".".join(map(_word, path)))
    return data


def _require_task_axis(phi: Params, data: Any) -> None:
    of_phi = {len(leaf) if leaf.dim() else None for leaf in phi.values()}
    of_data = {len(leaf) if leaf.dim() else None for leaf in pytree.tree_leaves(data) if isinstance(leaf, Tensor)}
    if len(of_phi | of_data) > 1 or None in of_phi:
        lengths = f"phi {_listed(of_phi)}" + (f", data {_listed(of_data)}" if of_data else "")
        raise ValueError(
            f"every tensor of phi and data begins with a task axis of one length, got {lengths}: a single problem "
            "without a task axis goes with batched=False, what tasks share into theta"
        )
    if 0 in of_phi:
        raise ValueError("there are no tasks: the leading axis of init is empty")


def at(name: str) -> str:
    """Return how a message names a tensor of phi or theta."""
    return f"[{name!r}]" if name else ""


def _listed(kinds: set[Any]) -> str:
    return " and ".join(sorted("no axis" if kind is None else str(kind) for kind in kinds))
