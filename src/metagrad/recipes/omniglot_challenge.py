"""One-shot classification within an alphabet, which Omniglot was made for (Lake, Salakhutdinov and Tenenbaum 2015).

A run has 20 characters of one evaluation alphabet. One person drew the support image of each, another the query image.
The background alphabets are what there is to learn from. The 20 runs that people were asked are a list of drawings
that is not part of the images; runs are drawn here in the same manner, from all 20 evaluation alphabets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metagrad.data import ImageClasses
from metagrad.data.omniglot_alphabets import alphabet
from metagrad.errors import MetagradError
from metagrad.experiment import Budget, Conv4Config, Episodes, Experiment, Outer
from metagrad.experiment.run import Run
from metagrad.experiment.setup import build_for, learned
from metagrad.experiment.sources import Sources
from metagrad.fewshot import Batch, ProtoNet, Tasks, Variation, evaluate
from metagrad.fewshot.disjoint import DisjointTasks
from metagrad.fewshot.evaluate import mean_and_ci95
from metagrad.fewshot.views import Views
from metagrad.recipes.protocols import ChallengeProtocol
from metagrad.recipes.stages import require_same, train_unless_done

WAYS = 20
VIEWS = Variation(shift=1.0, turn=5.0, shear=0.08, thickness=0.3)  # how far views differ; chosen on validation
#: Errors in percent, as Lake, Salakhutdinov and Tenenbaum quote them ("The Omniglot challenge", 2019), on the runs that
#: people were asked.
PUBLISHED = {"people": 4.5, "Bayesian program learning": 3.3, "prototypical networks": 13.7}


@dataclass(frozen=True)
class ChallengeRow:
    """Errors in the runs of one alphabet."""

    alphabet: str
    runs: int
    """Runs of 20 characters."""
    error: float
    """Share of the queries that are labelled wrongly, each by itself."""
    error_transductive: float
    """The same where the 20 queries of a run are labelled together, by way of batch statistics."""


def experiment(protocol: ChallengeProtocol) -> Experiment:
    """Return the training on the background alphabets: ProtoNet on tasks of many ways."""
    return Experiment(
        tasks=Episodes(
            "omniglot-alphabets",
            ways=5,
            shots=1,
            queries=15,
            train_ways=protocol.train_ways,
            train_queries=4,
            variation=protocol.variation,
        ),
        network=Conv4Config(filters=protocol.filters, pooling=True, pools=protocol.pools),
        method=ProtoNet(scale=0.1),
        outer=Outer(lr=3e-3),
        budget=Budget(meta_steps=protocol.meta_steps, tasks_per_step=1, val_tasks=protocol.val_tasks, test_tasks=0),
        seed=protocol.seed,
    )


def drawn(classes: ImageClasses, *, runs: int, generator: torch.Generator) -> dict[str, Tasks]:
    """Draw runs of each alphabet: ``(runs, 20, ...)`` support and query images by two people.

    Raises
    ------
    MetagradError
        for an alphabet of fewer than 20 characters.
    """
    found = {}
    for name in sorted({alphabet(one) for one in classes.names}):
        own = classes.subset([one for one in classes.names if alphabet(one) == name])
        if len(own.names) < WAYS:
            raise MetagradError(f"{name} has {len(own.names)} characters, and a run asks for {WAYS}: leave it out")
        keys = torch.rand(runs, len(own.names), generator=generator)
        chosen = keys.topk(WAYS, dim=1).indices
        people = torch.rand(runs, int(own.counts.min()), generator=generator).topk(2, dim=1).indices
        rows = own.first[chosen][..., None] + people[:, None]
        images = own.images[rows].float().div_(255)  # (runs, 20, 2, C, H, W)
        labels = torch.arange(WAYS).expand(runs, -1)
        found[name] = Tasks(Batch(images[:, :, 0], labels), Batch(images[:, :, 1], labels), chosen)
    return found


def measure(
    run: Run, sources: Sources, protocol: ChallengeProtocol, progress: Callable[[float, float], None]
) -> list[ChallengeRow]:
    """Return the errors of a run's best weights, alphabet by alphabet.

    Raises
    ------
    MetagradError
        for a run on other data, or of a method whose head has a row for each of so many classes.
    """
    if run.dataset != "omniglot-alphabets" or sources.dataset is None:
        raise MetagradError(
            f"{run.folder} learned from {run.dataset}, which has characters of the evaluation alphabets: train on "
            "omniglot-alphabets"
        )
    if not getattr(run.experiment.method, "any_ways", False):
        raise MetagradError(f"{run.method_name} has a learned row for each class: take another start, or ProtoNet")
    method: Any
    method, model = build_for(run, sources)
    state = learned(run, "best")
    theta = {name: state.tensors[f"theta/{name}"] for name in method.init(model)}
    if protocol.views > 1:
        method = Views(method=method, variation=VIEWS, count=protocol.views)
    asked: Any = sources.dataset.test
    tasks = drawn(asked, runs=protocol.runs, generator=torch.Generator().manual_seed(protocol.seed))
    rows = []
    for number, (name, some) in enumerate(tasks.items()):
        errors = []
        for transductive in (False, True):
            result = evaluate(
                method,
                model,
                theta,
                DisjointTasks(some),
                tasks=len(some),
                generator=torch.Generator(),
                transductive=transductive,
            )
            errors.append(1 - result.score)
        rows.append(ChallengeRow(name.rpartition("/")[2], len(some), *errors))
        progress(number + 1, len(tasks))
    return rows


def mean(errors: list[float]) -> tuple[float, float]:
    """Return the mean over alphabets and half the width of its 95 % interval, also over alphabets."""
    return mean_and_ci95(torch.tensor(errors, dtype=torch.float64))


def trained(
    folder: Path, protocol: ChallengeProtocol, data_dir: Path | None, report: Any, stop: Callable[[], bool]
) -> bool:
    """Train in ``folder``, or go on; whether it is done.

    Raises
    ------
    MetagradError
        if ``folder`` holds a run of other settings.
    """
    wanted = experiment(protocol)
    require_same(folder, wanted)
    train_unless_done(folder, wanted, data_dir=data_dir, report=lambda _, event: report(event), stop=stop)
    return (folder / "result.json").exists()
