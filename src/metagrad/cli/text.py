"""Text that is safe to print, and the lines that the command says to a person."""

import contextlib
import os
import sys

_MOST = 2000  # characters of a line that is said; a path or a file's contents in it may be of any length


def printable(text: str) -> str:
    """Return text that cannot move a terminal's cursor, change its colours or break a line."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def shown(text: str) -> str:
    """Return text for a table that a spreadsheet may open: what looks like a formula becomes text."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def say(text: str, *, who: str = "metagrad") -> None:
    """Print one line of bounded length on standard error. Nobody there to read it is no reason to stop."""
    line = printable(" ".join(text.splitlines()))
    if len(line) > _MOST:
        line = f"{line[: _MOST // 2]} ... {line[-_MOST // 2 :]}"
    if sys.stderr is None:  # print would take standard output in its place
        return
    try:
        print(f"{who}: {line}", file=sys.stderr, flush=True)
    except (OSError, ValueError):  # full, or closed at its other end
        with contextlib.suppress(OSError, ValueError):
            give_up(sys.stderr.fileno())
    except RuntimeError:  # a signal's handler says something while something else is being said
        pass


def give_up(stream: int) -> None:
    """Send what else is written to a stream nowhere, so that the end of the process does not complain of it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)
