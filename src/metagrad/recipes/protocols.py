"""What each recipe is run with; without torch, so that a command can show defaults at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The last one is the one before with the published inner solver.
HeadMethod = Literal["maml", "anil", "itd-bio", "memory-reduced", "memory-reduced-descent"]


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


@dataclass(frozen=True, kw_only=True)
class MemoryProtocol:
    """Of memory and time of one meta-gradient against inner steps.

    Attributes
    ----------
    steps:
        inner steps (of Hessian-free: Newton steps of 5 products).
    queries:
        query images a class.
    most_megabytes, most_seconds:
        a point that would take more is left out.
    device:
        where to compute.
    seed:
        of weights and images, on which memory does not depend.
    """

    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    queries: int = 5
    most_megabytes: float = 6000.0
    most_seconds: float = 40.0
    device: str = "cpu"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ConvergenceProtocol:
    """Of how memory-reduced meta-learning converges.

    Attributes
    ----------
    few, many:
        tasks of the deterministic form; tasks that the stochastic one draws from.
    dims, shared:
        weights of a task; entries of theta.
    kappa:
        condition number of the inner problems.
    inner_steps, products:
        steps of descent and of conjugate gradients a meta-step, in the deterministic form.
    iterations, step:
        meta-steps; their length (a quarter of it where a fixed one is drawn with).
    shrink:
        meta-steps after which the shrinking length is halved.
    batches:
        tasks drawn a meta-step.
    repeats:
        repetitions of the stochastic form, over which the squared error is averaged.
    seed:
        of tasks and draws.
    """

    few: int = 20
    many: int = 2000
    dims: int = 10
    shared: int = 5
    kappa: float = 20.0
    inner_steps: int = 3
    products: int = 2
    iterations: int = 2000
    step: float = 0.2
    shrink: float = 50.0
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    repeats: int = 64
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class HeadsProtocol:
    """Of the comparison of memory-reduced meta-learning with MAML, ANIL and ITD-BiO, at equal time.

    Defaults are the paper's (Yang, Ma and Yu 2025) but for the time, which it does not bound.

    Attributes
    ----------
    minutes:
        processor time of each method's training.
    shots, queries:
        images a class, of 5 classes.
    tasks:
        tasks a meta-step.
    filters:
        width of the network of four convolutions with pooling.
    outer_lr:
        step size of Adam.
    features:
        whether the head-only methods see the images once or at every inner step, as published.
    test_tasks:
        tasks of the last look.
    seed:
        of weights and tasks.
    """

    minutes: float = 60.0
    shots: int = 5
    queries: int = 15
    tasks: int = 32
    filters: int = 64
    outer_lr: float = 1e-4
    features: Literal["cached", "recomputed"] = "cached"
    test_tasks: int = 600
    seed: int = 0
