"""Code by its import path, ``"package.module:name"``: what is not ours is imported only if the caller names it."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
import tokenize
import types
from collections.abc import Callable, Collection, Iterable
from importlib.machinery import PathFinder
from typing import Any

from metagrad.errors import MetagradError, in_short


class NotNamedError(MetagradError):
    """A file names code outside of metagrad that the caller did not allow."""


def imported(path: Any, *, code: Collection[str] = ()) -> Any:
    """Return the function or class at ``"package.module:name"``.

    Raises
    ------
    MetagradError
        if the path is none, is not allowed, or leads nowhere.
    """
    if not isinstance(path, str) or path.count(":") != 1 or not all(path.split(":")):
        raise MetagradError(f"{in_short(repr(path), 60)} is no import path: write package.module:name")
    ours = is_ours(path)
    if not ours:
        require_named([path], code)
    module, name = path.split(":")
    target: Any = _module(module, path)
    for part in name.split("."):
        try:
            target = getattr(target, part)
        except AttributeError:
            raise MetagradError(f"{module} has no {name}: check the spelling of {path}") from None
    home = getattr(target, "__module__", None) or ""
    if ours and not (
        callable(target) and f"{home}.".startswith(("metagrad.", "torch."))
    ):  # what a module imported is not its own
        raise MetagradError(f"{path} is no function or class of metagrad or torch.nn")
    return target


def is_ours(path: str) -> bool:
    """Whether an import path leads into metagrad or torch.nn."""
    return path.startswith(_OURS)


def require_named(paths: Iterable[str], code: Collection[str]) -> None:
    """Refuse import paths that the caller did not name, all of them at once.

    Raises
    ------
    NotNamedError
        with what to add.
    """
    missing = [path for path in dict.fromkeys(paths) if path not in code]
    if missing:
        are, it = ("is", "it") if len(missing) == 1 else ("are", "them")
        whole = [*code, *missing]
        raise NotNamedError(
            f"{', '.join(missing)} {are} code outside of metagrad, which opening a file does not import: if you trust "
            f"{it}, allow {it} ({' '.join(f'--code {path}' for path in whole)}, or code={whole!r})"
        )


def name_of(method: Any) -> str:
    """Return a method's short name: the ``name`` that its own class sets, else the class's in the command's form."""
    kind = type(method)
    name = vars(kind).get("name", getattr(method, "__dict__", {}).get("name"))
    return name if isinstance(name, str) else hyphened(kind)


def hyphened(kind: Callable[..., Any]) -> str:
    """Return a class's or function's name in the command's form: ``"gradient-descent"`` for ``GradientDescent``."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", kind.__name__).lower()


_OURS = ("metagrad:", "metagrad.", "torch.nn:", "torch.nn.")


def _module(name: str, path: str) -> types.ModuleType:
    """Import a module, also one that lies in the current folder."""
    if name == "__main__":
        return sys.modules["__main__"]
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.append(here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise MetagradError(
                f"{path}: there is no module {error.name} here: run from the folder it is in, or install it"
            ) from error
        raise MetagradError(f"{path} cannot be imported: {in_short(error)}") from error
    except Exception as error:  # whatever somebody's module does
        raise MetagradError(f"{path} cannot be imported: {type(error).__name__}: {in_short(error)}") from error
    finally:
        if added:
            sys.path.remove(here)


def digests(paths: Iterable[str]) -> dict[str, str]:
    """Return a sha256 of the source of each module that import paths name, by its name; nothing is imported.

    Comments on lines of their own and empty lines do not count. Modules without a source file are left out, and those
    of torch, whose version is recorded.
    """
    found = {}
    for name in sorted({path.partition(":")[0] for path in paths}):
        if name.partition(".")[0] == "torch":
            continue
        try:
            source = _source(name)
        except (OSError, SyntaxError, ValueError):
            continue
        lines = [line.rstrip() for line in source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        found[name] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return found


def _source(name: str) -> str:
    """Return the text of a module's file: of one that is imported already, or that the import system would find."""
    file, where = getattr(sys.modules.get(name), "__file__", None), [os.getcwd(), *sys.path]
    parts = name.split(".")
    for depth in range(len(parts) if file is None else 0):
        spec = PathFinder.find_spec(".".join(parts[: depth + 1]), where)
        if spec is None:
            file = None  # not that of the package around it
            break
        where, file = list(spec.submodule_search_locations or []), spec.origin
    if file is None:
        raise OSError(f"{name} has no source file")
    with tokenize.open(file) as text:
        return text.read()
