"""From options to the things they name: device, samplers, method and network."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import nn

from metagrad import data
from metagrad.data import Dataset, ImageClasses, Progress
from metagrad.errors import MetagradError, in_short
from metagrad.fewshot import (
    ANIL,
    BOIL,
    FOMAML,
    IMAML,
    MAML,
    MLP,
    R2D2,
    Algorithm,
    Conv4,
    EpisodeSampler,
    ITDBiO,
    MemoryReduced,
    MetaSGD,
    ProtoNet,
    Reptile,
    ResNet12,
    TaskSource,
)
from metagrad.fewshot.algorithms.base import GivesNetworks
from metagrad.fewshot.algorithms.heads import FromFixedHead
from metagrad.fewshot.split import adapted, last_layer
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
from metagrad.ranks import ALONE, Ranks, local_device
from metagrad.seeds import Seeds
from metagrad.torch_modes import in_float32
from metagrad.training.checkpoint import State, require_generator, require_optimizer, require_theta, require_warm
from metagrad.training.config import TrainConfig
from metagrad.training.run import Run
from metagrad.tree import Params


def build(
    config: TrainConfig, dataset: Dataset, device: torch.device, seeds: Seeds | None = None
) -> tuple[Algorithm, nn.Module]:
    """Return the method and the freshly initialised network of a run, of whose seeds the weights come."""
    channels, *_, size = dataset.train.images.shape[1:]
    method, model = built(config, channels=channels, size=size, seeds=seeds)
    return method, model.to(device)


@in_float32()
def built(
    config: TrainConfig, *, channels: int, size: int, seeds: Seeds | None = None
) -> tuple[GivesNetworks, nn.Module]:
    """Return the method and the freshly initialised network for images of ``channels`` × ``size`` × ``size``."""
    generator = (seeds or Seeds(config.seed)).generator("weights")
    ways, filters = config.ways, config.filters
    model: nn.Module
    match config.network or "conv4":
        case "mlp":
            model = MLP((channels * size * size, 8 * filters, 8 * filters, ways), generator=generator)
        case "resnet12":
            model = ResNet12(ways, channels=channels, filters=filters, generator=generator)
        case conv:
            pooling = conv == "conv4-pool"
            model = Conv4(
                ways, channels=channels, image_size=size, filters=filters, pooling=pooling, norm=config.norm,
                generator=generator,
            )  # fmt: skip
    method = method_of(config, f"{last_layer(model)}.*")
    if isinstance(method, FromFixedHead):  # what every task begins at: where the pull is to
        for name, leaf in model.named_parameters():
            if name in adapted(model, method.head):
                nn.init.zeros_(leaf)
    return method, model


def skeleton(config: TrainConfig, *, channels: int, size: int) -> tuple[Params, nn.Module]:
    """Return theta and the network of :func:`built` without numbers: shapes alone take no memory, however large."""
    with torch.device("meta"):
        method, model = built(config, channels=channels, size=size)
        return method.init(model), model


def learned(run: Run, name: str, *, channels: int, size: int, ranks: Ranks = ALONE) -> State:
    """Read a checkpoint whose weights are those of the run's network, for images of ``channels`` × ``size`` × ``size``.

    Parameters
    ----------
    name:
        ``"best"``, or ``"last"`` with everything it takes to go on.

    Raises
    ------
    MetagradError
        as :meth:`Run.load` does, and if names, shapes or types differ, or numbers are not finite.
    """
    state = run.load(name, ranks)
    try:
        theta, model = skeleton(run.config, channels=channels, size=size)
        require_theta(state.tensors, theta)
        if name == "last":
            require_optimizer(state.tensors, theta, state.facts["step"])
            require_warm(state.tensors, dict(model.named_parameters()), run.config.task_set)
            require_generator(state.tensors["generator"])
    except (ValueError, RuntimeError) as error:  # torch's own, for a network that cannot be
        raise MetagradError(
            f"{run.folder}/{name}.safetensors does not fit what config.json describes ({in_short(error)}): restore "
            "the file, or begin a new run"
        ) from error
    return state


def load_data(run: Run, *, data_dir: Path | None, progress: Progress | None) -> Dataset:
    """Load the data that a run was made with.

    Raises
    ------
    MetagradError
        if they are not there, or are others.
    """
    remembered = run.record.get("data_dir")
    if run.dataset != "folder" and (os.environ.get("METAGRAD_DATA") or not os.path.exists(remembered or "")):
        remembered = None  # where to look was said anew, or they were moved
    dataset = data.load(
        run.dataset,
        data_dir=data_dir or (Path(remembered) if remembered else None),
        image_size=run.config.image_size,
        split=run.record.get("split"),
        progress=progress,
    )
    if dataset.digest != run.record["data_digest"]:
        where = data_dir or remembered
        raise MetagradError(
            f"the {run.dataset} data{f' in {where}' if where else ''} differ from those {run.folder} began with: "
            "restore the files as they were, pass another --data-dir, or begin a new run"
        )
    return dataset


def method_of(config: TrainConfig, head: str = "head.*") -> GivesNetworks:
    """Return the method of a resolved configuration; ``head`` is the pattern of the last layer's parameters."""
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
            return ANIL(inner_lr=lr, inner_steps=steps, head=head, features=features)
        case "boil":
            return BOIL(inner_lr=lr, inner_steps=steps, head=head)
        case "itd-bio":
            return ITDBiO(inner_lr=lr, inner_steps=steps, l2=l2, head=head, features=features)
        case "protonet":
            return ProtoNet(head=head)
        case "r2d2":
            return R2D2(l2=l2, head=head)
        case "memory-reduced":
            solver, adjoint = _inner_solver(config, steps), _adjoint(config)
            return MemoryReduced(l2=l2, solver=solver, adjoint=adjoint, head=head, features=features)
        case "imaml":
            assert config.lam is not None
            return IMAML(
                lam=config.lam,
                learn_lam=config.learn_lam or "fixed",
                solver=_inner_solver(config, steps),
                adjoint=_adjoint(config),
                adapts=adapts,
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


def samplers(config: TrainConfig, dataset: Dataset, device: torch.device) -> tuple[TaskSource, TaskSource]:
    """Return the sources of training and validation tasks; the test split is checked against the options too."""

    def sampler(which: str, rotations: bool = False, to: torch.device = device) -> EpisodeSampler:
        classes: ImageClasses = getattr(dataset, which)
        return episodes_of(classes.to(to), config, which=which, rotations=rotations)

    sampler("test", to=torch.device("cpu"))
    return sampler("train", dataset.rotations), sampler("val")


def episodes_of(
    classes: ImageClasses, config: TrainConfig, *, which: str, queries: int | None = None, rotations: bool = False
) -> EpisodeSampler:
    """Return the sampler of a split, of the classes that have enough images.

    Raises
    ------
    MetagradError
        if these are too few; names the split.
    """
    asked = queries or config.queries
    enough = classes.with_at_least(config.shots + asked)
    if len(enough.names) < config.ways:
        missing = len(classes.names) - len(enough.names)
        short = f", {missing} more with fewer than {config.shots} + {asked} images" if missing else ""
        raise MetagradError(
            f"a task of {config.ways} ways is more than the {len(enough.names)} classes for {_FOR[which]}{short}: "
            f"lower --ways{', --shots or --queries' if missing else ''}"
        )
    return EpisodeSampler(classes=enough, ways=config.ways, shots=config.shots, queries=asked, rotations=rotations)


def too_few(config: TrainConfig, dataset: Dataset) -> str | None:
    """Say which classes are left out for having too few images, if any are."""
    least = config.shots + config.queries
    small = [
        name
        for classes in (dataset.train, dataset.val, dataset.test)
        for name, count in zip(classes.names, classes.counts.tolist(), strict=True)
        if count < least
    ]
    if not small:
        return None
    return (
        f"left out {len(small)} class{'es' * (len(small) > 1)} with fewer than {config.shots} + {config.queries} "
        f"images ({small[0]}): add images, or lower --shots or --queries"
    )


_FOR = {"train": "training", "val": "validation", "test": "the test"}


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
