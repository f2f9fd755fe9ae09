"""The options of ``metagrad train``: those of what is chosen and no other, and the experiment that they make."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from metagrad.cli.arguments import Option, Section, did_you_mean
from metagrad.cli.parts import PACKAGES, PRESETS, SHORT, Given, Part, fields_of, name_of, table
from metagrad.errors import MetagradError, in_short

if TYPE_CHECKING:
    from metagrad.experiment.experiment import Experiment

_FIELDS = {"loss": "loss", "inner-solver": "solver", "linear-solver": "adjoint"}  # of a method, by what is chosen
_ALWAYS = ("outer", "budget", "compute")
_OLD = {"--keep-every": "--checkpoint", "--learn-inner-lr": "--learn-lr"}  # of metagrad 0.1
_WORDS = {
    "method": "which weights a task adapts, and how the meta-gradient is computed",
    "loss": "loss of a task's outputs",
    "inner-solver": "solver of a task's inner problem",
    "linear-solver": "solver of the linear system of the meta-gradient",
    "network": "the network that is meta-learned",
}
_USUAL = {"loss": "cross-entropy", "inner-solver": "gradient-descent", "linear-solver": "cg"}
# Defaults for few-shot tasks, where the method has another solver: step sizes, ...
_LR = {"gradient-descent": 0.1, "nesterov": 0.1, "adam": 0.01}
_STEPS = 20  # ... and steps, in place of a few Newton steps
# Default method on frozen features: it gains nearly as much as any other, in a minute of one core.
_ON_FEATURES = ("protonet", {"scale": 1.0})


@dataclass(frozen=True)
class Plan:
    """The parts of an experiment that a command line chooses, by their roles, and how the help shows them."""

    parts: dict[str, Part]
    source: str | None
    first_order: bool = False

    @classmethod
    def of(cls, words: Sequence[str]) -> Plan:
        """Return the plan that the words of ``metagrad train`` choose.

        Raises
        ------
        MetagradError
            for an unknown choice.
        """
        source = _source(words)
        own = source is not None and ":" in source
        parts = {"tasks": Part.of("tasks", str(source) if own else "episodes")}
        network = _network(words)
        usual = _ON_FEATURES if network is not None and network.is_backbone else ("imaml", {})
        chosen = _chosen(words, "method") or usual[0]
        method = parts["method"] = Part.of("method", chosen, usual[1] if chosen == usual[0] else None)
        linear = _chosen(words, "linear-solver", "none")
        for role, name in _FIELDS.items():
            if name in method.parts and not (role == "linear-solver" and linear == "none"):
                parts[role] = _nested(role, _chosen(words, role), method)
        if "linear-solver" in parts:
            adjoint = fields_of(method.parts["adjoint"])
            parts["adjoint"] = Part.of("adjoint", "implicit", adjoint)
        if network is not None:
            parts["network"] = network
        elif not own:
            known = table()["data"].get(source) or table()["data"]["glyphs"]
            parts["network"] = Part.of("network", name_of("network", known["network"]), fields_of(known["network"]))
        parts |= {role: Part.of(role, role) for role in _ALWAYS}
        return cls(parts, source, first_order=linear == "none" and "adjoint" in method.parts)

    def sections(self) -> list[Section]:
        """Return the options, as the help shows them."""
        taken: set[str] = set()
        sections = []
        for role, part in self.parts.items():
            options = [replace_flag(option, role, taken) for option in part.options]
            if role in _WORDS:
                options.insert(0, _choice(role, part.choice))
            if role == "method":
                options += [_METRIC] * ("metric" in part.parts)
                options += [_choice("linear-solver", "none")] * self.first_order
            title = f"{role.replace('-', ' ')} {part.choice}" if role in _WORDS else role
            sections.append(Section(title, options, part.about if role in _WORDS else None))
        return [section for section in sections if section.options]

    def explain(self, flag: str) -> str | None:
        """Return which other choices have an option, for one that the present choices lack."""
        for role in ("inner-solver", "linear-solver", "network", "loss"):
            owners = [name for name in table()["choices"][role] if flag in _flags(role, name)]
            if owners and (role in self.parts or (role == "linear-solver" and self.first_order)):
                instead = self.parts[role].choice if role in self.parts else "none"
                instead = f"{instead} (your own network; --body makes it a backbone)" if ":" in instead else instead
                return f"{flag} is for --{role} {', '.join(owners)}, not {instead}: leave it out"
        owners = [name for name in table()["choices"]["method"] if flag in _all_flags(name)]
        if owners:
            return f"{flag} is for {', '.join(owners)}, not {self.parts['method'].choice}: leave it out"
        if flag in _flags("tasks", "episodes"):
            return f"{flag} is for data sets, not {self.source}: leave it out"
        return None

    def experiment(self, given: Given, *, task_set: int | None, seed: int) -> Experiment:
        """Return the experiment that the options describe.

        Raises
        ------
        MetagradError
            for a value outside its range, or two that do not go together.
        """
        from metagrad.experiment import Experiment, TaskSet

        always = {role: self.parts[role].build(given) for role in _ALWAYS}
        tasks = self._tasks(given)
        if task_set is not None:
            tasks = TaskSet(tasks=tasks, count=task_set)
        network = None if "network" not in self.parts else _made(self.parts["network"], given, named=True)
        if network is None and getattr(tasks, "network", None) is None:
            raise MetagradError(
                "these tasks have no default network: give --network mlp, or --network package.module:name"
            )
        method = self._method(given)
        _require_together(method, tasks)
        try:
            return Experiment(tasks=tasks, network=network, method=method, seed=seed, **always)
        except MetagradError as error:
            named = re.sub(r"^(seed|train_ways)\b", lambda found: f"--{found[0].replace('_', '-')}", str(error))
            raise MetagradError(named) from error

    def _tasks(self, given: Given) -> Any:
        part = self.parts["tasks"]
        return part.build(given, dataset=self.source) if ":" not in str(self.source) else _made(part, given, named=True)

    def _method(self, given: Given) -> Any:
        from metagrad.implicit import FirstOrder
        from metagrad.named_code import imported

        more: dict[str, Any] = {}
        if "loss" in self.parts:
            more["loss"] = _made(self.parts["loss"], given)
        if "method.metric" in given:
            more["metric"] = imported(given["method.metric"], code=(given["method.metric"],))
        if "inner-solver" in self.parts:
            more["solver"] = _made(self.parts["inner-solver"], given)
        if "linear-solver" in self.parts:
            linear, lr = self.parts["linear-solver"], getattr(more.get("solver"), "lr", _LR["gradient-descent"])
            if isinstance(linear.preset.get("lr"), str):
                # A few descent steps may overshoot along the steepest direction; the series would diverge.
                given = {"linear-solver.lr": lr / 4, **given}
            more["adjoint"] = self.parts["adjoint"].build(given, linear_solver=_made(linear, given))
        elif self.first_order:
            more["adjoint"] = FirstOrder()
        return self.parts["method"].build(given, **more)


_METRIC = Option(
    name="method.metric", flag="--metric", kind="str", metavar="CODE",
    help="Your own function, as package.module:function, from (outputs, targets) of one task to a number, which is "
    "reported beside the loss. Default: the loss's own metric.",
)  # fmt: skip


def modern(words: Sequence[str]) -> list[str]:
    """Return words with the options of metagrad 0.1 by their names of today."""
    modernised = []
    for word in words:
        flag, sign, value = word.partition("=")
        modernised.append(_OLD.get(flag.replace("_", "-"), flag) + sign + value if word.startswith("--") else word)
    return modernised


def replace_flag(option: Option, role: str, taken: set[str]) -> Option:
    """Return the option with a unique flag: a user's code may have a field with the name of another option."""
    if option.flag in taken:
        option = dataclasses.replace(option, flag=f"--{role}-{option.flag.removeprefix('--')}")
    taken.add(option.flag)
    return option


def _chosen(words: Sequence[str], role: str, *more: str) -> str | None:
    """Return the last choice for a role, if there is one."""
    choice = _value(words, f"--{role}")
    known = [*table()["choices"][role], *SHORT, *more]
    if choice is None or choice in known or ":" in choice:
        return choice
    choices = ", ".join([*table()["choices"][role], *more])
    raise MetagradError(
        f"--{role} is one of {choices}, or package.module:name of your own, got {in_short(repr(choice), 40)}"
        f"{did_you_mean(choice, known)}; see metagrad train --help"
    )


def _network(words: Sequence[str]) -> Part | None:
    """Return the network that the words choose; a user's own one is a backbone if --body is given."""
    choice = _chosen(words, "network", *PRESETS)
    if choice is None:
        return None
    own = ":" in choice and not choice.startswith(PACKAGES)
    return Part.backbone(choice) if own and _value(words, "--body") is not None else Part.of("network", choice)


def _value(words: Sequence[str], flag: str) -> str | None:
    value = None
    for word, after in zip(words, [*words[1:], "-"], strict=False):
        if word == flag and not after.startswith("-"):
            value = after
        elif word.startswith(f"{flag}="):
            value = word.partition("=")[2]
    return value


def _source(words: Sequence[str]) -> str | None:
    """Return the source of tasks that the words seem to name; once the options are known, the parser decides."""
    named = _value(words, "--tasks")
    if named is not None and not named.lstrip("+-").isdecimal():
        return named
    free = [word for before, word in zip(["", *words], words, strict=False) if not before.startswith("--")]
    places = [word for word in free if not word.startswith("-") and (":" in word or word in table()["data"])]
    known = [word for word in words if word in table()["data"]]  # after an option that takes nothing
    return next(iter(places or known), None)


def _nested(role: str, choice: str | None, method: Part) -> Part:
    """Return a part of the method; its own, with its numbers, where none is chosen or the same."""
    default = method.parts[_FIELDS[role]] or {}
    if role == "linear-solver":
        default = default.get("linear_solver", {})
    own = name_of(role, default) if default else _USUAL[role]
    choice = SHORT.get(choice or own, choice or own)
    if choice == own and default:
        return Part.of(role, choice, fields_of(default))
    steps = default.get("max_steps", 5)
    if role == "inner-solver":
        steps = _STEPS if own == "hessian-free" else steps
        return Part.of(role, choice, {"max_steps": steps} | ({"lr": _LR[choice]} if choice in _LR else {}))
    return Part.of(role, choice, {"max_steps": steps, "terms": steps, "lr": "a quarter of the inner solver's"})


def _made(part: Part, given: Given, *, named: bool = False) -> Any:
    """Return a part's value; a user's code that is no dataclass is the value itself, or its path if ``named``."""
    from metagrad.named_code import imported

    made = imported(part.path, code=(part.path,))
    if dataclasses.is_dataclass(made) and isinstance(made, type):
        return part.build(given)
    return part.path if named else made


def _flags(role: str, choice: str) -> set[str]:
    flags = {option.flag for option in Part.of(role, choice).options}
    if role == "linear-solver":
        flags |= {option.flag for option in Part.of("adjoint", "implicit").options}
    return flags


def _all_flags(method: str) -> set[str]:
    """Return every option that a method can have, whatever else is chosen."""
    part = Part.of("method", method)
    flags = {option.flag for option in part.options}
    for role in ("inner-solver", "linear-solver"):
        if _FIELDS[role] in part.parts:
            flags |= {f"--{role}"}.union(*(_flags(role, choice) for choice in table()["choices"][role]))
    return flags


def _choice(role: str, chosen: str) -> Option:
    more = {
        "network": [*PRESETS, *(f"{package}NAME" for package in PACKAGES)],
        "linear-solver": ["none (first order)"],
    }.get(role, [])
    names = ", ".join([*table()["choices"][role], *more])
    own = "package.module:name of your own" + (" (with --body: a backbone)" if role == "network" else "")
    text = f"{_WORDS[role]}: {names}, or {own}. Here: {chosen}."
    return Option(name=f"choose.{role}", flag=f"--{role}", kind="str", metavar="NAME", help=text)


def _require_together(method: Any, tasks: Any) -> None:
    """Refuse options that have no effect, or no meaning, with each other."""
    from metagrad.experiment import TaskSet
    from metagrad.experiment.episodes import episodes_of
    from metagrad.implicit import FirstOrder, Implicit, Woodbury

    adjoint, episodes = getattr(method, "adjoint", None), episodes_of(tasks)
    if isinstance(adjoint, FirstOrder) and getattr(method, "learn_lam", "fixed") != "fixed":
        raise MetagradError("--learn-lam has no effect with --linear-solver none: leave it out")
    if isinstance(tasks, TaskSet) and not isinstance(adjoint, Implicit):
        instead = "leave out --linear-solver none" if adjoint else "take --method memory-reduced"
        raise MetagradError(f"--task-set needs a linear system to go on with: {instead}")
    if not isinstance(adjoint, Implicit) or not isinstance(adjoint.linear_solver, Woodbury):
        return
    if adjoint.curvature != "gauss_newton":
        raise MetagradError("--linear-solver woodbury needs --curvature gauss_newton")
    logits, most = 0, adjoint.linear_solver.max_size
    if episodes is not None:
        logits = episodes.ways**2 * max(episodes.shots, episodes.sizes("train")[1])
    if logits > most:
        raise MetagradError(
            f"--linear-solver woodbury solves systems of ways × shots × ways = {logits} here, beyond {most}: use cg"
        )
