"""Make an experiment's device, tasks, method and network."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from metagrad.data import Progress
from metagrad.distributed import ALONE, Ranks, local_device
from metagrad.errors import MetagradError, MetagradWarning, in_short
from metagrad.experiment.checkpoint import State, require_theta
from metagrad.experiment.experiment import Experiment
from metagrad.experiment.networks import build_network
from metagrad.experiment.outer import require_state
from metagrad.experiment.pretrained import Pretrained, extractor_of, trunk_digest
from metagrad.experiment.record import own_code
from metagrad.experiment.sources import Sources, open_tasks
from metagrad.fewshot import Algorithm
from metagrad.fewshot.algorithms.heads import FromFixedHead
from metagrad.fewshot.head import adapted, with_last_layer
from metagrad.named_code import digests
from metagrad.seeds import Seeds
from metagrad.torch_modes import in_float32
from metagrad.tree import Params

if TYPE_CHECKING:
    from metagrad.experiment.run import Run


@in_float32()
def build(
    experiment: Experiment, inputs: tuple[int, ...], outputs: int, *, seeds: Seeds | None = None
) -> tuple[Algorithm, nn.Module]:
    """Return the method and the freshly initialised network, for inputs of this shape and so many outputs.

    A method with the default head takes the network's last layer. A head that is not meta-learned starts at zero in
    every task, because its regulariser pulls it there.
    """
    generator = (seeds or Seeds(experiment.seed)).generator("weights")
    model = build_network(experiment.network, inputs, outputs, generator=generator)
    method: Any = with_last_layer(experiment.method, model)
    if isinstance(method, FromFixedHead):
        for name, leaf in model.named_parameters():
            if name in adapted(model, method.head):
                nn.init.zeros_(leaf)
    return method, model


def build_for(run: Run, sources: Sources) -> tuple[Algorithm, nn.Module]:
    """Return a run's method and its freshly initialised network, on the device of the tasks."""
    method, model = build(run.experiment, sources.inputs, sources.outputs, seeds=run.seeds)
    return method, model.to(sources.device)


def skeleton(experiment: Experiment, inputs: tuple[int, ...], outputs: int) -> tuple[Params, nn.Module]:
    """Return theta and the network of :func:`build` on the meta device, which takes no memory."""
    with torch.device("meta"):
        method, model = build(experiment, inputs, outputs)
        model = model.to("meta")
        return method.init(model), model


def learned(
    run: Run, name: str, *, inputs: tuple[int, ...] | None = None, outputs: int | None = None, ranks: Ranks = ALONE
) -> State:
    """Read a checkpoint, and refuse one whose weights do not fit the run's network.

    Parameters
    ----------
    name:
        ``"best"``, or ``"last"``, which also has the optimiser and the random state.
    inputs, outputs:
        of the network; ``None``: as the run recorded.

    Raises
    ------
    MetagradError
        as :meth:`Run.load` does, and if names, shapes or types differ, or numbers are not finite.
    """
    require_same_backbone(run)
    state = run.load(name, ranks)
    inputs, outputs = inputs if inputs is not None else run.inputs, run.outputs if outputs is None else outputs
    try:
        theta, model = skeleton(run.experiment, inputs, outputs)
        require_theta(state.tensors, theta)
        if name == "last":
            parameters = dict(model.named_parameters())
            require_state(run.experiment, state.tensors, theta, parameters, state.facts["step"])
    except (ValueError, RuntimeError) as error:  # torch's own, for a network that cannot be
        raise MetagradError(
            f"{run.folder}/{name}.safetensors does not fit what config.json describes ({in_short(error)}): restore "
            "the file, or begin a new run"
        ) from error
    return state


def require_same_backbone(run: Run) -> None:
    """Refuse a pretrained network with other weights than it had when the run began.

    Raises
    ------
    MetagradError
        if it has; if its package or its weights are missing.
    """
    network, recorded = run.experiment.network, run.data.get("backbone")
    if isinstance(network, Pretrained) and recorded is not None and trunk_digest(network) != recorded:
        raise MetagradError(
            f"{network.name} differs from the network that {run.folder} was started with (other weights, layers or "
            "image size): restore it, or begin a new run"
        )


def open_sources(
    run: Run, *, data_dir: str | Path | None = None, device: str | None = None, progress: Progress | None = None
) -> Sources:
    """Open the tasks that a run was made with; see :meth:`Run.open_tasks`."""
    require_same_backbone(run)
    where, recorded = data_dir, run.data.get("data_dir")
    moved = os.environ.get("METAGRAD_DATA") or not os.path.exists(recorded or "")
    if where is None and ("split" in run.data or not moved):
        where = recorded or None
    sources = open_tasks(
        run.experiment.tasks,
        device=choose_device(device or run.experiment.compute.device),
        seeds=run.seeds,
        data_dir=None if where is None else Path(where),
        split=run.data.get("split"),
        features=extractor_of(run.experiment.network),
        progress=progress,
    )
    if sources.digest != run.data["digest"]:
        raise MetagradError(
            f"the {run.dataset} data{f' in {where}' if where else ''} differ from those {run.folder} was started with: "
            "restore the files as they were, pass another --data-dir, or begin a new run"
        )
    drawn = run.data.get("drawn")
    if drawn is not None and sources.record.get("drawn") not in (None, drawn):
        warnings.warn(
            f"the task source draws other tasks than when {run.folder} was started: its code, its data or the version "
            "of torch has changed, so results may not be comparable",
            MetagradWarning,
            stacklevel=2,
        )
    began = run.record.get("code", {})
    now = digests(own_code(run.record.get("experiment")))
    if changed := [name for name in began if now.get(name, began[name]) != began[name]]:
        warnings.warn(
            f"the code of {', '.join(changed)} has changed since {run.folder} was started, so results may not be "
            "comparable",
            MetagradWarning,
            stacklevel=2,
        )
    return sources


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
