"""Hyper-parameters of the methods: what values they may have, and those that are learned with the weights.

theta holds the logarithms of learned ones, so they stay positive, under names that begin with a dot, which no parameter
of a network can.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch

from metagrad import scalars
from metagrad.errors import MetagradError
from metagrad.implicit.adjoints import require_parts
from metagrad.tree import Hyper, Params

# fixed: not learned. Else one number for all weights, one for each tensor, one for each parameter.
Form = Literal["fixed", "scalar", "tensor", "parameter"]


def entries(name: str, value: float, form: Form, weights: Params) -> Params:
    """Return what theta holds for the hyper-parameter ``name`` that begins at ``value`` for all of ``weights``.

    Raises
    ------
    MetagradError
        for an unknown form.
    """
    if form not in get_args(Form):
        raise MetagradError(f"learn_{name} is one of {', '.join(get_args(Form))}, got {form!r}")
    log = math.log(value)
    if form == "fixed":
        return {}
    if form == "scalar":
        like = next(iter(weights.values()))
        return {f".log_{name}": torch.full((), log, dtype=like.dtype, device=like.device).requires_grad_()}
    shaped = form == "parameter"
    return {
        f".log_{name}/{key}": torch.full_like(leaf if shaped else leaf.flatten()[0], log).requires_grad_()
        for key, leaf in weights.items()
    }


def hyper(name: str, value: float, form: Form) -> Hyper:
    """Return the hyper-parameter as a solver or a regulariser takes it."""
    if form == "fixed":
        return value
    if form == "scalar":
        return lambda theta: theta[f".log_{name}"].exp()
    prefix = f".log_{name}/"
    return lambda theta: {key.removeprefix(prefix): leaf.exp() for key, leaf in theta.items() if key.startswith(prefix)}


def weights_of(theta: Params) -> Params:
    """Return theta without its hyper-parameters."""
    return {name: leaf for name, leaf in theta.items() if not name.startswith(".")}


def summary(theta: Params) -> dict[str, float]:
    """Return, for each learned hyper-parameter, its geometric mean, least and greatest value over all weights."""
    values: dict[str, float] = {}
    names = {key.removeprefix(".log_").split("/")[0] for key in theta if key.startswith(".log_")}
    for name in sorted(names):
        logs = torch.cat(
            [leaf.detach().flatten() for key, leaf in theta.items() if key.split("/")[0] == f".log_{name}"]
        )
        mean, least, greatest = torch.stack([logs.mean(), *logs.aminmax()]).exp().tolist()
        values |= {name: mean} if len(logs) == 1 else {name: mean, f"{name}_min": least, f"{name}_max": greatest}
    return values


_LEAST = 1e-37  # float32 loses digits below it, and 1e-50 is zero to it


def require_solves(algorithm: Any) -> None:
    """Refuse what is no solver or no adjoint with a MetagradError, when the method is made."""
    try:
        require_parts(len, algorithm.solver, algorithm.adjoint)
    except TypeError as error:
        raise MetagradError(str(error)) from error


def require_positive(algorithm: Any, *names: str) -> None:
    """Refuse hyper-parameters that are not positive and finite, and counts that are not whole, with a MetagradError."""
    for name in names:
        given = getattr(algorithm, name)
        value = scalars.number(given)
        if value is None or not _LEAST < value < math.inf:
            raise MetagradError(f"{name} must be a number, positive and finite, got {given!r}")
        if name.endswith("_steps") and not isinstance(value, int):
            raise MetagradError(f"{name} must be a whole number, got {given!r}")
        object.__setattr__(algorithm, name, value)
