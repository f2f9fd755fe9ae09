"""The contestants, one file each.

A peer offers ``NAME`` (text for the table), ``NEEDS`` (the module it imports, or ``None``), ``FORM`` (``"imaml"``:
exact Hessian and a fixed number of CG products; ``"maml"``: unrolled gradient steps) and
``gradient(work, model, theta, tasks)``: the meta-gradient, mean over tasks, keyed as theta.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from types import ModuleType

from torch import nn

from workload import Gradient

PEERS = ("by_hand", "one_by_one", "torchopt_imaml", "jaxopt_imaml", "higher_maml", "parallel_metalearn_maml")


def load(name: str) -> ModuleType:
    """Return a peer; its package is not imported before its gradient is asked for."""
    return importlib.import_module(f"peers.{name}")


def installed(peer: ModuleType) -> bool:
    """Whether the package that the peer needs can be imported."""
    return peer.NEEDS is None or importlib.util.find_spec(peer.NEEDS) is not None


def version(peer: ModuleType) -> str:
    """Return name and version of the distribution that the peer needs, and of jax where its compiler does the work."""
    if peer.NEEDS is None:
        return ""
    name = importlib.metadata.packages_distributions()[peer.NEEDS][0]
    names = [name, "jax"] if name == "jaxopt" else [name]
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)


def own(model: nn.Module, theta: Gradient) -> nn.Module:
    """Write theta into the model and clear its gradients: some libraries differentiate in a module's own parameters."""
    model.load_state_dict({name: leaf.detach() for name, leaf in theta.items()})
    model.zero_grad()
    return model
