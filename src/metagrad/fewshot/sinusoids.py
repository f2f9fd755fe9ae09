"""Sinusoids: regression tasks drawn from a formula, to see few-shot learning work."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metagrad.fewshot.tasks import Batch, Tasks
from metagrad.scalars import whole


@dataclass(frozen=True, kw_only=True)
class Sinusoids:
    """Draws curves ``y = amplitude · sin(x − phase)`` and points on them (section 5.1 of Finn et al. 2017).

    Amplitude is uniform on [0.1, 5], phase on [0, π], every x on [−5, 5]. It is a :class:`TaskSource`.

    Parameters
    ----------
    shots, queries:
        support and query points a task.
    noise:
        standard deviation of a Gaussian error of every y, support and query alike.

    Raises
    ------
    ValueError
        for fewer than one shot or query, or a noise that is negative or not finite.

    Example
    -------
    >>> import torch
    >>> tasks = Sinusoids(shots=10, queries=15)(4, generator=torch.Generator().manual_seed(0))
    >>> tasks.support.x.shape, tasks.query.y.shape
    (torch.Size([4, 10, 1]), torch.Size([4, 15, 1]))
    """

    shots: int
    queries: int
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("shots", "queries"):
            object.__setattr__(self, name, whole(name, getattr(self, name), 1, ValueError))
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"noise must be finite and not negative, got {self.noise}")

    def __call__(self, num_tasks: int, *, generator: torch.Generator) -> Tasks:
        """Draw ``num_tasks`` tasks on the generator's device.

        Returns
        -------
        Tasks
            x and y of the support ``(T, shots, 1)``, of the query ``(T, queries, 1)``, in torch's default dtype.

        Raises
        ------
        ValueError
            for fewer than one task.
        """
        num_tasks = whole("num_tasks", num_tasks, 1, ValueError)

        def uniform(low: float, high: float, points: int) -> Tensor:
            unit = torch.rand(num_tasks, points, 1, generator=generator, device=generator.device)
            return low + (high - low) * unit

        amplitude, phase = uniform(0.1, 5.0, 1), uniform(0.0, math.pi, 1)
        x = uniform(-5.0, 5.0, self.shots + self.queries)
        y = amplitude * torch.sin(x - phase)
        if self.noise:
            y += self.noise * torch.randn(y.shape, generator=generator, device=generator.device)
        return Tasks(
            Batch(x[:, : self.shots], y[:, : self.shots]),
            Batch(x[:, self.shots :], y[:, self.shots :]),
        )
