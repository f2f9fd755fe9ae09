"""Initial weights from elsewhere: another run's, a model file's, or a state_dict in safetensors."""

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
class Copied:
    """Which initial weights were copied into theta.

    Attributes
    ----------
    where:
        where the weights came from.
    copied:
        names that were found there with the same shape.
    fresh:
        names in theta that were not found, with the reason: they keep their random initial values.
    unused:
        names of weights that theta does not have.
    sizes:
        number of weights copied, and in theta.
    """

    where: str
    copied: tuple[str, ...]
    fresh: dict[str, str]
    unused: tuple[str, ...]
    sizes: tuple[int, int]

    def lines(self) -> list[str]:
        """Return it as a few lines of text."""
        lines = [
            f"copied {len(self.copied)} of {len(self.copied) + len(self.fresh)} tensors from {self.where} "
            f"({self.sizes[0]:,} of {self.sizes[1]:,} weights)"
        ]
        if self.fresh:
            lines.append(
                "  randomly initialised: " + ", ".join(f"{name} ({why})" for name, why in [*self.fresh.items()][:6])
            )
        if self.unused:
            lines.append(f"  not used: {in_short(', '.join(self.unused), 160)}")
        return lines


def read_file(path: Path) -> Params:
    """Return the weights in a model file or any safetensors file, by name.

    Raises
    ------
    MetagradError
        if there are none.
    """
    require_readable(path, missing="give a run directory, a model file, or a state_dict in safetensors")
    try:
        leaves = load_file(path)
    except Exception as error:  # safetensors has an exception of its own
        raise MetagradError(
            f"{path} has no readable weights ({in_short(error)}): give a run directory, a model file, or a state_dict "
            "in safetensors"
        ) from error
    network = {name.removeprefix("network/"): leaf for name, leaf in leaves.items() if name.startswith("network/")}
    return network or {name.removeprefix("theta/"): leaf for name, leaf in leaves.items()}


@torch.no_grad()
def copy_weights(theta: Params, weights: Params, where: str) -> Copied:
    """Copy weights of the same name and shape into theta.

    Frozen weights and buffers stay as the network was built: a run builds them again whenever it is opened.

    Raises
    ------
    MetagradError
        if none fits, or one that fits has numbers that are not finite.
    """
    copied, fresh = [], {}
    for name, leaf in theta.items():
        if name not in weights:
            fresh[name] = "missing there"
        elif weights[name].shape != leaf.shape:
            fresh[name] = f"{_shape(weights[name])} there, {_shape(leaf)} here"
        elif not bool(weights[name].isfinite().all()):
            raise MetagradError(f"{where}: {name} has NaN or infinite weights")
        else:
            leaf.copy_(weights[name].to(leaf.dtype))
            copied.append(name)
    if not copied:
        raise MetagradError(
            f"no weight of {where} fits this network: the network has {in_short(', '.join(theta), 80)}, the file has "
            f"{in_short(', '.join(weights), 80)}"
        )
    sizes = sum(theta[name].numel() for name in copied), sum(leaf.numel() for leaf in theta.values())
    return Copied(where, tuple(copied), fresh, tuple(sorted(weights.keys() - theta.keys())), sizes)


def _shape(leaf: Tensor) -> str:
    return "×".join(map(str, leaf.shape)) or "a number"
