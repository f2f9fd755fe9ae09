"""A module that several threads use at once.

``functional_call`` puts other weights into the module itself until it returns, and a look at what a module is given
adds a hook to it: meanwhile another thread would compute with those weights, or copy them. So both, and whoever reads a
module's weights, take turns. Networks of layers that take the task axis themselves (:mod:`metagrad.fewshot.many`) are
hardly ever touched, and threads hardly wait for each other.
"""

from __future__ import annotations

import itertools
import threading
from typing import Any, NamedTuple

from torch import nn
from torch.func import functional_call

from metagrad import task_functions
from metagrad.errors import MetagradError
from metagrad.fewshot.norms import stateless
from metagrad.tree import Params

# One for all modules: two networks may share a part.
LOCK = threading.RLock()


def call(model: nn.Module, params: Params, *args: Any) -> Any:
    """Return what the module makes of the arguments with these weights in place of its own.

    The module is left as it was: norms that train keep no running averages of what they see here. Dropout is off, and
    functions that torch has no right derivative of take another form (:mod:`metagrad.task_functions`).
    """
    with LOCK, stateless(model), task_functions.exact():
        return functional_call(model, _placed(model, params), args, tie_weights=False)


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the module's own weights; one that stands in several places has the first place's name."""
    with LOCK:
        return dict(model.named_parameters())


class Place(NamedTuple):
    """Where a weight stands: as ``key`` of ``module``, under ``name``, one of several where a part has several."""

    module: nn.Module
    key: str
    name: str
    leaf: nn.Parameter


def places(model: nn.Module) -> dict[str, list[Place]]:
    """Return where each weight stands, under all its names: the first is the one that :func:`weights` gives."""
    found: dict[nn.Parameter, list[Place]] = {}
    with LOCK:
        for path, module in model.named_modules(remove_duplicate=False):
            for key, leaf in module._parameters.items():
                if leaf is not None:
                    found.setdefault(leaf, []).append(Place(module, key, f"{path}.{key}" if path else key, leaf))
    return {here[0].name: here for here in found.values()}


def under_every_name(model: nn.Module, params: Params) -> Params:
    """Return params, with those that stand in several places of the model under all their names.

    Raises
    ------
    MetagradError
        if they hold two tensors for one weight.
    """
    return _named(places(model), params)


def _named(known: dict[str, list[Place]], params: Params) -> Params:
    found = dict(params)
    for here in known.values():
        given = [place.name for place in here if place.name in params]
        if any(params[name] is not params[given[0]] for name in given):
            raise MetagradError(
                f"{' and '.join(given[:3])} are one weight of the model, and several are given for it: "
                f"leave out all but {given[0]}"
            )
        if given:
            found |= {place.name: params[given[0]] for place in here}
    return found


def _placed(model: nn.Module, params: Params) -> Params:
    """Return params with one name for each place where such a weight stands.

    ``functional_call`` puts back what it found there: under two names it would find its own stand-in the second time.
    """
    known = places(model)
    once, again = set(), set()
    for place in itertools.chain(*known.values()):
        slot = id(place.module), place.key
        again |= {place.name} if slot in once else set()
        once.add(slot)
    return {name: leaf for name, leaf in _named(known, params).items() if name not in again}
