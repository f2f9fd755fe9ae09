"""Memory-reduced meta-learning, MAML, ANIL and ITD-BiO on photographs, all begun at the same features.

Every cell is two runs: ``DATASET-body-SEED``, ProtoNet on tasks of many classes, which all cells of a seed share, and
``DATASET-METHOD-SEED``, which begins at it. ProtoNet is a method of the second stage too: what the others are held to.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from metagrad import data
from metagrad.data import Progress
from metagrad.experiment import Budget, Conv4Config, Episodes, Experiment, Outer
from metagrad.experiment.loop import Event
from metagrad.fewshot import ANIL, MAML, ITDBiO, MemoryReduced, Method, ProtoNet
from metagrad.recipes.heads import HeadsCell
from metagrad.recipes.protocols import CifarTwoStagesProtocol, TwoStageMethod
from metagrad.recipes.stages import require_possible, train_unless_done

# What the command calls options of train.
BODY_OPTIONS = {"--train-ways": "--body-ways", "--outer-lr": "--body-lr"}
STAGE_OPTIONS = {"--outer-lr": "--lr"}

# Inner step sizes and l2 are the best of those tried on validation classes of CIFAR-FS, at the features of a ProtoNet,
# with nothing meta-learned after it: ../docs/results-diary.md. The paper's steps of 0.1 are too long there.
METHODS: dict[TwoStageMethod, Method] = {
    "memory-reduced": MemoryReduced(l2=2.0, start="zero"),
    "maml": MAML(inner_lr=0.04, inner_steps=5, start="shared"),
    "anil": ANIL(inner_lr=0.03, inner_steps=10, start="shared"),
    "itd-bio": ITDBiO(inner_lr=0.03, inner_steps=20, start="zero"),
    "protonet": ProtoNet(scale=0.1),
}


def body(protocol: CifarTwoStagesProtocol, dataset: str, seed: int) -> Experiment:
    """Return the training of the features: ProtoNet on tasks of many classes."""
    return Experiment(
        tasks=Episodes(
            dataset, ways=5, shots=protocol.shots, queries=15, train_ways=protocol.body_ways, train_queries=5
        ),
        network=Conv4Config(filters=protocol.filters, pooling=True),
        method=ProtoNet(scale=0.1),
        outer=Outer(lr=protocol.body_lr),
        budget=Budget(
            meta_steps=protocol.body_steps,
            tasks_per_step=1,
            val_every=min(1000, protocol.body_steps),
            val_tasks=protocol.val_tasks,
            test_tasks=0,
        ),
        seed=seed,
    )


def stage(protocol: CifarTwoStagesProtocol, dataset: str, method: TwoStageMethod, seed: int) -> Experiment:
    """Return the training of a method, which begins at the features."""
    return Experiment(
        tasks=Episodes(dataset, ways=5, shots=protocol.shots, queries=15),
        network=Conv4Config(filters=protocol.filters, pooling=True),
        method=METHODS[method],
        outer=Outer(lr=protocol.lr),
        budget=Budget(
            meta_steps=protocol.steps,
            tasks_per_step=protocol.tasks,
            val_every=max(1, protocol.steps // 2),
            val_tasks=protocol.val_tasks,
            test_tasks=protocol.test_tasks,
        ),
        seed=seed,
    )


def trained(
    out: Path,
    datasets: Sequence[str],
    methods: Sequence[TwoStageMethod],
    seeds: Sequence[int],
    protocol: CifarTwoStagesProtocol,
    *,
    data_dir: Path | None,
    report: Callable[[str, Event], None],
    progress: Progress | None = None,
    stop: Callable[[], bool],
) -> Iterator[HeadsCell]:
    """Train cell after cell, each going on where it stopped; yield what came out.

    Once ``stop`` is true, what is left is not trained, and the rest is yielded as it stands.

    Parameters
    ----------
    report:
        called with a run's name and each of its events.
    progress:
        called with (done, total, what) while a data set is prepared.

    Raises
    ------
    MetagradError
        if ``out`` holds a run of other settings, or a task has more ways than there are classes.
    """
    cells = [(dataset, method, seed) for dataset in datasets for seed in seeds for method in methods]
    loaded = {dataset: data.load(dataset, data_dir=data_dir, progress=progress) for dataset in datasets}
    for dataset, method, seed in cells:  # before hours of work
        require_possible(out / f"{dataset}-body-{seed}", body(protocol, dataset, seed), loaded[dataset], BODY_OPTIONS)
        wanted = stage(protocol, dataset, method, seed)
        require_possible(out / f"{dataset}-{method}-{seed}", wanted, loaded[dataset], STAGE_OPTIONS)
    go_on = functools.partial(train_unless_done, data_dir=data_dir, report=report, stop=stop)
    for dataset, method, seed in cells:
        first, second = out / f"{dataset}-body-{seed}", out / f"{dataset}-{method}-{seed}"
        go_on(first, body(protocol, dataset, seed), options=BODY_OPTIONS)
        go_on(second, stage(protocol, dataset, method, seed), init=first, options=STAGE_OPTIONS)
        yield HeadsCell.of(second, dataset, method, seed)
