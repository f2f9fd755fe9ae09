"""The score of a run's best weights on new tasks, with its interval and protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from metagrad.distributed import ALONE, Ranks
from metagrad.errors import MetagradError
from metagrad.experiment.precision import precision_context
from metagrad.experiment.pretrained import Pretrained, trunk_digest
from metagrad.experiment.record import versions
from metagrad.experiment.setup import build_for, learned
from metagrad.experiment.sources import Sources, TaskSource
from metagrad.experiment.values import to_json
from metagrad.fewshot import EpisodeSampler, Evaluation, evaluate
from metagrad.fewshot.disjoint import DisjointTasks, disjoint_tasks
from metagrad.seeds import Seeds

if TYPE_CHECKING:
    from metagrad.experiment.run import Run


def measure(
    run: Run,
    sources: Sources,
    *,
    split: str = "test",
    tasks: int = 600,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    turned: bool = False,
    disjoint: bool = False,
    seed: int = 0,
    transductive: bool = True,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Evaluate a run's best weights on new tasks of a split; return the result with its protocol.

    Parameters
    ----------
    split:
        ``"test"`` or ``"val"``.
    ways, shots, queries:
        classes a task, support and query images a class; ``None``: those of the run's validation and test tasks.
    turned:
        turn the images of each class of a task by a random multiple of 90 degrees, as classes of their own.
    disjoint:
        take tasks that share no image, as many as there are, at most ``tasks``: the interval is then also over the
        choice of images (:func:`metagrad.fewshot.disjoint_tasks`).
    seed:
        of the tasks; :attr:`Run.test_seed` draws those of ``result.json``.
    transductive:
        see :func:`metagrad.fewshot.evaluate`.
    ranks:
        the processes that share the work.

    Raises
    ------
    MetagradError
        if the run has no best weights yet, or the options do not fit the split.
    """
    return measured(
        run,
        sources,
        split=split,
        tasks=tasks,
        ways=ways,
        shots=shots,
        queries=queries,
        turned=turned,
        disjoint=disjoint,
        seed=seed,
        transductive=transductive,
        progress=progress,
        ranks=ranks,
    )[0]


def measured(
    run: Run,
    sources: Sources,
    *,
    split: str,
    tasks: int,
    seed: int,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    turned: bool = False,
    disjoint: bool = False,
    transductive: bool = True,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, Any], Evaluation]:
    """Do what :func:`measure` does; return the evaluation too, which has the score of each task."""
    precision = run.experiment.compute.precision
    state = learned(run, "best", inputs=sources.inputs, outputs=sources.outputs, ranks=ranks)
    _require_ways(run, ways)
    method, model = build_for(run, sources)
    theta = {name: state.tensors[f"theta/{name}"].to(sources.device) for name in method.init(model)}
    network = run.experiment.network
    source, drawn = source_of(run, sources, split, ways=ways, shots=shots, queries=queries, turned=turned)
    generator = generator_of(run, seed, sources.draws_on)
    if disjoint:
        source, drawn, tasks = _disjoint(source, drawn, tasks, generator)
    with precision_context(precision, sources.device):
        evaluation = evaluate(
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
    best = state.facts["best_score"]
    by_accuracy = evaluation.metric == "accuracy"
    result = {
        "metric": f"{split}_{evaluation.metric.replace(' ', '_')}",
        "value": evaluation.score,
        "ci95": evaluation.ci95,
        "loss": evaluation.loss,
        "protocol": {
            **sources.protocol,
            **drawn,
            **features_of(network),
            "tasks": tasks,
            "task_seed": seed,
            "transductive": evaluation.transductive,
        },
        "method": run.method_name,
        "network": "a module" if hasattr(network, "parameters") else to_json(network),
        "weights": state.digest,
        "weights_of_step": state.facts["best_step"],
        "val_score" if by_accuracy else "val_loss": best if by_accuracy else -best,
        "precision": precision,
        "seed": run.experiment.seed,
        "versions": versions(),
        "per_task": [round(one, 6) for one in evaluation.per_task.tolist()],
    }
    return result, evaluation


def features_of(network: Any) -> dict[str, str]:
    """Return a protocol's entry for a pretrained network: its name and digest, and which part of it trains."""
    if not isinstance(network, Pretrained):
        return {}
    return {"backbone": f"{network.name} {trunk_digest(network)[:12]}, body {network.body}"}


def source_of(
    run: Run,
    sources: Sources,
    split: str,
    *,
    ways: int | None = None,
    shots: int | None = None,
    queries: int | None = None,
    turned: bool = False,
) -> tuple[TaskSource, dict[str, Any]]:
    """Return the source of the tasks, and the protocol's entries about them."""
    source, episodes = sources.test if split == "test" else sources.val, run.episodes
    given = {"ways": ways, "shots": shots, "queries": queries}
    asked: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if episodes is None or sources.dataset is None:
        if asked or turned:
            raise MetagradError(f"--{next(iter(asked), 'turned')} is for data sets of classes: leave it out")
        return source, {"split": split}
    sampler = replace(episodes, **asked).sampler(sources.dataset, split, device=sources.device, rotations=turned)
    words = f"{split} ({len(sampler.classes.names)} classes, none of them in training{', turned' if turned else ''})"
    drawn = {"split": words, "ways": sampler.ways, "shots": sampler.shots, "queries": sampler.queries}
    return sampler if asked or turned else source, drawn


def _require_ways(run: Run, ways: int | None) -> None:
    """Refuse other ways where the head has a learned row for each class."""
    own, method = run.episodes, run.experiment.method
    if ways is not None and own is not None and ways != own.ways and not getattr(method, "any_ways", False):
        raise MetagradError(
            f"{run.method_name} learned one row of its head for each of {own.ways} classes, so --ways {ways} is not "
            "possible: use a run trained with another --start, such as shared, or with protonet"
        )


def _disjoint(
    source: TaskSource, drawn: dict[str, Any], tasks: int, generator: torch.Generator
) -> tuple[TaskSource, dict[str, Any], int]:
    """Return tasks that share no image, at most so many."""
    if not isinstance(source, EpisodeSampler):
        raise MetagradError("--disjoint is for data sets of classes: leave it out")
    found = disjoint_tasks(source, generator=generator)
    few = found.part(0, min(tasks, len(found)))
    if len(few) < 2:
        raise MetagradError("there are too few images for two tasks without a common image: lower --ways or --queries")
    return DisjointTasks(few), drawn | {"disjoint": True}, len(few)


def generator_of(run: Run, seed: int, device: torch.device) -> torch.Generator:
    """Return the generator of the tasks; the first rule of seeds has no stream for them and takes ``seed`` itself."""
    seeds = Seeds(seed, run.seeds.rule)
    return seeds.generator("tasks" if seeds.rule == 1 else "test", device)
