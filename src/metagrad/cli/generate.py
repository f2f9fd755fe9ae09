"""Write ``options.json``, the options of ``metagrad train``, from the values: ``python -m metagrad.cli.generate``.

So that ``--help`` knows them without loading torch. What is new in :mod:`metagrad.fewshot`, :mod:`metagrad.implicit`,
:mod:`metagrad.experiment` or :mod:`metagrad.data` becomes an option or a choice by being there.
"""

from __future__ import annotations

import dataclasses
import json
import types
from collections.abc import Sequence
from typing import Any

from metagrad import data, experiment, fewshot, implicit
from metagrad.cli.describe import Made, defaults, described, hints_of
from metagrad.cli.parts import OPTIONS
from metagrad.experiment.values import path_of, to_json
from metagrad.fewshot.backbones.efficientnet_lite import NAMES
from metagrad.fewshot.losses import ExampleLoss
from metagrad.named_code import hyphened

# What training does not look at, what it decides itself, and the positional argument.
_LEFT_OUT = {(implicit.CG, "history"), (implicit.Implicit, "measure"), (experiment.Episodes, "dataset"),
             (experiment.Pretrained, "name")}  # fmt: skip


def table() -> dict[str, Any]:
    """Return the choices there are, what each is made by, and the options of that."""
    choices: dict[str, dict[str, Made]] = {
        "method": _methods(),
        "loss": {hyphened(made): made for made in _classes(fewshot) if issubclass(made, ExampleLoss)},
        "inner-solver": _of_package("metagrad.implicit.solvers."),
        "linear-solver": _of_package("metagrad.implicit.linear."),
        "network": {
            **{
                made.__name__.removesuffix("Config").lower(): made
                for made in _classes(experiment)
                if callable(getattr(made, "build", None)) and made is not experiment.Pretrained
            },
            **dict.fromkeys(NAMES, experiment.Pretrained),
        },
    }
    for part in (experiment.Outer, experiment.Budget, experiment.Compute):
        choices[part.__name__.lower()] = {part.__name__.lower(): part}
    choices |= {"tasks": {"episodes": experiment.Episodes}, "adjoint": {"implicit": implicit.Implicit}}
    made: dict[str, Any] = {}
    for known in choices.values():
        kin = tuple(part for part in known.values() if isinstance(part, type))
        made |= {path_of(part): _record(part, kin) for part in known.values()}
    names = {role: {name: path_of(known[name]) for name in sorted(known)} for role, known in choices.items()}
    return {"data": _data(), "choices": names, "values": made}


def text() -> str:
    """Return what is in the file."""
    return json.dumps(table(), indent=1, ensure_ascii=False) + "\n"


def _record(made: Made, kin: Sequence[Made] = ()) -> dict[str, Any]:
    record = described(made, kin=kin)
    options = [option for option in record["options"] if (made, option["name"]) not in _LEFT_OUT]
    return {**record, "options": options}


def _methods() -> dict[str, Made]:
    """Return methods, and functions that return one."""
    methods: dict[str, Made] = {getattr(made, "name", ""): made for made in _classes(fewshot)}
    for made in _offered(fewshot):
        if isinstance(made, types.FunctionType):
            returned = hints_of(made).get("return")
            if isinstance(returned, type) and isinstance(getattr(returned, "name", None), str):
                methods[hyphened(made)] = made
    return {name: made for name, made in methods.items() if isinstance(name, str) and name and _is_made_of_words(made)}


def _of_package(package: str) -> dict[str, Made]:
    """Return the solvers of a package that can be made from numbers and texts."""
    solvers = {hyphened(made): made for made in _classes(implicit) if made.__module__.startswith(package)}
    return {name: made for name, made in solvers.items() if "__call__" in vars(made) and _is_made_of_words(made)}


def _is_made_of_words(made: Made) -> bool:
    """Whether what has no default can be written on a command line."""
    typed = {option["name"] for option in described(made)["options"]}
    return typed >= {name for name, default in defaults(made).items() if default is dataclasses.MISSING}


def _data() -> dict[str, Any]:
    return {
        name: {"about": about.about, "pictures": about.pictures, "network": to_json(experiment.Episodes(name).network)}
        for name, about in data.DATASETS.items()
    }


def _offered(package: Any) -> list[Any]:
    return [getattr(package, name) for name in package.__all__]


def _classes(package: Any) -> list[type]:
    return [made for made in _offered(package) if isinstance(made, type) and dataclasses.is_dataclass(made)]


if __name__ == "__main__":
    OPTIONS.write_text(text(), encoding="utf-8")
    print(f"wrote {OPTIONS}")
