"""The real inner problems that solvers are timed on: Omniglot tasks at the weights of a run, or at fresh ones."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from metagrad.data import Dataset, omniglot
from metagrad.errors import MetagradError
from metagrad.experiment.record import versions
from metagrad.experiment.run import Run
from metagrad.fewshot import IMAML, Conv4, EpisodeSampler, Tasks
from metagrad.fewshot.algorithms.base import Inner
from metagrad.implicit import Problem
from metagrad.recipes.network_error import ACTIVATIONS, with_activation
from metagrad.tree import Params


def add_options(parser: argparse.ArgumentParser) -> None:
    """Offer what decides the problems."""
    parser.add_argument("--run", type=Path, help="run directory whose best weights are taken (fresh weights of seed 0)")
    parser.add_argument("--data-dir", type=Path, help="where Omniglot lies (METAGRAD_DATA, or a download)")
    parser.add_argument("--tasks", type=int, default=16, help="tasks solved at once (16)")
    parser.add_argument("--filters", type=int, default=64, help="of fresh weights (64)")
    parser.add_argument("--lam", type=float, default=2.0, help="pull towards theta (2)")


def write(path: Path, rows: Sequence[Any], protocol: Mapping[str, Any]) -> None:
    """Write rows, dataclasses of one kind, as CSV, each with the protocol, versions and machine."""
    machine = versions()
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*(part.name for part in fields(rows[0])), *protocol, *machine])
        table.writerows([*asdict(row).values(), *protocol.values(), *machine.values()] for row in rows)


@dataclass(frozen=True)
class Scene:
    """A network, its weights and one batch of tasks, in one precision.

    Attributes
    ----------
    model, theta, tasks:
        what :class:`~metagrad.fewshot.IMAML` takes.
    method:
        iMAML with the strength asked for.
    """

    model: nn.Module
    theta: Params
    tasks: Tasks
    method: IMAML

    @property
    def filters(self) -> int:
        """Width of the network."""
        return len(next(iter(self.theta.values())))

    def inner(self) -> Inner:
        """Return the inner problems of the batch and where they begin."""
        return self.method.inner(self.model, self.theta, self.tasks.support)

    def problem(self) -> Problem:
        """Return the inner problems, cut from the graph."""
        inner = self.inner()
        return Problem(inner.objective, self.theta, inner.data).detached()

    def cast(self, activation: str, dtype: torch.dtype) -> Scene:
        """Return the same scene with this activation (a key of ``ACTIVATIONS``) and precision."""
        support, query = (part._replace(x=part.x.to(dtype)) for part in self.tasks)
        model = with_activation(self.model, ACTIVATIONS[activation], support.x[0], dtype)
        theta = {name: leaf.to(dtype) for name, leaf in self.theta.items()}
        return Scene(model, theta, Tasks(support, query), self.method)


def scene(options: argparse.Namespace, dataset: Dataset | None = None) -> Scene:
    """Draw 5-way 1-shot tasks of training characters (seed 0) and take the weights that the options name."""
    dataset = dataset or omniglot.load(data_dir=options.data_dir)
    tasks = EpisodeSampler(classes=dataset.train, ways=5, shots=1, queries=15)(
        options.tasks, generator=torch.Generator().manual_seed(0)
    )
    filters, saved = options.filters, None
    if options.run is not None:
        run = Run.open(options.run)
        if run.outputs != 5:
            raise MetagradError(f"{options.run} is a run of {run.outputs} ways; these tasks have 5")
        filters, saved = run.experiment.network.filters, run.load("best").tensors
    model = Conv4(5, filters=filters, generator=torch.Generator().manual_seed(0))
    theta = {
        name: (leaf if saved is None else saved[f"theta/{name}"]).detach() for name, leaf in model.named_parameters()
    }
    return Scene(model, theta, tasks, IMAML(lam=options.lam))
