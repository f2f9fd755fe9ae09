"""A module that several threads use at once.

``functional_call`` puts other weights into the module itself until it returns, and recording a module's inputs adds a
hook to it: meanwhile another thread would compute with those weights, or copy them. So both, and all code that reads a
module's weights, hold one lock. Networks of layers that take the task axis themselves
(:mod:`metagrad.fewshot.batched_forward`) hardly need it, and threads hardly wait for each other.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.func import functional_call

from metagrad import task_functions
from metagrad.errors import MetagradError
from metagrad.fewshot.norms import stateless
from metagrad.fewshot.returned import one_tensor
from metagrad.tree import Params

# One for all modules: two networks may share a part.
LOCK = threading.RLock()


class _Running(NamedTuple):
    """A model that is being run, the places of its weights, and its buffers as they were."""

    model: nn.Module
    places: dict[str, list[Place]]
    buffers: list[tuple[nn.Module, str, Tensor, int]]


_running: _Running | None = None  # of the thread that has the lock


@contextlib.contextmanager
def running(model: nn.Module) -> Iterator[_Running]:
    """Prepare a module for any number of calls; :func:`call` does so for one.

    Raises
    ------
    MetagradError
        if a call has written into a buffer.
    """
    global _running
    with LOCK:
        if _running is not None and _running.model is model:
            yield _running
            return
        outer = _running
        with stateless(model), task_functions.exact():
            _running = _Running(model, places(model), _buffers(model))
            try:
                yield _running
                _refuse_written(_running.buffers)
            finally:
                for module, key, buffer, _ in _running.buffers:
                    module._buffers[key] = buffer
                _running = outer


def call(model: nn.Module, params: Params, inputs: Any) -> Tensor:
    """Return the module's output for its inputs with these weights in place of its own.

    The module is left as it was: norms in training mode update no running averages here. Dropout is off, and
    functions that torch has no right derivative of take another form (:mod:`metagrad.task_functions`).

    Raises
    ------
    MetagradError
        if it returns anything but one tensor, draws random numbers, or writes into a buffer.
    """
    with running(model) as now:
        output = functional_call(model, _placed(now.places, params), (inputs,), tie_weights=False)
    return one_tensor(model, output)


def _buffers(model: nn.Module) -> list[tuple[nn.Module, str, Tensor, int]]:
    return [
        (module, key, buffer, buffer._version)
        for module in model.modules()
        for key, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_inference()  # those count no versions
    ]


def _refuse_written(buffers: list[tuple[nn.Module, str, Tensor, int]]) -> None:
    for module, key, buffer, version in buffers:
        if module._buffers.get(key) is not buffer or buffer._version != version:
            raise MetagradError(
                f"the forward pass changes buffer {key} of {type(module).__name__}, which many tasks at once would "
                "share: make the module stateless, or put it in eval mode if it then leaves its buffers alone"
            )


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
    by_leaf: dict[nn.Parameter, list[Place]] = {}
    with LOCK:
        for path, module in model.named_modules(remove_duplicate=False):
            for key, leaf in module._parameters.items():
                if leaf is not None:
                    by_leaf.setdefault(leaf, []).append(Place(module, key, f"{path}.{key}" if path else key, leaf))
    return {here[0].name: here for here in by_leaf.values()}


def with_every_name(model: nn.Module, params: Params) -> Params:
    """Return params, with those that stand in several places of the model under all their names.

    Raises
    ------
    MetagradError
        if they hold two tensors for one weight.
    """
    return _named(places(model), params)


def _named(known: dict[str, list[Place]], params: Params) -> Params:
    named = dict(params)
    for here in known.values():
        given = [place.name for place in here if place.name in params]
        if any(params[name] is not params[given[0]] for name in given):
            raise MetagradError(
                f"{' and '.join(given[:3])} are one weight of the model, and several are given for it: "
                f"leave out all but {given[0]}"
            )
        if given:
            named |= {place.name: params[given[0]] for place in here}
    return named


def _placed(known: dict[str, list[Place]], params: Params) -> Params:
    """Return params with one name for each place where such a weight stands.

    ``functional_call`` restores what each name held: with two names for one place, the second holds a stand-in.
    """
    first: dict[tuple[int, str], str] = {}
    for place in itertools.chain(*known.values()):
        first.setdefault((id(place.module), place.key), place.name)
    again = {place.name for here in known.values() for place in here} - set(first.values())
    return {name: leaf for name, leaf in _named(known, params).items() if name not in again}
