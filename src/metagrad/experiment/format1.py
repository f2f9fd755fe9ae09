"""Runs and model files of format 1, as metagrad 0.1 wrote them: their flat options become an experiment."""

from __future__ import annotations

import dataclasses
from typing import Any

from metagrad.data.reading import Reading
from metagrad.experiment.config import TrainConfig
from metagrad.experiment.episodes import Episodes
from metagrad.experiment.experiment import Budget, Compute, Experiment, Outer
from metagrad.experiment.networks import Conv4Config, MLPConfig, NetworkConfig, ResNet12Config
from metagrad.experiment.sources import TaskSet
from metagrad.fewshot import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    R2D2,
    ITDBiO,
    MemoryReduced,
    MetaSGD,
    ProtoNet,
    Reptile,
)
from metagrad.fewshot.algorithms.base import GivesNetworks
from metagrad.implicit import (
    CG,
    LBFGS,
    MINRES,
    Adam,
    Adjoint,
    FirstOrder,
    GradientDescent,
    HessianFree,
    Implicit,
    InnerSolver,
    LinearSolver,
    Nesterov,
    Neumann,
    Woodbury,
)


def experiment_of(config: TrainConfig, dataset: str) -> Experiment:
    """Return the experiment that resolved flat options describe."""
    episodes = Episodes(
        dataset, ways=config.ways, shots=config.shots, queries=config.queries, image_size=config.image_size
    )
    return Experiment(
        tasks=episodes if config.task_set is None else TaskSet(tasks=episodes, count=config.task_set),
        network=network_of(config),
        method=method_of(config),
        outer=Outer(lr=config.outer_lr, schedule=config.schedule),
        budget=Budget(
            meta_steps=config.meta_steps,
            tasks_per_step=config.tasks,
            val_every=config.val_every,
            val_tasks=config.val_tasks,
            test_tasks=config.test_tasks,
            checkpoint_seconds=config.checkpoint_seconds,
        ),
        compute=Compute(device=config.device, precision=config.precision, chunk=config.chunk),
        seed=config.seed,
    )


def network_of(config: TrainConfig) -> NetworkConfig:
    """Return the network that flat options describe."""
    match config.network or "conv4":
        case "mlp":
            return MLPConfig(hidden=(8 * config.filters,) * 2)
        case "resnet12":
            return ResNet12Config(filters=config.filters)
        case conv:
            return Conv4Config(filters=config.filters, pooling=conv == "conv4-pool", norm=config.norm)


def method_of(config: TrainConfig) -> GivesNetworks:
    """Return the method that resolved flat options describe."""
    lr, steps, adapts = config.inner_lr or 0.0, config.inner_steps or 0, config.adapts or "*"
    features, l2 = config.features or "cached", 0.0 if config.l2 is None else config.l2
    match config.method:
        case "maml":
            return MAML(
                inner_lr=lr, inner_steps=steps, learn_lr=config.learn_inner_lr or "fixed", truncate=config.truncate,
                checkpoint=config.keep_every, adapts=adapts,
            )  # fmt: skip
        case "fomaml":
            return FOMAML(inner_lr=lr, inner_steps=steps, adapts=adapts)
        case "meta-sgd":
            return MetaSGD(inner_lr=lr, inner_steps=steps)
        case "reptile":
            return Reptile(inner_lr=lr, inner_steps=steps)
        case "anil":
            return ANIL(inner_lr=lr, inner_steps=steps, features=features)
        case "boil":
            return BOIL(inner_lr=lr, inner_steps=steps)
        case "itd-bio":
            return ITDBiO(inner_lr=lr, inner_steps=steps, l2=l2, features=features)
        case "protonet":
            return ProtoNet()
        case "r2d2":
            return R2D2(l2=l2)
        case "memory-reduced":
            solver, adjoint = _inner_solver(config, steps), _adjoint(config)
            return MemoryReduced(l2=l2, solver=solver, adjoint=adjoint, features=features)
        case "imaml":
            assert config.lam is not None
            return IMAML(
                lam=config.lam,
                learn_lam=config.learn_lam or "fixed",
                solver=_inner_solver(config, steps),
                adjoint=_adjoint(config),
                adapts=adapts,
            )


def _inner_solver(config: TrainConfig, max_steps: int) -> InnerSolver:
    lr, tol = config.inner_lr or 0.0, config.inner_tol or 0.0
    match config.inner_solver or "gd":
        case "gd":
            return GradientDescent(lr=lr, max_steps=max_steps, tol=tol)
        case "nesterov":
            return Nesterov(lr=lr, max_steps=max_steps, tol=tol)
        case "adam":
            return Adam(lr=lr, max_steps=max_steps, tol=tol)
        case "lbfgs":
            return LBFGS(max_steps=max_steps, tol=tol)
        case "hessian-free":
            return HessianFree(max_steps=max_steps, tol=tol)


def _adjoint(config: TrainConfig) -> Adjoint:
    assert config.cg_steps is not None
    assert config.curvature is not None
    solver: LinearSolver
    match config.linear_solver or "cg":
        case "none":
            return FirstOrder()
        case "cg":
            solver = CG(max_steps=config.cg_steps)
        case "minres":
            solver = MINRES(max_steps=config.cg_steps)
        case "neumann":
            # A few steps of descent may grow along the steepest direction; the Neumann series would diverge.
            assert config.inner_lr is not None
            solver = Neumann(terms=config.cg_steps, lr=config.inner_lr / 4)
        case "woodbury":
            solver = Woodbury()
    return Implicit(linear_solver=solver, curvature=config.curvature)


def of_record(record: dict[str, Any]) -> tuple[Experiment, dict[str, Any]]:
    """Return the experiment of a ``config.json`` of format 1, and its data as format 2 records them.

    Raises
    ------
    MetagradError, TypeError, ValueError
        for invalid options.
    """
    # An option that is younger than the run has a default that does what the older version did.
    config = TrainConfig(**record["config"]).resolved(record["dataset"])
    if any(getattr(config, name) != value for name, value in record["config"].items()):
        raise ValueError("an option has no value")
    return experiment_of(config, record["dataset"]), _data(record, config)


def _data(record: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Return the data as format 2 records them."""
    reading = Reading.of(record["dataset"], record.get("image_size") or config.image_size)
    return {
        "digest": record["data_digest"],
        "inputs": [reading.channels, reading.size, reading.size],
        "outputs": config.ways,
        **{key: record[key] for key in ("data_dir", "split") if record.get(key) is not None},
    }


def trained_as(record: dict[str, Any]) -> dict[str, Any]:
    """Return the flat options that a checkpoint of format 1 depends on."""
    config = TrainConfig(**record["config"]).resolved(record["dataset"])
    return {name: value for name, value in dataclasses.asdict(config).items() if name not in _LOOSE}


_LOOSE = ("meta_steps", "val_every", "val_tasks", "test_tasks", "checkpoint_seconds", "chunk", "device")
