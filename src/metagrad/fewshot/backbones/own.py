"""A backbone of one's own: ``package.module:function``, which returns a network."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection
from typing import Any

from torch import nn

from metagrad.errors import MetagradError, MetagradWarning, in_short
from metagrad.fewshot.backbones.network import IMAGENET_MEAN, IMAGENET_STD, Network, require_preprocessing
from metagrad.named_code import imported


def open_own(name: str, *, code: Collection[str]) -> Network:
    """Return the network that a function gives, and what its attributes say of its images.

    Raises
    ------
    MetagradError
        if the function is not named in ``code``, cannot be imported or called without arguments, returns no
        ``nn.Module``, or the module has an attribute ``image_size``, ``mean`` or ``std`` that is none.
    """
    made = imported(name, code=code)
    if not callable(made):
        raise MetagradError(f"{name} cannot be called: name a function or class that returns an nn.Module")
    try:
        found = made()
    except MetagradError:
        raise
    except Exception as error:  # whatever somebody's function does
        raise MetagradError(
            f"{name}, called without arguments, raised {type(error).__name__}: {in_short(error)}"
        ) from error
    if not isinstance(found, nn.Module):
        raise MetagradError(f"{name} returned {type(found).__name__}: it must return an nn.Module")
    defaults: dict[str, Any] = {"image_size": 224, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    missing = [key for key in defaults if not hasattr(found, key)]
    if missing:
        warnings.warn(
            f"{name} has no attribute {', '.join(missing)}: using "
            + ", ".join(f"{key} {defaults[key]}" for key in missing)
            + ", for values 0 to 1",
            MetagradWarning, stacklevel=4,
        )  # fmt: skip
    size, mean, std = (getattr(found, key, default) for key, default in defaults.items())
    require_preprocessing(name, size, mean, std)
    # A copy: it is frozen and changed, and its owner may go on using it. What it computes is not told by its weights
    # alone, so its layers are part of the digest.
    return Network(
        module=copy.deepcopy(found).eval(), image_size=size, mean=tuple(map(float, mean)), std=tuple(map(float, std)),
        version=str(found),
    )  # fmt: skip
