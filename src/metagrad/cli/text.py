"""Text that is safe to print, and messages on standard error."""

import contextlib
import os
import sys

_MOST = 2000  # characters of a message; a path or a file's contents in it may have any length


def printable(text: str) -> str:
    """Return text that cannot move a terminal's cursor, change its colours or break a line."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def shown(text: str) -> str:
    """Return text for a table that a spreadsheet may open: what looks like a formula becomes text."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def say(text: str, *, who: str = "metagrad") -> None:
    """Print one line of bounded length on standard error; go on if that is closed."""
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
    except RuntimeError:  # a signal's handler prints while another message is being printed
        pass


def give_up(stream: int) -> None:
    """Redirect a stream to /dev/null, so that later writes to it raise no error at the end of the process."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)
