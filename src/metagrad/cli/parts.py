"""Values as parts of a command: options for a class's fields, and the class's value from the given options.

Flags are the fields' names with hyphens, but for these: a field of the inner solver begins with ``inner-``, one of the
linear solver with the solver's name, ``max_steps`` of either is called steps, and the outer step size is ``outer-lr``.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metagrad.cli.arguments import Option
from metagrad.errors import MetagradError, in_short

Given = Mapping[str, Any]
OPTIONS = Path(__file__).with_name("options.json")
SHORT = {"gd": "gradient-descent"}
PRESETS = {"conv4-pool": ("conv4", {"pooling": True})}
BACKBONE = "metagrad:Pretrained"
PACKAGES = ("timm:", "torchvision:", "hf:")  # whose networks are backbones by their names
_FLAGS = {("outer", "lr"): "--outer-lr", ("network", "scale"): "--feature-length"}  # methods have these names too
_LAYER = {"body": "linear"}  # default of metagrad train, which needs something to train


@functools.cache
def table() -> dict[str, Any]:
    """Return what :mod:`metagrad.cli.generate` wrote."""
    options: dict[str, Any] = json.loads(OPTIONS.read_text(encoding="utf-8"))
    return options


@dataclass(frozen=True)
class Part:
    """One value of the experiment: its class or function, the options of its fields, and their defaults."""

    role: str
    choice: str
    path: str
    about: str
    options: tuple[Option, ...]
    parts: dict[str, Any]
    preset: dict[str, Any] = field(default_factory=dict)

    @property
    def is_backbone(self) -> bool:
        """Whether it is a pretrained network."""
        return self.path == BACKBONE

    @classmethod
    def backbone(cls, name: str) -> Part:
        """Return the part of a pretrained network, by its name."""
        part = cls._made("network", name, BACKBONE, _LAYER)
        return dataclasses.replace(part, preset={**part.preset, "name": name})

    @classmethod
    def of(cls, role: str, choice: str, preset: Mapping[str, Any] | None = None) -> Part:
        """Return the part of a choice; a user's code is imported to find its options.

        Raises
        ------
        MetagradError
            for an unknown choice.
        """
        choice, more = PRESETS.get(choice, (SHORT.get(choice, choice), {}))
        path = table()["choices"][role].get(choice, choice)
        if role == "network" and (path == BACKBONE or choice.startswith(PACKAGES)):
            return cls.backbone(choice)
        return cls._made(role, choice, path, {**(preset or {}), **more})

    @classmethod
    def _made(cls, role: str, choice: str, path: str, preset: Mapping[str, Any]) -> Part:
        record = table()["values"].get(path) or own(role, path)
        flags = {one["name"]: flag_of(role, choice, one["name"]) for one in record["options"]}
        preset = {name: value for name, value in preset.items() if name in flags}
        options = []
        for one in record["options"]:
            name, fields = one["name"], dict(one)
            if name in preset:
                fields |= {"default": preset[name], "required": False}
            text = functools.reduce(lambda text, old: _renamed(text, old, flags[old]), flags, one.get("help", ""))
            fields |= {"name": f"{role}.{name}", "flag": flags[name], "help": text}
            options.append(Option(**{**fields, "choices": tuple(one.get("choices", ()))}))
        return cls(role, choice, path, record["about"], tuple(options), record["parts"], preset)

    def build(self, given: Given, **more: Any) -> Any:
        """Return the value.

        Raises
        ------
        MetagradError
            for a field outside its range; by the name of its option.
        """
        from metagrad.experiment.values import build
        from metagrad.named_code import imported

        made: Any = imported(self.path, code=(self.path,))
        options = {one.name.split(".")[1]: one for one in self.options}
        chosen = {name: given[option.name] for name, option in options.items() if option.name in given}
        fields = {**self.preset, **chosen, **more}
        try:
            return build(made, fields) if isinstance(made, type) and dataclasses.is_dataclass(made) else made(**fields)
        except (MetagradError, TypeError, ValueError) as error:
            text = in_short(error, 400).removeprefix(f"{getattr(made, '__name__', '')}: ")
            before = rf"(?<![\w'.-])(?:outer |{getattr(made, '__name__', '')}\.)?"
            for name, option in options.items():
                text = re.sub(rf"{before}{name}(?![\w'-])", option.flag, text)
            raise MetagradError(text) from error


def own(role: str, path: str) -> dict[str, Any]:
    """Return the record of a user's code."""
    from metagrad.cli.describe import described, summary
    from metagrad.named_code import imported

    code = imported(path, code=(path,))
    if not callable(code):
        kind = type(code).__name__
        raise MetagradError(f"--{role} {path} is a {kind}, which cannot be called: name a class or function")
    if not dataclasses.is_dataclass(code) and role != "method":  # it is the value itself, or makes it without options
        return {"about": summary(code), "options": [], "parts": {}}
    return described(code)


def flag_of(role: str, choice: str, name: str) -> str:
    """Return the flag of a field."""
    flag = name.replace("_", "-")
    if role in ("inner-solver", "linear-solver"):
        prefix = "inner" if role == "inner-solver" else choice.rpartition(":")[2].lower()
        return f"--{prefix}-{'steps' if name == 'max_steps' else flag}"
    return _FLAGS.get((role, name), f"--{flag}")


def name_of(role: str, value: Mapping[str, Any]) -> str:
    """Return the choice whose class made a value."""
    return next((name for name, path in table()["choices"][role].items() if path == value["class"]), value["class"])


def fields_of(value: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the fields that the JSON of a value gives."""
    fields = {key: tuple(part) if isinstance(part, list) else part for key, part in (value or {}).items()}
    return {key: part for key, part in fields.items() if key != "class"}


def _renamed(text: str, name: str, flag: str) -> str:
    """Return a text that calls a field by its option; of one word, a name may be a word of English."""
    return re.sub(rf"(?<![\w-]){name}(?![\w-])", flag, text) if "_" in name else text
