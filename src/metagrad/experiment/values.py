"""Values to JSON and back: a frozen dataclass by its class and fields, code by where it is imported from.

Nothing is ever unpickled. Code outside of metagrad is imported only if the caller names it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from metagrad.errors import MetagradError, in_short
from metagrad.named_code import imported, is_ours

CLASS, CODE = "class", "code"  # the keys that say what a JSON object stands for


def to_json(value: Any, where: str = "the experiment") -> Any:
    """Return a value as plain JSON.

    Parameters
    ----------
    value:
        numbers, texts, ``None``, sequences and mappings of such; frozen dataclasses, as
        ``{"class": "metagrad.fewshot:IMAML", "lam": 0.1, ...}``; functions and classes, as ``{"code": "module:name"}``.
    where:
        what it belongs to, for the error.

    Raises
    ------
    MetagradError
        for a value that has no JSON: a lambda, a function inside a function, a tensor.

    Examples
    --------
    >>> from metagrad import CG
    >>> to_json(CG(max_steps=7))["class"], to_json(CG(max_steps=7))["max_steps"]
    ('metagrad:CG', 7)
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise MetagradError(f"{where} holds a number that is not finite, {value}")
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            one.name: to_json(getattr(value, one.name), one.name) for one in dataclasses.fields(value) if one.init
        }
        return {CLASS: path_of(type(value)), **fields}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value) and not {CLASS, CODE} & set(value):
        return {key: to_json(part, key) for key, part in value.items()}
    if isinstance(value, Sequence):
        return [to_json(part, where) for part in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType | type):
        return {CODE: path_of(value)}
    raise MetagradError(
        f"{where} is a {type(value).__name__}, which cannot be written down: use a frozen dataclass, or a function or "
        "class of a module"
    )


def from_json(written: Any, *, code: Collection[str] = ()) -> Any:
    """Return the value whose JSON :func:`to_json` wrote.

    Parameters
    ----------
    code:
        import paths outside of metagrad, ``"package.module:name"``, that may be imported.

    Raises
    ------
    MetagradError
        for code that is not allowed or cannot be imported; naming a field that is unknown, missing or of another type.
    """
    if isinstance(written, list):
        return tuple(from_json(part, code=code) for part in written)
    if not isinstance(written, dict):
        return written
    if CODE in written:
        return imported(written[CODE], code=code)
    if CLASS not in written:
        return {key: from_json(part, code=code) for key, part in written.items()}
    dataclass = imported(written[CLASS], code=code)
    if not (isinstance(dataclass, type) and dataclasses.is_dataclass(dataclass)):
        raise MetagradError(f"{in_short(written[CLASS])} is no class of values")
    fields = {key: from_json(part, code=code) for key, part in written.items() if key != CLASS}
    return build(dataclass, fields)


def paths_in(written: Any) -> Iterator[str]:
    """Yield the import paths outside of metagrad that the JSON of a value names."""
    if isinstance(written, dict):
        found = [written.get(key) for key in (CLASS, CODE)]
        yield from (path for path in found if isinstance(path, str) and path.count(":") == 1 and not is_ours(path))
    for part in written.values() if isinstance(written, dict) else written if isinstance(written, list) else ():
        yield from paths_in(part)


def build(dataclass: Callable[..., Any], given: Mapping[str, Any]) -> Any:
    """Return a dataclass's value from its fields, each of the field's type.

    Raises
    ------
    MetagradError
        naming the field that is unknown, missing or of another type; and as the class does.
    """
    known = {one.name: one for one in dataclasses.fields(dataclass) if one.init}  # type: ignore[arg-type]
    name = getattr(dataclass, "__name__", str(dataclass))
    for key in given:
        if key not in known:
            raise MetagradError(f"{name} has no field {in_short(repr(key), 40)}: it has {', '.join(known)}")
    hints = _hints(dataclass)
    for key, value in given.items():
        if not has_type(value, hints.get(key, Any)):
            raise MetagradError(f"{name}.{key} must be {type_in_words(hints[key])}, got {in_short(repr(value), 60)}")
    for key, one in known.items():
        if key not in given and one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            raise MetagradError(f"{name}.{key} is missing")
    try:
        return dataclass(**given)
    except (TypeError, ValueError) as error:
        raise MetagradError(f"{name}: {in_short(error)}") from error


def path_of(code: Any) -> str:
    """Return ``"module:name"`` of a function or class; for metagrad's own, the public package is the module.

    Raises
    ------
    MetagradError
        for a lambda or a function inside a function.
    """
    # Code typed at a prompt has no module.
    module, name = getattr(code, "__module__", None) or "__main__", getattr(code, "__qualname__", "")
    if not name or "<" in name:
        raise MetagradError(
            f"{in_short(getattr(code, '__name__', code))} cannot be imported by name: define it at the top of a module"
        )
    parts = module.split(".")
    if parts[0] == "metagrad":
        for end in range(1, len(parts)):
            package = sys.modules.get(".".join(parts[:end]))
            if package is not None and name in getattr(package, "__all__", ()) and getattr(package, name) is code:
                return f"{'.'.join(parts[:end])}:{name}"
    if module == "__main__":
        module = _module_of_main() or module
    return f"{module}:{name}"


def _module_of_main() -> str | None:
    """Return the name by which the program that is running can be imported."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None and spec.name not in ("__main__", None):
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return Path(file).stem if file and Path(file).suffix == ".py" and Path(file).stem.isidentifier() else None


@functools.cache
def _hints(dataclass: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(dataclass)
    except (NameError, TypeError):  # a type that is only there while types are checked
        return {}


def has_type(value: Any, hint: Any) -> bool:
    """Whether a value from a file is of a field's type; the class itself checks types that are not known here."""
    if hint is Any or isinstance(hint, str):
        return True
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(has_type(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if hint is None or hint is type(None):
        return value is None
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint in (bool, object)
    if hint is float:
        return isinstance(value, float | int)
    if hint in (int, str):
        return isinstance(value, hint)
    if isinstance(value, bool | int | float | str) or value is None:
        return False
    if origin in (tuple, list, Sequence) and inner:
        return isinstance(value, tuple) and all(has_type(one, inner[0]) for one in value)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return isinstance(value, hint)
    return True


def type_in_words(hint: Any) -> str:
    """Describe a type."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(type_in_words(one) for one in inner)
    if origin is Literal:
        return f"one of {', '.join(map(str, inner))}"
    words = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}
    return words.get(hint, f"a {getattr(hint, '__name__', hint)}")
