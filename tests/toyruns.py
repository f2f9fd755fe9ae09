"""Runs small enough for tests: three splits of noisy prototypes and a network of two filters."""

import json

import torch

from metagrad import strict_json
from metagrad.data import Dataset, ImageClasses
from metagrad.experiment import Run, TaskSet
from metagrad.experiment.config import TrainConfig
from metagrad.experiment.format1 import experiment_of
from metagrad.experiment.loop import train_run
from metagrad.experiment.measure import measure


def toy(seed=0, drawings=4):
    """Make three tiny splits of noisy prototypes, 8×8."""
    g = torch.Generator().manual_seed(seed)

    def classes(prefix, count):
        prototypes = torch.randint(0, 256, (count, 1, 1, 8, 8), generator=g)
        noise = torch.randint(-40, 40, (count, drawings, 1, 8, 8), generator=g)
        images = (prototypes + noise).clamp(0, 255).to(torch.uint8).flatten(0, 1)
        return ImageClasses(images, torch.full((count,), drawings), tuple(f"{prefix}{i}" for i in range(count)))

    return Dataset("omniglot", classes("a", 9), classes("b", 6), classes("c", 6), True, "toy", f"digest{seed}")


def config(**options):
    small = {"ways": 3, "queries": 2, "tasks": 2, "filters": 2, "meta_steps": 20, "inner_steps": 2, "val_every": 10,
             "val_tasks": 4, "test_tasks": 8, "checkpoint_seconds": 1e-9}  # fmt: skip
    return TrainConfig(**{**small, **options}).resolved("omniglot")


def own(method):
    """Return what of the small options a method has no use for."""
    return {"inner_steps": None} if method in ("protonet", "r2d2") else {}


def experiment(**options):
    return experiment_of(config(**options), "omniglot")


def sources(run, dataset):
    """Return a run's tasks, drawn from a data set that is at hand."""
    found = run.episodes.of(dataset)
    return run.experiment.tasks.of(found, run.seeds) if isinstance(run.experiment.tasks, TaskSet) else found


def new_run(folder, *, dataset=None, **options):
    asked = experiment(**options)
    tasks = asked.tasks.tasks if isinstance(asked.tasks, TaskSet) else asked.tasks
    return Run.create(folder, asked, tasks.of(dataset or toy()), command=["test"])


def train(run, dataset, **options):
    return train_run(run, sources(run, dataset), **options)


def measured(run, dataset, **options):
    return measure(run, sources(run, dataset), **options)


def rewritten(path, change):
    """Change what a JSON file of a run says, digest included: not by accident, but by hand."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(strict_json.signed(value)))


def tensors(folder, name="last"):
    return Run.open(folder).load(name).tensors
