"""The weights of a network that a task adapts, and a network cut in two where those are its last module."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from metagrad import tree
from metagrad.errors import MetagradError
from metagrad.fewshot import batched_forward, module_lock
from metagrad.fewshot.returned import describe
from metagrad.tree import Params

# A pattern of parameter names, as a shell reads it ("head.*", "*.bias"), or a module of the network.
Adapts = str | nn.Module
_CHECKED = "_metagrad_head"  # the attribute in which a head that is last stores its path


def adapted(model: nn.Module, adapts: Adapts) -> list[str]:
    """Return the names of the trainable parameters that ``adapts`` chooses.

    Raises
    ------
    MetagradError
        if it chooses none that is trainable.
    """
    if not isinstance(adapts, str | nn.Module):
        raise MetagradError(f"adapts must be one pattern of names, such as 'head.*', or a module, got {adapts!r}")
    known = module_lock.places(model)
    named = {name: here for name, here in known.items() if here[0].leaf.requires_grad}
    chosen = [name for name in _matching(known, adapts) if name in named]
    if not chosen:
        what = "the module to adapt has no parameter that the model has and that asks for a gradient"
        if not isinstance(adapts, nn.Module):
            what = f"no parameter of the model that asks for a gradient is called {adapts!r}"
        groups = dict.fromkeys(
            f"{place.name.rpartition('.')[0]}.*".lstrip(".") for here in named.values() for place in here
        )
        raise MetagradError(f"{what}; there are {', '.join([*groups][:9]) or 'none: all are frozen'}")
    return chosen


def _matching(known: dict[str, list[module_lock.Place]], adapts: Adapts) -> list[str]:
    """Return the names of the parameters that ``adapts`` chooses, frozen ones too."""
    if isinstance(adapts, nn.Module):
        with module_lock.LOCK:
            mine = {id(leaf) for leaf in adapts.parameters()}
        return [name for name, here in known.items() if id(here[0].leaf) in mine]
    # By any of its names: a head that has the embedding's weights adapts them.
    return [name for name, here in known.items() if any(fnmatchcase(place.name, adapts) for place in here)]


def with_last_layer(method: Any, model: nn.Module) -> Any:
    """Return a method whose head, where it is the default and the network has none, is the network's last layer."""
    if getattr(method, "head", None) != "head.*" or any(
        name.startswith("head.") for name, _ in model.named_parameters(remove_duplicate=False)
    ):
        return method
    return replace(method, head=f"{last_layer(model)}.*")


def last_layer(model: nn.Module) -> str:
    """Return the name of the module that holds the last parameters."""
    return list(model.named_parameters(remove_duplicate=False))[-1][0].rpartition(".")[0]


@dataclass(frozen=True)
class Head:
    """A network's last module; what comes before it is the body, whose outputs are the features.

    Attributes
    ----------
    model:
        the network.
    path:
        the module's name in it.
    """

    model: nn.Module
    path: str

    @classmethod
    def of(cls, model: nn.Module, adapts: Adapts) -> Head:
        """Return the module whose parameters are exactly those that ``adapts`` chooses.

        Raises
        ------
        MetagradError
            if there is none, or nothing is before it.
        """
        adapted(model, adapts)
        known = module_lock.places(model)
        chosen = set(_matching(known, adapts))
        for path, module in model.named_modules():
            within = {id(part) for part in module.modules()}
            mine = {name for name, here in known.items() if any(id(place.module) in within for place in here)}
            if not path or mine != chosen:
                continue
            outside = [place for name in mine for place in known[name] if id(place.module) not in within]
            if outside:
                raise MetagradError(
                    f"{path} shares a weight with {outside[0].name}, so features change as it adapts: "
                    "take features='recomputed', or give the head weights of its own"
                )
            return cls(model, path)
        raise MetagradError(
            "features are computed once for a head that is a module of the model, with something before it; "
            f"{', '.join(sorted(chosen)[:4])} are not: take features='recomputed'"
        )

    @property
    def module(self) -> nn.Module:
        """The module itself."""
        return self.model.get_submodule(self.path)

    def outputs(self, phi: Params, features: Tensor) -> Tensor:
        """Return ``(T, N, ...)`` for features ``(T, N, ...)`` and each task's head, named as in the network."""
        return batched_forward.outputs(self.module, self._own(phi), features)

    def output(self, phi: Params, features: Tensor) -> Tensor:
        """Return ``(N, ...)`` for the features and the head of one task."""
        return module_lock.call(self.module, self._own(phi), features)

    def _own(self, phi: Params) -> Params:
        named, prefix = module_lock.with_every_name(self.model, phi), f"{self.path}."
        return {name.removeprefix(prefix): leaf for name, leaf in named.items() if name.startswith(prefix)}

    def features(self, shared: Params, x: Any) -> Tensor:
        """Return the body's outputs for ``(T, N, ...)`` with weights that the tasks share; once differentiable.

        ``x`` is a tensor or any nest of them.

        Raises
        ------
        MetagradError
            if the head's outputs are not the network's.
        """
        body = _body(self.model, self.path.split("."))
        if body is not None and isinstance(x, Tensor):
            return batched_forward.shared_outputs(body, shared, x)
        params = tree.expand(shared, tree.num_tasks(x))
        if getattr(self.module, _CHECKED, None) != self.path:
            self._require_last(shared, tree.map_tensors(lambda leaf: leaf[0], x))
            setattr(self.module, _CHECKED, self.path)
        return batched_forward.task_by_task(self.model, self._features_of_one, params, x)

    def _features_of_one(self, weights: Params, inputs: Any) -> Tensor:
        """Run the network for one task, up to the head."""

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _ReachedError(args, kwargs)

        given: str | None = None
        with module_lock.LOCK:
            hook = self.module.register_forward_pre_hook(stop, with_kwargs=True)
            try:
                module_lock.call(self.model, weights, inputs)
            except _ReachedError as reached:
                args, kwargs = reached.args, reached.kwargs
                if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                    return args[0]
                given = describe({**dict(enumerate(args)), **kwargs})
            finally:
                hook.remove()
        called = "not called" if given is None else f"called with {given}"
        raise MetagradError(
            f"{self.path} is {called} by the model, and features are the one tensor that it is called with: "
            "take features='recomputed'"
        )

    def _require_last(self, shared: Params, inputs: Any) -> None:
        """Check once that the network returns the head's own output: the same memory, not only the same shape."""
        returned: list[Any] = []
        with torch.no_grad(), module_lock.LOCK:
            hook = self.module.register_forward_hook(lambda module, args, output: returned.append(output))
            try:
                outputs = module_lock.call(self.model, shared, inputs)
            finally:
                hook.remove()
        if not returned:
            return  # never called: _features_of_one says so
        last = returned[-1]
        same = isinstance(last, Tensor) and last.shape == outputs.shape and last.data_ptr() == outputs.data_ptr()
        if len(returned) > 1 or not same:
            raise MetagradError(
                f"the outputs of {self.path} are not those of the model, which does something with them: "
                "take features='recomputed'"
            )


class _ReachedError(Exception):
    """The forward pass reached the head; carries the arguments of its call."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(*args)
        self.kwargs = kwargs


def _body(module: nn.Module, path: list[str]) -> nn.Sequential | None:
    """Return the layers before the one at ``path`` as a sequence with the same names, if it is the last."""
    if not path:
        return nn.Sequential()
    if type(module).forward is not nn.Sequential.forward or list(module._modules)[-1] != path[0]:
        return None
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        (name, child) for name, child in list(module._modules.items())[:-1] if child is not None
    )
    last = module._modules[path[0]]
    assert last is not None
    if path[1:]:
        rest = _body(last, path[1:])
        if rest is None:
            return None
        layers[path[0]] = rest
    body = nn.Sequential(layers)
    return body if batched_forward.layered(body) else None
