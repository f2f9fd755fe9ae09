"""From options to the things they name: device, samplers, method and network."""

from __future__ import annotations

import torch
from torch import nn

from metagrad.data import Dataset, ImageClasses
from metagrad.errors import MetagradError
from metagrad.fewshot import FOMAML, IMAML, MAML, Algorithm, Conv4, EpisodeSampler
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
    assert config.inner_lr is not None
    assert config.inner_steps is not None
    match config.method:
        case "maml":
            return MAML(inner_lr=config.inner_lr, inner_steps=config.inner_steps)
        case "fomaml":
            return FOMAML(inner_lr=config.inner_lr, inner_steps=config.inner_steps)
        case "imaml":
            assert config.lam is not None
            assert config.cg_steps is not None
            assert config.curvature is not None
            return IMAML(
                lam=config.lam,
                inner_lr=config.inner_lr,
                inner_steps=config.inner_steps,
                cg_steps=config.cg_steps,
                curvature=config.curvature,
            )


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
