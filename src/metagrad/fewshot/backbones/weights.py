"""A file of weights, compared with the network that they are for before they are read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from metagrad.errors import MetagradError, MetagradWarning, in_short
from metagrad.files import require_readable, require_text

Shapes = Mapping[str, tuple[int, ...]]
_COUNTS = "num_batches_tracked"  # how many batches a batch norm saw: nothing that is computed here depends on it


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Return what a network's outputs depend on: weights and buffers by name, without the counts of batches."""
    return {key: leaf for key, leaf in module.state_dict().items() if not key.endswith(_COUNTS)}


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Return name and shape of each tensor of a safetensors file, reading its header alone.

    Raises
    ------
    MetagradError
        for what cannot be read, is cut off, or is a pickle, with how to convert it.
    """
    require_text(path)
    require_readable(path, missing="name a safetensors file of weights")
    with path.open("rb") as file:
        begin = file.read(16)
    # A zip of a pickle, as torch.save writes it, or a bare pickle. A safetensors file begins with a length below 2**27.
    if begin[:4] == b"PK\x03\x04" or (begin[:1] == b"\x80" and begin[8:9] != b"{"):
        raise MetagradError(
            f"{path} is a pickle, which may run code when it is read: if you trust it, convert it with python -c "
            '"import sys, torch, safetensors.torch as s; s.save_file({k: v.clone().contiguous() for k, v in '
            'torch.load(sys.argv[1], weights_only=True).items()}, sys.argv[2])" '
            f"{path} {path.with_suffix('.safetensors')}"
        )
    try:
        with safe_open(path, "pt") as file:
            return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no dict
    except (SafetensorError, OSError) as error:
        raise MetagradError(
            f"{path} is no safetensors file, or cut off ({in_short(error, 80)}): name a whole one"
        ) from error


def load(module: nn.Module, path: Path, *, name: str, num_features: int, names: Mapping[str, str] | None) -> None:
    """Load the weights of a file into a network. A classifier head in the file is skipped, with a warning.

    Parameters
    ----------
    name:
        what the network is called in errors.
    num_features:
        length of the feature vector: what a classifier head takes.
    names:
        the network's own names of its tensors, and those of the file, where they differ.

    Raises
    ------
    MetagradError
        if names or shapes differ, saying which; for numbers that are not finite.
    """
    found = shapes_in(path)
    head = fits(module, found, name=name, source=str(path), num_features=num_features, names=names)
    if head:
        told = ", ".join(f"{key} {found[key]}" for key in head)
        warnings.warn(f"{path}: its classifier head is left out: {told}", MetagradWarning, stacklevel=4)
    with safe_open(path, "pt") as file:
        put(module, {key: file.get_tensor(key) for key in found if key not in head}, source=str(path), names=names)


def fits(
    module: nn.Module, found: Shapes, *, name: str, source: str, num_features: int, names: Mapping[str, str] | None
) -> list[str]:
    """Compare names and shapes with a network's; return the names of a classifier head, which it does without.

    Raises
    ------
    MetagradError
        saying what is missing, unknown or of another shape.
    """
    expected = {_named(key, names): tuple(leaf.shape) for key, leaf in tensors_of(module).items()}
    missing = [key for key in expected if key not in found]
    unknown = [key for key in found if key not in expected and not key.endswith(_COUNTS)]
    head = _head(unknown, found, num_features)
    unknown = [key for key in unknown if key not in head]
    shapes = [key for key in expected if key in found and found[key] != expected[key]]
    said = [
        f"it lacks {len(missing)} of {len(expected)} tensors ({missing[0]})" if missing else "",
        f"has {len(unknown)} that are unknown ({unknown[0]})" if unknown else "",
        f"has {len(shapes)} of another shape ({shapes[0]}: {found[shapes[0]]}, not {expected[shapes[0]]})"
        if shapes
        else "",
    ]
    if any(said):
        another = 2 * (len(missing) + len(shapes)) > len(expected)
        raise MetagradError(
            f"{source} does not fit {name}: {', '.join(one for one in said if one)}: "
            + ("they are weights of another architecture" if another else "name a whole and unaltered file")
        )
    return head


def put(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str, names: Mapping[str, str] | None) -> None:
    """Copy tensors that fit into a network.

    Raises
    ------
    MetagradError
        for whole numbers in place of weights, or numbers that are not finite.
    """
    with torch.no_grad():
        for key, leaf in tensors_of(module).items():
            given = tensors[_named(key, names)]
            if given.is_floating_point() != leaf.is_floating_point():
                raise MetagradError(f"{source}: {_named(key, names)} is of type {given.dtype}, not {leaf.dtype}")
            if not torch.isfinite(given).all():
                raise MetagradError(
                    f"{source}: {_named(key, names)} holds numbers that are not finite: name another file"
                )
            leaf.copy_(given)


def _told(key: str, found: Shapes, expected: Shapes) -> str:
    return f"{key}: {found[key]}, not {expected[key]}"


def _named(key: str, names: Mapping[str, str] | None) -> str:
    return key if names is None else names[key]


def _head(unknown: list[str], found: Shapes, num_features: int) -> list[str]:
    """Return those of the unknown names that are linear layers on the features: all, or none."""
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for key in unknown:
        path, _, kind = key.rpartition(".")
        layers.setdefault(path, {})[kind] = found[key]
    for parts in layers.values():
        weight = parts.get("weight", ())
        if (
            weight[1:] != (num_features,)
            or parts.get("bias", weight[:1]) != weight[:1]
            or parts.keys() - {"weight", "bias"}
        ):
            return []
    return unknown
