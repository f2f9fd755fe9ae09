"""What is solved: one inner problem per task, and the derivatives every solver needs.

Tasks are independent, so the gradient of the sum over tasks is every task's own. ``torch.autograd`` on the vmapped
value (rather than ``vmap(grad)``) keeps one graph that can be differentiated again, for all curvature products.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from metagrad import tree
from metagrad.implicit.curvature import Curvature, Linearisation, Operator, gauss_newton, hessian, with_proximal
from metagrad.implicit.derivatives import grads, leaves_of
from metagrad.implicit.each import each_task
from metagrad.implicit.objective import Composed, Objective, Proximal
from metagrad.tree import Params


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
            return each_task(objective, phi, self.theta, self.data, shared=(1,))
        value = objective.fit(phi, self.theta, self.data)
        if objective.regulariser is None:
            return value
        return value + each_task(objective.regulariser, phi, self.theta, shared=(1,))

    def grad(self, phi: Params) -> Params:
        """Return ``dg/dphi`` per task, shaped as ``phi``."""
        return self._differentiated(phi)[1]

    def value_and_grad(self, phi: Params) -> tuple[Tensor, Params]:
        """Return ``g``, ``(T,)``, and ``dg/dphi`` from one pass."""
        value, gradient, proximal = self._differentiated(phi)
        value = value if self.create_graph else value.detach()
        return value if proximal is None else value + each_task(proximal, phi, self.theta, shared=(1,)), gradient

    def _differentiated(self, phi: Params) -> tuple[Tensor, Params, Proximal | None]:
        """Return ``g`` without its proximal term, the whole gradient, and that term."""
        with torch.enable_grad():
            leaves = phi if self.create_graph else leaves_of(phi)
            rest, proximal = self.without_proximal()
            value = rest.value(leaves)
            gradient = grads(value.sum(), leaves, create_graph=self.create_graph)
        return value, gradient if proximal is None else with_proximal(gradient, proximal, phi, self.theta), proximal

    def linearise(self, phi: Params, kind: Curvature) -> Linearisation:
        """Build the graph at ``phi`` once, for any number of curvature products and mixed derivatives."""
        if kind == "hessian":
            return hessian(self, phi)
        if kind == "gauss_newton":
            return gauss_newton(self, phi)
        raise ValueError(f"curvature is 'hessian' or 'gauss_newton', got {kind!r}")

    def curvature(self, phi: Params, kind: Curvature) -> Operator:
        """Return the curvature operator at ``phi``.

        Raises
        ------
        TypeError
            if ``kind`` is ``"gauss_newton"`` and the objective does not show its structure.
        """
        return self.linearise(phi, kind).operator

    def without_proximal(self) -> tuple[Problem, Proximal | None]:
        """Part the problem in what autograd differentiates and a proximal term, which needs none."""
        objective = self.objective
        if isinstance(objective, Composed) and isinstance(objective.regulariser, Proximal):
            return replace(self, objective=replace(objective, regulariser=None)), objective.regulariser
        return self, None
