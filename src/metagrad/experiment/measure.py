"""The score of a run's best weights on new tasks, with its interval and protocol."""

from __future__ import annotations

from collections.abc import Callable
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
from metagrad.fewshot import Evaluation, evaluate
from metagrad.seeds import Seeds

if TYPE_CHECKING:
    from metagrad.experiment.run import Run


def measure(
    run: Run,
    sources: Sources,
    *,
    split: str = "test",
    tasks: int = 600,
    queries: int | None = None,
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
    queries:
        query images per class; ``None``: as in training.
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
        queries=queries,
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
    queries: int | None = None,
    transductive: bool = True,
    progress: Callable[[int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, Any], Evaluation]:
    """Do what :func:`measure` does; return the evaluation too, which has the score of each task."""
    precision = run.experiment.compute.precision
    state = learned(run, "best", inputs=sources.inputs, outputs=sources.outputs, ranks=ranks)
    method, model = build_for(run, sources)
    theta = {name: state.tensors[f"theta/{name}"].to(sources.device) for name in method.init(model)}
    network = run.experiment.network
    source, drawn = source_of(run, sources, split, queries)
    with precision_context(precision, sources.device):
        evaluation = evaluate(
            method,
            model,
            theta,
            source,
            tasks=tasks,
            generator=generator_of(run, seed, sources.draws_on),
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
    }
    return result, evaluation


def features_of(network: Any) -> dict[str, str]:
    """Return what a protocol says of a pretrained network: which, by its digest, and what of it trains."""
    if not isinstance(network, Pretrained):
        return {}
    return {"backbone": f"{network.name} {trunk_digest(network)[:12]}, body {network.body}"}


def source_of(run: Run, sources: Sources, split: str, queries: int | None) -> tuple[TaskSource, dict[str, Any]]:
    """Return where the tasks come from, and what the protocol says of them."""
    source, episodes = sources.test if split == "test" else sources.val, run.episodes
    if episodes is None or sources.dataset is None:
        if queries is not None:
            raise MetagradError("--queries is for data sets of classes: leave it out")
        return source, {"split": split}
    sampler = episodes.sampler(sources.dataset, split, device=sources.device, queries=queries)
    return source if queries is None else sampler, {
        "split": f"{split} ({len(sampler.classes.names)} classes, none of them in training)",
        "ways": episodes.ways,
        "shots": episodes.shots,
        "queries": sampler.queries,
    }


def generator_of(run: Run, seed: int, device: torch.device) -> torch.Generator:
    """Return the generator of the tasks; the first rule of seeds has no stream for them and takes ``seed`` itself."""
    seeds = Seeds(seed, run.seeds.rule)
    return seeds.generator("tasks" if seeds.rule == 1 else "test", device)
