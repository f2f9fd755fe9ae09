"""The accuracy of a run's best weights, with its interval and protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from metagrad.data import Dataset
from metagrad.fewshot import TaskSource, evaluate
from metagrad.ranks import ALONE, Ranks
from metagrad.seeds import Seeds
from metagrad.training.arithmetic import arithmetic
from metagrad.training.record import versions
from metagrad.training.run import Run
from metagrad.training.setup import build, choose_device, episodes_of, learned


def measure(
    run: Run,
    dataset: Dataset,
    *,
    split: str = "test",
    tasks: int = 600,
    queries: int | None = None,
    seed: int = 0,
    transductive: bool = True,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Evaluate a run's best weights on new tasks of a split; return the result with its protocol.

    Parameters
    ----------
    split:
        ``"test"`` or ``"val"``.
    queries:
        query images a class; ``None`` means as in training.
    seed:
        of the tasks; with :attr:`Run.test_seed` those of ``result.json``.
    transductive:
        see :func:`metagrad.fewshot.evaluate`.
    ranks:
        the processes that share the work.

    Raises
    ------
    MetagradError
        if the run has no best weights yet, or the options do not fit the split.
    """
    config, where = run.config, choose_device(device or run.config.device)
    channels, *_, size = dataset.train.images.shape[1:]
    state = learned(run, "best", channels=channels, size=size, ranks=ranks)
    method, model = build(config, dataset, where, run.seeds)
    theta = {name: state.tensors[f"theta/{name}"].to(where) for name in method.init(model)}
    classes, asked = (dataset.test if split == "test" else dataset.val).to(where), queries or config.queries
    source: TaskSource = episodes_of(classes, config, which=split, queries=asked)
    available = len(classes.with_at_least(config.shots + asked).names)
    # The first rule has no stream of its own here: ``seed`` is the generator's.
    draws = seed if run.seeds.rule == 1 else Seeds(seed).of("test")
    generator = torch.Generator(where).manual_seed(draws)
    with arithmetic(config.precision, where):
        found = evaluate(
            method,
            model,
            theta,
            source,
            tasks=tasks,
            generator=generator,
            transductive=transductive,
            progress=progress,
            ranks=ranks,
        )
    return {
        "metric": f"{split}_accuracy",
        "value": found.accuracy,
        "ci95": found.ci95,
        "protocol": {
            "dataset": dataset.name,
            "preprocessing": dataset.preprocessing,
            "split": f"{split} ({available} classes, none of them in training)",
            "ways": config.ways,
            "shots": config.shots,
            "queries": asked,
            "tasks": tasks,
            "task_seed": seed,
            "transductive": found.transductive,
        },
        "method": config.method,
        "network": f"{config.network or 'conv4'}, {config.filters} filters, {config.norm} norm",
        "weights": state.digest,
        "weights_of_step": state.facts["best_step"],
        "val_accuracy": state.facts["best_accuracy"],
        "precision": config.precision,
        "seed": config.seed,
        "versions": versions(),
    }
