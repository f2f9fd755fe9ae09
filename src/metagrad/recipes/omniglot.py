"""The iMAML paper's table of Omniglot, in hours of two cores: features by ProtoNet on many classes, then each method.

Every cell is two runs: ``body-SEED``, which all cells of a seed share, and ``METHOD-Wway-Sshot-SEED``, which begins at
it. Both are resumed where they stopped. The protocol is the papers': Vinyals' split, five or twenty classes, batch
statistics of all query images, test tasks of upright characters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from metagrad import data
from metagrad.experiment import Budget, Conv4Config, Episodes, Experiment, Outer
from metagrad.experiment.loop import Event
from metagrad.experiment.run import Run
from metagrad.experiment.setup import build
from metagrad.fewshot import FOMAML, IMAML, MAML, Method, ProtoNet, Reptile
from metagrad.implicit import GradientDescent, HessianFree
from metagrad.recipes.protocols import OmniglotMethod, OmniglotProtocol
from metagrad.recipes.stages import require_possible, train_unless_done

REACHED = (0.95, 0.97, 0.98)  # accuracies on validation whose time is told
# What the command calls options of train.
BODY_OPTIONS = {"--train-ways": "--body-ways", "--train-queries": "--body-queries", "--outer-lr": "--body-lr"}
STAGE_OPTIONS = {"--outer-lr": "--lr"}

# The features with pooling curve the inner problem so much that descent of the paper's size 0.1 runs away at five ways.
_AT_FIVE_WAYS: dict[OmniglotMethod, Method] = {
    "imaml": IMAML(lam=2.0, solver=GradientDescent(lr=0.02, max_steps=16), start="shared"),
    "imaml-hessian-free": IMAML(lam=2.0, solver=HessianFree(max_steps=3), start="shared"),
    "maml": MAML(inner_lr=0.02, inner_steps=10, start="shared"),
    "fomaml": FOMAML(inner_lr=0.02, inner_steps=10, start="shared"),
    "reptile": Reptile(inner_lr=0.02, inner_steps=10),
}
# At twenty ways the curvature is four times smaller, and the inner problem needs more steps.
_AT_TWENTY_WAYS: dict[OmniglotMethod, Method] = {
    "imaml": IMAML(lam=0.5, solver=GradientDescent(lr=0.04, max_steps=32), start="shared"),
    "imaml-hessian-free": IMAML(lam=0.5, solver=HessianFree(max_steps=6), start="shared"),
    "maml": MAML(inner_lr=0.1, inner_steps=10, start="shared"),
    "fomaml": FOMAML(inner_lr=0.1, inner_steps=10, start="shared"),
    "reptile": Reptile(inner_lr=0.1, inner_steps=10),
}
METHODS = {5: _AT_FIVE_WAYS, 20: _AT_TWENTY_WAYS}


class Cell(NamedTuple):
    """A cell of the table: a method, a size of tasks, a seed."""

    method: OmniglotMethod
    ways: int
    shots: int
    seed: int

    @property
    def name(self) -> str:
        """What its run is called."""
        return f"{self.method}-{self.ways}way-{self.shots}shot-{self.seed}"


@dataclass(frozen=True)
class CellRow:
    """What came out of a cell; ``None`` and empty where nothing is measured yet."""

    method: str
    ways: int
    shots: int
    seed: int
    accuracy: float | None
    """Accuracy on test classes, a fraction."""
    ci95: float | None
    """Half width of its 95 % interval over tasks."""
    val_accuracy: float | None
    """The best accuracy on validation classes."""
    cpu_seconds: float
    """Processor time of both trainings, validations included."""
    reached: tuple[float | None, ...] = (None,) * len(REACHED)
    """Processor seconds from nothing until validation reached each of :data:`REACHED`."""


def body(protocol: OmniglotProtocol, seed: int) -> Experiment:
    """Return the training of the features: ProtoNet on tasks of many classes."""
    return Experiment(
        tasks=Episodes(
            "omniglot", ways=5, shots=1, queries=15, train_ways=protocol.body_ways, train_queries=protocol.body_queries
        ),
        network=Conv4Config(filters=protocol.filters, pooling=True),
        method=ProtoNet(scale=0.1),
        outer=Outer(lr=protocol.body_lr),
        budget=Budget(
            meta_steps=protocol.body_steps,
            tasks_per_step=1,
            val_every=max(1, protocol.body_steps // 8),
            val_tasks=protocol.val_tasks,
            test_tasks=0,
        ),
        seed=seed,
    )


def stage(protocol: OmniglotProtocol, cell: Cell) -> Experiment:
    """Return the training of a cell's method, which begins at the features."""
    method = METHODS[cell.ways][cell.method]
    ways = None if cell.method == "reptile" else protocol.train_ways
    share = 1 if cell.ways < 20 else 3  # a task of 20 ways has four times the images
    return Experiment(
        tasks=Episodes("omniglot", ways=cell.ways, shots=cell.shots, queries=15, train_ways=ways, train_queries=5),
        network=Conv4Config(filters=protocol.filters, pooling=True),
        method=method,
        outer=Outer(lr=protocol.lr),
        budget=Budget(
            meta_steps=protocol.steps,
            tasks_per_step=protocol.tasks,
            val_every=max(1, protocol.steps // 3),
            val_tasks=max(2, protocol.val_tasks // share),
            test_tasks=max(2, protocol.test_tasks // share),
        ),
        seed=cell.seed,
    )


def trained(
    out: Path,
    cells: Sequence[Cell],
    protocol: OmniglotProtocol,
    *,
    data_dir: Path | None,
    report: Callable[[str, Event], None],
    stop: Callable[[], bool],
) -> Iterator[CellRow]:
    """Train cell after cell, each going on where it stopped; yield what came out.

    Once ``stop`` is true, what is left is not trained, and the rest is yielded as it stands.

    Parameters
    ----------
    report:
        called with a run's name and each of its events.

    Raises
    ------
    MetagradError
        if ``out`` holds a run of other settings, or a task has more ways than there are classes.
    """
    dataset = data.load("omniglot", data_dir=data_dir)
    for cell in cells:  # before hours of work
        require_possible(out / f"body-{cell.seed}", body(protocol, cell.seed), dataset, BODY_OPTIONS)
        require_possible(out / cell.name, stage(protocol, cell), dataset, STAGE_OPTIONS)
    go_on = functools.partial(train_unless_done, data_dir=data_dir, report=report, stop=stop)
    for cell in cells:
        first, second = out / f"body-{cell.seed}", out / cell.name
        go_on(first, body(protocol, cell.seed), options=BODY_OPTIONS)
        if not stop():
            begin = _with_zero_head(first, cell) if cell.method == "reptile" else first
            go_on(second, stage(protocol, cell), init=begin, options=STAGE_OPTIONS)
        yield row(cell, first, second)


def _with_zero_head(body: Path, cell: Cell) -> Path:
    """Write the features with a head of zeros, the one start of Reptile that treats classes alike; return the file."""
    run = Run.open(body)
    _, network = build(run.experiment, run.inputs, cell.ways)
    head = {name: torch.zeros_like(leaf) for name, leaf in network.named_parameters() if name.startswith("head.")}
    features = {name: leaf for name, leaf in run.load("best").theta.items() if not name.startswith((".", "head."))}
    path = body.with_name(f"{body.name}-{cell.ways}way.safetensors")
    save_file({name: leaf.detach().contiguous() for name, leaf in {**features, **head}.items()}, path)
    return path


def row(cell: Cell, *stages: Path) -> CellRow:
    """Return what the runs of a cell came to, as far as they are."""
    runs = [Run.open(folder) for folder in stages if (folder / "config.json").exists()]
    spent, best = 0.0, None
    reached: list[float | None] = [None] * len(REACHED)
    for run in runs:
        began = spent
        for line in run.metrics():
            spent = began + line.get("cpu_seconds", spent - began)
            score = line.get("val_accuracy", 0.0)
            reached = [
                spent if at is None and score >= level else at for at, level in zip(reached, REACHED, strict=True)
            ]
    last = runs[-1] if len(runs) == len(stages) else None
    if last is not None and last.has("best"):
        best = float(last.load("best").facts["best_score"])
    result = last.read_measured("result.json", None) if last is not None else None
    empty = CellRow(*cell, None, None, best, spent, tuple(reached))
    return empty if not result else replace(empty, accuracy=result["value"], ci95=result["ci95"])
