"""Beginning at weights that are there already: another run's, a model file's, or a state_dict in safetensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from metagrad.errors import MetagradError, in_short
from metagrad.files import require_readable
from metagrad.tree import Params


@dataclass(frozen=True)
class Weights:
    """Weights by name, and where they come from."""

    weights: Params
    where: str


@dataclass(frozen=True)
class Taken:
    """What became of weights that a training began at.

    Attributes
    ----------
    where:
        where they came from.
    taken:
        names that were found there with the same shape.
    anew:
        names in theta that were not, with why: they begin as ever.
    left:
        names that were there and that the network has no place for.
    numbers:
        how many numbers were taken, and how many theta has.
    """

    where: str
    taken: tuple[str, ...]
    anew: dict[str, str]
    left: tuple[str, ...]
    numbers: tuple[int, int]

    def told(self) -> list[str]:
        """Say it in a few lines."""
        lines = [
            f"begins at {self.where}: {len(self.taken)} of {len(self.taken) + len(self.anew)} tensors, "
            f"{self.numbers[0]:,} of {self.numbers[1]:,} numbers"
        ]
        if self.anew:
            lines.append("  begun anew: " + ", ".join(f"{name} ({why})" for name, why in [*self.anew.items()][:6]))
        if self.left:
            lines.append(f"  left out: {in_short(', '.join(self.left), 160)}")
        return lines


def read_file(path: Path) -> Params:
    """Return the weights in a model file or any safetensors file, by name.

    Raises
    ------
    MetagradError
        if there are none.
    """
    require_readable(path, missing="name a run directory, a model file, or a state_dict in safetensors")
    try:
        found = load_file(path)
    except Exception as error:  # safetensors has an exception of its own
        raise MetagradError(
            f"{path} holds no weights that can be read ({in_short(error)}): name a run directory, a model file, or a "
            "state_dict in safetensors"
        ) from error
    ours = {name.removeprefix("network/"): leaf for name, leaf in found.items() if name.startswith("network/")}
    return ours or {name.removeprefix("theta/"): leaf for name, leaf in found.items()}


@torch.no_grad()
def begin_at(theta: Params, weights: Params, where: str) -> Taken:
    """Put weights of the same name and shape into theta.

    What the network keeps for itself, frozen weights and buffers, stays as it was built: a run builds it again whenever
    it is opened.

    Raises
    ------
    MetagradError
        if none fits, or one that fits has numbers that are not finite.
    """
    taken, anew = [], {}
    for name, leaf in theta.items():
        if name not in weights:
            anew[name] = "not there"
        elif weights[name].shape != leaf.shape:
            anew[name] = f"{_shape(weights[name])} there, {_shape(leaf)} here"
        elif not bool(weights[name].isfinite().all()):
            raise MetagradError(f"{where}: {name} has numbers that are not finite")
        else:
            leaf.copy_(weights[name].to(leaf.dtype))
            taken.append(name)
    if not taken:
        raise MetagradError(
            f"no weight of {where} fits this network: it has {in_short(', '.join(theta), 80)}, there are "
            f"{in_short(', '.join(weights), 80)}"
        )
    sizes = sum(theta[name].numel() for name in taken), sum(leaf.numel() for leaf in theta.values())
    return Taken(where, tuple(taken), anew, tuple(sorted(weights.keys() - theta.keys())), sizes)


def _shape(leaf: Tensor) -> str:
    return "×".join(map(str, leaf.shape)) or "a number"
