"""A module that several threads use at once.

``functional_call`` puts other weights into the module itself until it returns, and a look at what a module is given
adds a hook to it: meanwhile another thread would compute with those weights, or copy them. So both, and whoever reads a
module's weights, take turns. Networks of layers that take the task axis themselves (:mod:`metagrad.fewshot.many`) are
hardly ever touched, and threads hardly wait for each other.
"""

from __future__ import annotations

import threading
from typing import Any

from torch import nn
from torch.func import functional_call

from metagrad.tree import Params

# One for all modules: two networks may share a part.
LOCK = threading.RLock()


def call(model: nn.Module, params: Params, *args: Any) -> Any:
    """Return what the module makes of the arguments with these weights in place of its own."""
    with LOCK:
        return functional_call(model, params, args)


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's own weights."""
    with LOCK:
        return dict(model.named_parameters())
