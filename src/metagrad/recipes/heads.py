"""Memory-reduced meta-learning beside MAML, ANIL and ITD-BiO on photographs (Yang, Ma and Yu 2025), at equal time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metagrad.data import Dataset
from metagrad.errors import MetagradError
from metagrad.experiment import Budget, Conv4Config, Episodes, Experiment, Outer
from metagrad.experiment.episodes import episodes_of
from metagrad.experiment.loop import Event, train_run
from metagrad.experiment.measure import measure
from metagrad.experiment.run import Run
from metagrad.experiment.setup import build_for
from metagrad.fewshot import ANIL, MAML, ITDBiO, MemoryReduced, Method
from metagrad.implicit import GradientDescent
from metagrad.recipes.memory_compute import peak
from metagrad.recipes.protocols import HeadMethod, HeadsProtocol
from metagrad.recipes.stages import require_same

_VALIDATE = 100  # meta-steps between validations


@dataclass(frozen=True)
class HeadsRow:
    """What a method reached in its time."""

    method: str
    accuracy: float
    """Accuracy on test classes, a fraction."""
    ci95: float
    """Half width of its 95 % interval."""
    val_accuracy: float
    """Accuracy of the same weights on validation classes."""
    meta_steps: int
    """Meta-steps taken."""
    cpu_seconds: float
    """Processor time of training and validation, all threads, which other programs do not lengthen."""
    megabytes: float
    """Peak of tensor memory over one meta-gradient, in units of 2²⁰ bytes."""


@dataclass(frozen=True)
class HeadsCell:
    """What a method reached with one seed, as far as it has run."""

    dataset: str
    method: str
    seed: int
    accuracy: float | None
    """Accuracy on test classes, a fraction; ``None``: not measured yet."""
    per_task: tuple[float, ...]
    """The accuracy of each test task."""
    meta_steps: int
    cpu_seconds: float
    """Processor time of training and validation."""

    @classmethod
    def of(cls, folder: Path, dataset: str, method: str, seed: int) -> HeadsCell:
        """Read it from its run."""
        if not (folder / "config.json").exists():
            return cls(dataset, method, seed, None, (), 0, 0.0)
        run = Run.open(folder)
        facts: dict[str, Any] = run.load("last").facts if run.has("last") else {"step": 0, "cpu_seconds": 0.0}
        result = run.read_measured("result.json", None) or {"value": None, "per_task": ()}
        return cls(
            dataset,
            method,
            seed,
            result["value"],
            tuple(result["per_task"]),
            facts["step"],
            facts["cpu_seconds"],
        )

    def plain(self) -> PlainCell:
        """Return it without the tasks, which the run's ``result.json`` keeps."""
        return PlainCell(self.dataset, self.method, self.seed, self.accuracy, self.meta_steps, self.cpu_seconds)


@dataclass(frozen=True)
class PlainCell:
    """A :class:`HeadsCell` as a row of a table."""

    dataset: str
    method: str
    seed: int
    accuracy: float | None
    meta_steps: int
    cpu_seconds: float


@dataclass(frozen=True)
class CurveRow:
    """A validation: accuracy after so many seconds, of the clock and of the processor."""

    method: str
    seconds: float
    cpu_seconds: float
    accuracy: float


def experiment(method: HeadMethod, dataset: str, protocol: HeadsProtocol) -> Experiment:
    """Return the paper's settings of a method: MAML 3 inner steps, ANIL 10 (FC100: 5), ITD-BiO 20.

    Memory-reduced with its 20 steps of descent is ``memory-reduced-descent``; by itself it has our default solver.
    """
    lr, features = 0.05 if dataset == "fc100" else 0.1, protocol.features
    methods: dict[HeadMethod, Method] = {
        "maml": MAML(inner_lr=lr, inner_steps=3),
        "anil": ANIL(inner_lr=lr, inner_steps=5 if dataset == "fc100" else 10, features=features),
        "itd-bio": ITDBiO(inner_lr=lr, inner_steps=20, features=features),
        "memory-reduced": MemoryReduced(features=features),
        "memory-reduced-descent": MemoryReduced(solver=GradientDescent(lr=lr, max_steps=20), features=features),
    }
    return Experiment(
        tasks=Episodes(dataset, ways=5, shots=protocol.shots, queries=protocol.queries),
        network=Conv4Config(filters=protocol.filters, pooling=True),
        method=methods[method],
        outer=Outer(lr=protocol.outer_lr, schedule="constant"),
        budget=Budget(
            meta_steps=10**7, tasks_per_step=protocol.tasks, val_every=_VALIDATE, test_tasks=protocol.test_tasks
        ),
        seed=protocol.seed,
    )


def run_method(
    method: HeadMethod,
    folder: Path,
    dataset: Dataset,
    protocol: HeadsProtocol,
    *,
    command: list[str],
    report: Callable[[Event], None],
    stop: Callable[[], bool],
) -> tuple[HeadsRow, list[CurveRow]] | None:
    """Train a method until its processor time is over, or go on with its run, then test it; ``None`` if stopped.

    Raises
    ------
    MetagradError
        if ``folder`` holds a run of other settings, or on other data.
    """
    wanted = experiment(method, dataset.name, protocol)
    episodes = episodes_of(wanted.tasks)
    assert episodes is not None
    sources = episodes.of(dataset)
    require_same(folder, wanted)
    there = (folder / "config.json").exists()
    run = Run.open(folder) if there else Run.create(folder, wanted, sources, command=command)
    if run.data["digest"] != dataset.digest:
        raise MetagradError(f"{folder} holds a run on other data: choose another --out, or remove it")
    spent = [seconds_spent(folder)]

    def watch(event: Event) -> None:
        spent[0] = max(spent[0], event.line.get("cpu_seconds", 0.0))
        report(event)

    def over() -> bool:
        return stop() or (spent[0] >= 60 * protocol.minutes and run.has("best"))

    with run:
        if spent[0] < 60 * protocol.minutes or not run.has("best"):
            train_run(run, sources, resume=there, report=watch, stop=over)
        if stop():
            return None
        facts = run.load("last").facts
        result = measure(run, sources, tasks=protocol.test_tasks, seed=run.test_seed)
        run.write_measured("result.json", result | {"train_cpu_seconds": facts["cpu_seconds"]}, result["weights"])
        algorithm, model = build_for(run, sources)
        tasks = sources.train(protocol.tasks, generator=torch.Generator().manual_seed(protocol.seed))
        memory = peak(algorithm, model, tasks)
        spent_on = facts["step"], facts["cpu_seconds"]
        row = HeadsRow(method, result["value"], result["ci95"], result["val_score"], *spent_on, memory)
        return row, curve(method, run.metrics())


def seconds_spent(folder: Path) -> float:
    """Return the processor time that the run in this folder has had, in seconds; 0 where there is none."""
    if not (folder / "config.json").exists() or not (run := Run.open(folder)).has("last"):
        return 0.0
    return float(run.load("last").facts["cpu_seconds"])


def curve(method: str, lines: list[dict[str, Any]]) -> list[CurveRow]:
    """Return the validations with the time at which they were made."""
    rows, clock, processor = [], 0.0, 0.0
    for line in lines:
        clock, processor = line.get("seconds", clock), line.get("cpu_seconds", processor)
        if "val_accuracy" in line:
            rows.append(CurveRow(method, clock, processor, line["val_accuracy"]))
    return rows
