"""From options to the things they name: device, samplers, method and network."""

from __future__ import annotations

import torch
from torch import nn

from metagrad.data import Dataset, ImageClasses
from metagrad.errors import MetagradError
from metagrad.fewshot import FOMAML, IMAML, MAML, Algorithm, Conv4, EpisodeSampler
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
from metagrad.ranks import local_device
from metagrad.training.config import TrainConfig


def build(config: TrainConfig, dataset: Dataset, device: torch.device) -> tuple[Algorithm, nn.Module]:
    """Return the method and the freshly initialised network of a run."""
    channels, size = dataset.train.images.shape[1], dataset.train.images.shape[-1]
    generator = torch.Generator().manual_seed(config.seed)
    model = Conv4(config.ways, channels=channels, image_size=size, filters=config.filters, generator=generator)
    return method_of(config), model.to(device)


def method_of(config: TrainConfig) -> Algorithm:
    """Return the method of a resolved configuration."""
    assert config.inner_steps is not None
    match config.method:
        case "maml":
            lr = _step_size(config)
            return MAML(inner_lr=lr, inner_steps=config.inner_steps, learn_lr=config.learn_inner_lr or "fixed")
        case "fomaml":
            return FOMAML(inner_lr=_step_size(config), inner_steps=config.inner_steps)
        case "imaml":
            assert config.lam is not None
            return IMAML(
                lam=config.lam,
                learn_lam=config.learn_lam or "fixed",
                solver=_inner_solver(config, config.inner_steps),
                adjoint=_adjoint(config),
            )


def _step_size(config: TrainConfig) -> float:
    assert config.inner_lr is not None
    return config.inner_lr


def _inner_solver(config: TrainConfig, max_steps: int) -> InnerSolver:
    tol = config.inner_tol or 0.0
    match config.inner_solver or "gd":
        case "gd":
            return GradientDescent(lr=_step_size(config), max_steps=max_steps, tol=tol)
        case "nesterov":
            return Nesterov(lr=_step_size(config), max_steps=max_steps, tol=tol)
        case "adam":
            return Adam(lr=_step_size(config), max_steps=max_steps, tol=tol)
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
            # Descent bears a step that grows along the steepest direction for a few steps; a series must not.
            solver = Neumann(terms=config.cg_steps, lr=_step_size(config) / 4)
        case "woodbury":
            solver = Woodbury()
    return Implicit(linear_solver=solver, curvature=config.curvature)


def samplers(config: TrainConfig, dataset: Dataset, device: torch.device) -> tuple[EpisodeSampler, EpisodeSampler]:
    """Return the samplers of training and validation tasks; the test split is checked against the options too."""

    def sampler(classes: ImageClasses, rotations: bool = False) -> EpisodeSampler:
        ways, shots, queries = config.ways, config.shots, config.queries
        return EpisodeSampler(classes=classes, ways=ways, shots=shots, queries=queries, rotations=rotations)

    sampler(dataset.test)
    return sampler(dataset.train.to(device), dataset.rotations), sampler(dataset.val.to(device))


def choose_device(name: str) -> torch.device:
    """Return the torch device called ``name``; ``cuda`` is this rank's own GPU.

    Raises
    ------
    MetagradError
        if there is none.
    """
    try:
        device = torch.device(local_device(name))
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("metagrad computes on cpu and cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:100]
        raise MetagradError(f"no device {name!r} here ({reason}): use --device cpu") from error
    return device
