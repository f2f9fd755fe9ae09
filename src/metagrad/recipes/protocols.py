"""What each recipe is run with; without torch, so that a command can show defaults at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ErrorProtocol:
    """Of the error of the meta-gradient against inner steps.

    Attributes
    ----------
    kappa:
        condition number of the inner objective's Hessian.
    dims:
        number of weights of a task, at least 5.
    tasks:
        number of tasks, T.
    inner_steps:
        most inner steps.
    seed:
        of the tasks.
    """

    kappa: float = 1000.0
    dims: int = 50
    tasks: int = 16
    inner_steps: int = 1000
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RateProtocol:
    """Of the gradient evaluations needed against the condition number.

    Attributes
    ----------
    kappas:
        condition numbers above 1.
    target:
        ‖g − g*‖ / ‖g*‖ to reach in every task.
    dims:
        number of weights of a task. CG is exact after as many steps as there are eigenvalues: with so many it stays
        far from that.
    tasks:
        number of tasks, T.
    unrolled:
        largest condition number at which gradient descent is unrolled too, which holds all of its steps in memory.
    seed:
        of the tasks.
    """

    kappas: tuple[float, ...] = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
    target: float = 1e-6
    dims: int = 2000
    tasks: int = 4
    unrolled: float = 300.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class NetworkProtocol:
    """What the error on a trained network is measured on.

    Attributes
    ----------
    tasks:
        training tasks, averaged in one meta-gradient.
    lams:
        strengths of the proximal term: the default of the command, and the paper's.
    steps:
        inner steps at which the meta-gradient is taken.
    seed:
        of the tasks.
    """

    tasks: int = 4
    lams: tuple[float, ...] = (0.1, 2.0)
    steps: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    seed: int = 0
