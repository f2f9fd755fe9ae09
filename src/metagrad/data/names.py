"""Names of members and files: which are safe, and how a message shows them."""

from __future__ import annotations

from pathlib import Path

from metagrad.errors import MetagradError


def short(name: str, most: int = 200) -> str:
    """Return a name, which may have thousands of characters, cut in the middle to ``most``."""
    half = (most - 3) // 2
    return name if len(name) <= most else f"{name[:half]}...{name[-half:]}"


def refuse_unsafe_name(source: Path, name: str) -> None:
    """Raise for the name of a member of ``source`` that could lead out of it, or be another on another system."""
    parts = name.split("/")
    if "\\" in name or "\0" in name:
        raise unsafe(source, name, "has a backslash or zero byte in its name")
    if name.startswith("/") or (len(name) > 1 and name[1] == ":" and name[0].isalpha()):
        raise unsafe(source, name, "has an absolute name")
    if ".." in parts or "." in parts or "" in parts:
        raise unsafe(source, name, "has '..', '.' or an empty part in its name")
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:  # a file name of other bytes, which Python holds as surrogates
        raise unsafe(source, name, "has a name that is not utf-8") from error


def unsafe(source: Path, name: str, what: str) -> MetagradError:
    """Return the error that refuses a member; ``what`` says what it is or has."""
    advice = (
        "replace it by the file itself, or remove it" if source.is_dir() else "get the archive again from its source"
    )
    return MetagradError(f"{source}: refused, since its member {short(name)!r} {what}; {advice}")
