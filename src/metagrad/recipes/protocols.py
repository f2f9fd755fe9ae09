"""What each recipe is run with; without torch, so that a command can show defaults at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# The last one is the one before with the published inner solver.
HeadMethod = Literal["maml", "anil", "itd-bio", "memory-reduced", "memory-reduced-descent"]
TwoStageMethod = Literal["memory-reduced", "maml", "anil", "itd-bio", "protonet"]


@dataclass(frozen=True, kw_only=True)
class ErrorProtocol:
    """Error of the meta-gradient against inner steps."""

    kappa: float = 1000.0
    """Condition number of the inner objective's Hessian."""
    dims: int = 50
    """Number of weights of a task, at least 5."""
    tasks: int = 16
    """Number of tasks, T."""
    inner_steps: int = 1000
    """Largest number of inner steps."""
    seed: int = 0
    """Seed of the tasks."""


@dataclass(frozen=True, kw_only=True)
class RateProtocol:
    """Gradient evaluations needed against the condition number."""

    kappas: tuple[float, ...] = (10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10000.0)
    """Condition numbers above 1."""
    target: float = 1e-6
    """‖g − g*‖ / ‖g*‖ to reach in every task."""
    dims: int = 2000
    """Number of weights of a task. As many CG steps would be exact: with so many, it stays far from that."""
    tasks: int = 4
    """Number of tasks, T."""
    unrolled: float = 300.0
    """Largest condition number at which gradient descent is unrolled too, which holds all of its steps in memory."""
    seed: int = 0
    """Seed of the tasks."""


@dataclass(frozen=True, kw_only=True)
class NetworkProtocol:
    """Error of the meta-gradient on a trained network."""

    tasks: int = 4
    """Number of training tasks, averaged in one meta-gradient."""
    lams: tuple[float, ...] = (0.1, 2.0)
    """Strengths of the proximal term: the default of the command, and the paper's."""
    steps: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200)
    """Numbers of inner steps at which the meta-gradient is taken."""
    seed: int = 0
    """Seed of the tasks."""


@dataclass(frozen=True, kw_only=True)
class MemoryProtocol:
    """Memory and time of one meta-gradient against inner steps."""

    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """Numbers of inner steps (of Hessian-free: Newton steps of 5 products)."""
    queries: int = 5
    """Query images of each class."""
    most_megabytes: float = 6000.0
    """A point that would take more memory is left out."""
    most_seconds: float = 40.0
    """A point that would take longer is left out."""
    device: str = "cpu"
    """Where to compute."""
    seed: int = 0
    """Seed of weights and images, on which memory does not depend."""


@dataclass(frozen=True, kw_only=True)
class ConvergenceProtocol:
    """Convergence of memory-reduced meta-learning, with all tasks at every step or with sampled ones."""

    few: int = 20
    """Number of tasks of the form with all tasks."""
    many: int = 2000
    """Number of tasks that the sampled form draws from."""
    dims: int = 10
    """Number of weights of a task."""
    shared: int = 5
    """Number of entries of theta."""
    kappa: float = 20.0
    """Condition number of the inner problems."""
    inner_steps: int = 3
    """Gradient descent steps in each meta-step of the form with all tasks."""
    products: int = 2
    """Conjugate gradient steps in each meta-step of the form with all tasks."""
    iterations: int = 2000
    """Number of meta-steps."""
    step: float = 0.2
    """Outer step size; the sampled form with a fixed one takes a quarter of it."""
    shrink: float = 50.0
    """Number of meta-steps after which the shrinking step size is halved."""
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    """Numbers of tasks drawn at each meta-step."""
    repeats: int = 64
    """Repetitions of the sampled form, over which the squared error is averaged."""
    seed: int = 0
    """Seed of tasks and draws."""


@dataclass(frozen=True, kw_only=True)
class HeadsProtocol:
    """Memory-reduced meta-learning beside MAML, ANIL and ITD-BiO, at equal time, in tasks of 5 classes.

    Defaults are the paper's (Yang, Ma and Yu 2025) but for the time, which it does not bound.
    """

    minutes: float = 60.0
    """Processor time of each method's training."""
    shots: int = 5
    """Support images of each class."""
    queries: int = 15
    """Query images of each class."""
    tasks: int = 32
    """Tasks of each meta-step."""
    filters: int = 64
    """Width of the network of four convolutions with pooling."""
    outer_lr: float = 1e-4
    """Step size of Adam."""
    features: Literal["cached", "recomputed"] = "cached"
    """When head-only methods compute the body's features: once, or at every inner step, as published."""
    test_tasks: int = 600
    """Number of test tasks at the end."""
    seed: int = 0
    """Seed of weights and tasks."""


@dataclass(frozen=True, kw_only=True)
class ChallengeProtocol:
    """One-shot classification within alphabets of Omniglot, after training on the background alphabets."""

    runs: int = 20
    """Runs of 20 characters drawn from each of the 20 evaluation alphabets."""
    meta_steps: int = 4000
    """Meta-steps of the training, one task each."""
    train_ways: int = 60
    """Classes of a training task."""
    filters: int = 64
    """Width of the network of four convolutions with pooling."""
    pools: int = 3
    """How many of the four pool: with 3, places of the drawing stay apart."""
    variation: float = 1.0
    """How far training images are varied: shifts, turns, slants, thickness."""
    views: int = 8
    """Views of each drawing to average over: a little moved, turned, slanted, thicker or thinner. 1: none."""
    val_tasks: int = 200
    """Number of validation tasks."""
    seed: int = 0
    """Seed of weights, tasks and runs."""


OmniglotMethod = Literal["imaml", "imaml-hessian-free", "maml", "fomaml", "reptile"]


@dataclass(frozen=True, kw_only=True)
class CifarTwoStagesProtocol:
    """Methods on CIFAR-FS or FC100 in two stages: features by ProtoNet on tasks of many classes, then each method."""

    filters: int = 64
    """Width of the network of four convolutions with pooling."""
    shots: int = 5
    """Support images of each class."""
    body_steps: int = 3250
    """Meta-steps of the first stage, one task each."""
    body_ways: int = 20
    """Classes of a task of the first stage."""
    body_lr: float = 3e-3
    """Outer step size of the first stage."""
    steps: int = 40
    """Meta-steps of the second stage."""
    tasks: int = 8
    """Tasks of a meta-step of the second stage."""
    lr: float = 1e-4
    """Outer step size of the second stage."""
    val_tasks: int = 150
    """Number of validation tasks."""
    test_tasks: int = 600
    """Number of test tasks of each cell."""


@dataclass(frozen=True, kw_only=True)
class OmniglotProtocol:
    """The table of Omniglot in two stages: features by ProtoNet on tasks of many classes, then each method."""

    filters: int = 64
    """Width of the network of four convolutions with pooling."""
    body_steps: int = 12000
    """Meta-steps of the first stage, one task each."""
    body_ways: int = 60
    """Classes of a task of the first stage."""
    body_queries: int = 4
    """Query images of each class in the first stage."""
    body_lr: float = 3e-3
    """Outer step size of the first stage."""
    steps: int = 60
    """Meta-steps of the second stage."""
    tasks: int = 4
    """Tasks of a meta-step of the second stage."""
    train_ways: int | None = 20
    """Classes of a training task of the second stage."""
    lr: float = 1e-4
    """Outer step size of the second stage."""
    val_tasks: int = 300
    """Number of validation tasks; a third of them at 20 ways, where a task has four times the images."""
    test_tasks: int = 600
    """Number of test tasks of each cell; a third of them at 20 ways."""
