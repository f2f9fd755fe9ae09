"""The score of a run's best weights on new tasks, with its interval and protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from metagrad.distributed import ALONE, Ranks
from metagrad.errors import MetagradError
from metagrad.experiment.precision import arithmetic
from metagrad.experiment.record import versions
from metagrad.experiment.setup import build_for, learned
from metagrad.experiment.sources import Sources
from metagrad.experiment.values import to_json
from metagrad.fewshot import evaluate
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
    experiment, episodes = run.experiment, run.episodes
    state = learned(run, "best", inputs=sources.inputs, outputs=sources.outputs, ranks=ranks)
    method, model = build_for(run, sources)
    theta = {name: state.tensors[f"theta/{name}"].to(sources.device) for name in method.init(model)}
    source, about = (sources.test if split == "test" else sources.val), {}
    if episodes is not None and sources.dataset is not None:
        drawn_from = episodes.sampler(sources.dataset, split, device=sources.device, queries=queries)
        source = source if queries is None else drawn_from
        about = {"ways": episodes.ways, "shots": episodes.shots, "queries": drawn_from.queries}
        named = f"{split} ({len(drawn_from.classes.names)} classes, none of them in training)"
    elif queries is not None:
        raise MetagradError("--queries is for data sets of classes: leave it out")
    else:
        named = split
    # The first rule has no stream of its own here: ``seed`` is the generator's.
    rule = Seeds(seed, run.seeds.rule)
    generator = rule.generator("tasks" if rule.rule == 1 else "test", sources.draws_on)
    with arithmetic(experiment.compute.precision, sources.device):
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
        "metric": f"{split}_{found.metric.replace(' ', '_')}",
        "value": found.score,
        "ci95": found.ci95,
        "loss": found.loss,
        "protocol": {
            **sources.protocol,
            "split": named,
            **about,
            "tasks": tasks,
            "task_seed": seed,
            "transductive": found.transductive,
        },
        "method": run.method_name,
        "network": to_json(experiment.network) if not hasattr(experiment.network, "parameters") else "a module",
        "weights": state.digest,
        "weights_of_step": state.facts["best_step"],
        "val_score": state.facts["best_score"] * (1 if found.metric == "accuracy" else -1),  # else it is the loss
        "precision": experiment.compute.precision,
        "seed": experiment.seed,
        "versions": versions(),
    }
