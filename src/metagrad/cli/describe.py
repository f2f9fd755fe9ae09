"""Classes and functions of values as options: their fields, with the types, defaults and texts they have there."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_type_hints

from metagrad.cli.arguments import Option, Section, option_of, read
from metagrad.errors import MetagradError
from metagrad.experiment.values import to_json

Made = Callable[..., Any]
_ORDINARY = {one.name: one.default for one in dataclasses.fields(Option)}


def described(made: Made, *, kin: Sequence[Made] = ()) -> dict[str, Any]:
    """Describe a dataclass by its fields, a function by its parameters, as JSON.

    Parameters
    ----------
    kin:
        whose docstrings explain a field that no docstring of its own does.

    Returns
    -------
    dict
        ``about``, the first sentence of its docstring; ``options``, the fields that can be written on a command line,
        by what :class:`Option` is to say of them; ``parts``, the JSON of the other fields' defaults, by name.
    """
    doc, hints = inspect.getdoc(made) or "", hints_of(made)
    texts: dict[str, str] = {}
    home = made.__mro__ if isinstance(made, type) else (made,)
    for one in (*home, *sorted(kin, key=lambda one: f"`{one.__name__}`" not in doc)):  # "as in :class:`MAML`" first
        inherits = isinstance(one, type) and "__doc__" not in vars(one)
        texts = {**parameters("" if inherits else inspect.getdoc(one) or ""), **texts}
    options, parts = [], {}
    for name, default in defaults(made).items():
        about = {"default": _plain(default), "help": texts.get(name, ""), "required": default is dataclasses.MISSING}
        option = option_of(name, hints.get(name, Any), **about)
        if option is not None:
            options.append({key: value for key, value in vars(option).items() if value != _ORDINARY[key]})
        else:
            parts[name] = to_json(default) if dataclasses.is_dataclass(default) else None
    return {"about": summary(made), "options": options, "parts": parts}


def call(made: Made, words: Sequence[str] | None = None) -> Any:
    """Call a function with what a command line gives for its parameters: a program of one function.

    Parameters
    ----------
    words:
        ``None``: those of this process.
    """
    prog = Path(sys.argv[0]).name if words is None else getattr(made, "__name__", "call")
    try:
        options = [Option(**option) for option in described(made)["options"]]
        given = read(prog, summary(made), [Section("", options)], sys.argv[1:] if words is None else words)
    except MetagradError as error:
        raise SystemExit(f"{prog}: {error}") from None
    return made(**given)


def defaults(made: Made) -> dict[str, Any]:
    """Return what fields or parameters have as their default; ``MISSING`` where they have none."""
    if dataclasses.is_dataclass(made):
        return {
            one.name: one.default_factory() if one.default_factory is not dataclasses.MISSING else one.default
            for one in dataclasses.fields(made)
            if one.init
        }
    try:
        known = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {
        one.name: dataclasses.MISSING if one.default is one.empty else one.default
        for one in known
        if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    }


def hints_of(made: Made) -> dict[str, Any]:
    """Return the types of fields or parameters, as far as they can be resolved."""
    try:
        return get_type_hints(made)
    except (NameError, TypeError):  # a type that is only there while types are checked
        return {}


def summary(made: Any) -> str:
    """Return the first line of a docstring, for people who read a terminal."""
    return plain_text((inspect.getdoc(made) or "").split("\n\n")[0]).rstrip(".")


def parameters(docstring: str) -> dict[str, str]:
    """Return the text of each parameter in a docstring; several may share one.

    What follows "In Python" is left out: a command line cannot give it.
    """
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\S[^\n]*\n-{3,}$|\Z)", docstring, re.DOTALL | re.MULTILINE)
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", section[1] if section else ""):
        names, _, body = entry.partition("\n")
        text = plain_text(body).partition(" In Python ")[0]
        if text and not text.startswith("see "):
            texts |= dict.fromkeys((name.strip() for name in names.split(":")[0].split(",")), text)
    return texts


def plain_text(text: str) -> str:
    """Return a docstring's text without its markup, as one line."""
    text = re.sub(r"[;.]? ``None``(?=:)", ". Default", " ".join(text.split()))
    text = re.sub(r":\w+:`[~!]?(?:[\w.]*\.)?(\w+)`", r"\1", text)
    return re.sub(r"``\"?(.*?)\"?``", r"\1", text)


def _plain(default: Any) -> Any:
    if isinstance(default, Path):
        return str(default)
    return default if isinstance(default, bool | int | float | str | tuple) else None
