"""The state of a run between two meta-steps, and checks of one that was read from a file."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metagrad.strict_json import is_count, is_number
from metagrad.tree import Params


@dataclass(frozen=True)
class State:
    """Everything a run needs to continue bit for bit.

    Attributes
    ----------
    tensors:
        flat names to tensors: ``theta/*`` the weights, ``adam/*`` the optimiser's moments, ``generator`` its state,
        ``warm/*`` the last solutions of a finite set of tasks. The best weights come without the optimiser.
    facts:
        numbers and strings: meta-step, best validation, seconds, length of the metrics file.
    digest:
        of the file that it was read from, if it has one.
    """

    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    digest: str | None = None

    def copied(self) -> State:
        """Return a deep copy, which in-place updates of the tensors do not reach."""
        return State({name: leaf.detach().clone() for name, leaf in self.tensors.items()}, copy.deepcopy(self.facts))

    @property
    def theta(self) -> Params:
        """The meta-learned weights."""
        return {name.removeprefix("theta/"): leaf for name, leaf in self.tensors.items() if name.startswith("theta/")}


def require_facts(facts: Any) -> None:
    """Raise ``ValueError`` for facts that no run has; ``best_accuracy`` of format 1 becomes ``best_score``."""
    if not isinstance(facts, dict):
        raise ValueError("its facts are no JSON object")
    if "best_accuracy" in facts:
        facts["best_score"] = facts.pop("best_accuracy")
    window = facts.get("window")
    valid = {
        "step": is_count(facts.get("step")),
        "best_step": is_count(facts.get("best_step")),
        "best_score": facts.get("best_score") is None or is_number(facts["best_score"]),
        "seconds": is_number(facts.get("seconds")) and facts["seconds"] >= 0,
        "cpu_seconds": is_number(facts.get("cpu_seconds", 0.0)) and facts.get("cpu_seconds", 0.0) >= 0,
        "window": isinstance(window, list) and all(_is_line(line) for line in window),
        "metrics_bytes": is_count(facts.get("metrics_bytes")),
        "metrics_digest": isinstance(facts.get("metrics_digest", ""), str),
        "trained_as": isinstance(facts.get("trained_as"), dict),
        "run": facts.get("run") is None or isinstance(facts["run"], str),
        "warned": isinstance(facts.get("warned", False), bool),
        "dead": isinstance(facts.get("dead", False), bool),
    }
    wrong = [name for name, ok in valid.items() if not ok]
    if wrong:
        raise ValueError(f"invalid {wrong[0]}")


def _is_line(line: Any) -> bool:
    return isinstance(line, dict) and all(isinstance(value, float | int) for value in line.values())


def require_theta(tensors: Mapping[str, Tensor], theta: Params) -> None:
    """Raise ``ValueError`` for weights that do not have the names, shapes and types of ``theta``, or are not finite."""
    given = {name.removeprefix("theta/"): leaf for name, leaf in tensors.items() if name.startswith("theta/")}
    if given.keys() != theta.keys():
        name = min(given.keys() ^ theta.keys())
        raise ValueError(f"the weight {name} is {'one too many' if name in given else 'missing'}")
    for name, wanted in theta.items():
        require_like(f"the weight {name}", given[name], wanted)


def require_generator(state: Tensor) -> None:
    """Raise ``ValueError`` for a state that no ``torch.Generator`` has."""
    if state.dtype != torch.uint8 or state.dim() != 1:
        raise ValueError("the generator's state is no row of bytes")
    own = torch.Generator()
    if state.shape == own.get_state().shape:  # else it is that of a GPU
        try:
            own.set_state(state)
        except RuntimeError as error:
            raise ValueError(f"the generator's state is invalid: {str(error).splitlines()[0]}") from error


def require_like(name: str, leaf: Tensor, like: Tensor) -> None:
    """Raise ``ValueError`` for a tensor of another shape or type, or one that is not finite."""
    if leaf.shape != like.shape:
        raise ValueError(f"{name} has shape {tuple(leaf.shape)}, {tuple(like.shape)} is wanted")
    if leaf.dtype != like.dtype:
        raise ValueError(f"{name} is of {leaf.dtype}, {like.dtype} is wanted")
    if not bool(leaf.isfinite().all()):
        raise ValueError(f"{name} has numbers that are not finite")
