"""The smallest and largest eigenvalue of the curvature from a few products: they say which step sizes are stable."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metagrad import tree
from metagrad.errors import DivergedError
from metagrad.implicit import host
from metagrad.implicit.curvature import Operator
from metagrad.implicit.linear.base import Product, dot, flat_product, rounding
from metagrad.tree import Params


class Lanczos:
    """The Lanczos recursion ``A V = V T`` with orthonormal V and tridiagonal T, for T tasks' symmetric A.

    ``v`` is the newest column ``(T, P)``, ``before`` the one ahead of it, ``beta`` ``(T,)`` the entry of T between
    the two (at the start, the norm of the starting vector).
    """

    def __init__(self, product: Product, start: Tensor) -> None:
        """Begin at ``start``, ``(T, P)``, which is overwritten."""
        self.product = product
        self.beta = start.norm(dim=1)
        self.v = start.div_(torch.where(self.beta > 0, self.beta, 1.0)[:, None])
        self.before = torch.zeros_like(start)
        self._diagonal: list[Tensor] = []
        self._beside: list[Tensor] = []
        self._counted = torch.zeros_like(self.beta, dtype=torch.bool)

    def step(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """Go on by one product; return T's new diagonal entry and ‖A v‖. It counts for tasks that are ``active``."""
        beside = self.beta if self._diagonal else torch.zeros_like(self.beta)
        p = self.product(self.v)
        alpha = dot(self.v, p)
        p.addcmul_(alpha[:, None], self.v, value=-1).addcmul_(beside[:, None], self.before, value=-1)
        # A task that has ended repeats its first entry, beside which there is nothing: no new eigenvalue.
        first = self._diagonal[0] if self._diagonal else alpha
        self._diagonal.append(torch.where(active, alpha, first))
        self._beside.append(torch.where(active, beside, 0.0))
        self._counted = self._counted | active
        self.beta = p.norm(dim=1)
        self.before, self.v = self.v, p.div_(torch.where(self.beta > 0, self.beta, 1.0)[:, None])
        return alpha, torch.hypot(torch.hypot(alpha, self.beta), beside)

    def ritz(self) -> tuple[Tensor, Tensor]:
        """Return T's smallest and largest eigenvalue, both within A's spectrum; infinite (+, −) where none counted."""
        low, high = torch.full_like(self.beta, torch.inf), torch.full_like(self.beta, -torch.inf)
        if not self._diagonal:
            return low, high
        small = torch.diag_embed(torch.stack(self._diagonal, 1).double())
        if len(self._beside) > 1:
            beside = torch.stack(self._beside[1:], 1).double()
            small = small + torch.diag_embed(beside, 1) + torch.diag_embed(beside, -1)
        finite = small.isfinite().all(2).all(1)
        small = torch.where(finite[:, None, None], small, 0.0)  # eigvalsh would raise
        if host.may_read(small):
            values = torch.linalg.eigvalsh(small)
            ends = values[:, 0], values[:, -1]
        else:
            ends = _smallest(small), -_smallest(-small)
        least, largest = (torch.where(finite, end, torch.nan).to(self.beta.dtype) for end in ends)
        return torch.where(self._counted, least, low), torch.where(self._counted, largest, high)


def curvature_range(operator: Operator, like: Params, *, steps: int = 20) -> tuple[Tensor, Tensor]:
    """Estimate each task's smallest and largest eigenvalue of A, ``(T,)``, by ``steps`` products.

    They are Ritz values of the Lanczos recursion from a fixed pseudo-random start: never beyond the spectrum, and near
    its ends after a few steps, sooner than power iteration.

    Parameters
    ----------
    operator:
        A.
    like:
        names, shapes and dtype of what A multiplies; its values do not matter.
    steps:
        products, at least 1.

    Raises
    ------
    ValueError
        for ``steps < 1``.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    shape = tree.ravel(like)
    start = torch.randn(shape.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(shape)
    lanczos = Lanczos(flat_product(operator, like), start)
    active = torch.ones_like(lanczos.beta, dtype=torch.bool)
    largest = torch.zeros_like(lanczos.beta)
    for _ in range(min(steps, shape.shape[1])):
        if host.may_read(active) and not active.any():
            break
        _, reached = lanczos.step(active)
        largest = torch.maximum(largest, reached)
        active = active & (lanczos.beta > rounding(shape.dtype) * largest)
    return lanczos.ritz()


def largest_curvature(operator: Operator, like: Params, *, steps: int = 20) -> Tensor:
    """Estimate L, each task's largest eigenvalue of A, ``(T,)``, from below; see :func:`curvature_range`.

    Gradient descent and fixed-point iterations are stable for step sizes below ``2 / L``.
    """
    return curvature_range(operator, like, steps=steps)[1]


def diverged(operator: Operator, like: Params, lr: float, growth: Tensor) -> DivergedError:
    """Return the error that says why steps of size ``lr`` along A diverged, for the task that did most.

    Parameters
    ----------
    operator, like:
        as in :func:`curvature_range`, which takes 20 products.
    lr:
        the step size.
    growth:
        ``(T,)``, by what factor each task's residual or gradient grew.
    """
    worst = int(growth.nan_to_num(torch.inf).argmax())
    lows, highs = curvature_range(operator, like)
    low, high = float(lows[worst]), float(highs.max())  # one lr for all tasks: the steepest decides
    times = f"{float(growth[worst]):.2g} times" if math.isfinite(float(growth[worst])) else "beyond all numbers"
    grew = f"lr={lr:g} diverges (the residual of a task grew {times})"
    if not (math.isfinite(low) and math.isfinite(high)):
        return DivergedError(f"{grew}: the products with the curvature matrix are not finite")
    if low < -(torch.finfo(growth.dtype).eps ** 0.5) * max(high, -low):
        return DivergedError(
            f"{grew}, as any lr would: the curvature matrix has a negative eigenvalue, about {low:.2g}; "
            "use curvature='gauss_newton' or a larger lam"
        )
    return DivergedError(
        f"{grew}: the largest stable lr is about {min(2 / high, lr) if high > 0 else lr:.2g}, "
        f"2 / L with the largest curvature L about {high:.2g}"
    )


def _smallest(matrix: Tensor) -> Tensor:
    """Return the smallest eigenvalue of ``(T, k, k)``, from above and within 1e-8 of the norm, without a host read.

    ``eigvalsh`` makes the host wait for the GPU. Squaring ``2c I − T`` again and again is power iteration with as many
    steps as 2 to the number of squarings.
    """
    bound = matrix.abs().sum(2).amax(1)[:, None, None]
    eye = torch.eye(matrix.shape[2], dtype=matrix.dtype, device=matrix.device)
    power = 2 * eye - matrix / torch.where(bound > 0, bound, 1.0)
    for _ in range(_SQUARINGS):
        power = power @ power
        power = power / power.abs().amax((1, 2), keepdim=True)
    column = power.norm(dim=1).argmax(1)
    v = power.gather(2, column[:, None, None].expand(-1, matrix.shape[2], 1))
    return (v * (matrix @ v)).sum((1, 2)) / (v * v).sum((1, 2))


_SQUARINGS = 30
