"""Entry point: parse, run, and turn every expected failure into one line and exit code 2."""

from __future__ import annotations

import codecs
import contextlib
import importlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import metagrad
from metagrad.cli.arguments import did_you_mean, parse, parser
from metagrad.cli.signals import interruptible
from metagrad.cli.text import give_up, say
from metagrad.errors import MetagradError, MetagradWarning, in_short, is_out_of_memory

DESCRIPTION = f"""Meta-learning with implicit gradients (metagrad {metagrad.__version__}).

Start with:  metagrad train glyphs"""


class Reproduce:
    """Reproduce a published figure or table: pictures (PNG and SVG) and numbers (CSV)."""


COMMAND_HOMES = {
    "train": "train:Train",
    "evaluate": "evaluate:Evaluate",
    "check": "check:Check",
    "adapt": "adapt:Adapt",
    "predict": "predict:Predict",
    "export": "export:Export",
    "report": "report:Report",
    "data": "data:Data",
    "reproduce": "main:Reproduce",
}
FIGURE_HOMES = {
    "meta-gradient-error": "reproduce:MetaGradientError",
    "memory-compute": "reproduce_memory:MemoryCompute",
    "memory-reduced": "reproduce_heads:MemoryReducedTable",
    "cifar-table": "reproduce_cifar:CifarTable",
    "cifar-two-stages": "reproduce_cifar:CifarTwoStages",
    "omniglot": "reproduce_omniglot:Omniglot",
    "omniglot-table": "reproduce_omniglot:OmniglotTable",
    "omniglot-challenge": "reproduce_challenge:OmniglotChallenge",
    "convergence": "reproduce_convergence:Convergence",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and leave nothing changed; return the exit code.

    0: done; 2: something to put right; 130: interrupted.
    """
    return interruptible(lambda: run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Do what :func:`main` does, but for an interrupt, which raises KeyboardInterrupt."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    with _settings():
        try:
            return _command(words)
        except BrokenPipeError:  # the reader closed the pipe, such as | head
            with contextlib.suppress(OSError, ValueError):
                give_up(sys.stdout.fileno())
            return 0
        except (MetagradError, OSError, MemoryError, RuntimeError, UnicodeError) as error:
            return _complain(error)


def _command(words: list[str]) -> int:
    if sys.stdout is None and ("--help" in words or words[0] in ("-h", "--version", "-V", "data")):
        raise MetagradError("standard output is closed, so nothing can be printed")
    if words in (["--version"], ["-V"]):
        print(f"metagrad {metagrad.__version__}")
        code = 0
    else:
        try:
            code = int(command_of(words).main(words))
        except SystemExit:  # of --help
            _flush()
            raise
    _flush()
    return code


def _flush() -> None:
    """Flush standard output here, so that an error is reported and not lost at the end of the process."""
    if sys.stdout is not None:
        sys.stdout.flush()


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Set the encoding of streams and the display of warnings inside a ``with`` block."""
    codecs.register_error("metagrad", _as_bytes)
    with contextlib.ExitStack() as stack, warnings.catch_warnings():
        for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "metagrad"), (sys.stderr, "metagrad")):
            if isinstance(stream, io.TextIOWrapper):
                with contextlib.suppress(ValueError, OSError):
                    stack.callback(_encode_errors, stream, stream.errors)
                    stream.reconfigure(errors=errors)
        warnings.showwarning = _show(warnings.showwarning)
        warnings.filterwarnings("ignore", module="PIL")  # about a picture's metadata
        warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's limit; metagrad has another
        yield


def _encode_errors(stream: io.TextIOWrapper, errors: str | None) -> None:
    with contextlib.suppress(ValueError, OSError):
        stream.reconfigure(errors=errors)


def _complain(error: Exception) -> int:
    """Print an error that the user can fix in one line and return 2; raise a programming error again."""
    text = _about(error)
    if text is None:
        raise error
    rank = os.environ.get("RANK", "")
    say(text, who=f"metagrad (rank {rank})" if rank.isdecimal() and os.environ.get("WORLD_SIZE") != "1" else "metagrad")
    return 2


def _about(error: Exception) -> str | None:
    if isinstance(error, MetagradError):
        return str(error)
    if is_out_of_memory(error):
        return "not enough memory: lower --chunk, --tasks-per-step, --queries or --filters"
    if isinstance(error, RecursionError):
        return "a file or folder is nested too deeply: check those that you gave"
    if isinstance(error, UnicodeError):
        return f"text cannot be decoded or encoded ({error}): check the names and files that you gave"
    if not isinstance(error, OSError):
        return None
    refused = _stdout_refuses() if error.filename is None else None
    if refused is not None:
        return f"cannot write to standard output ({refused}): free space there, or redirect it to another place"
    if error.filename is None and error.strerror:  # of a file, or of an output that keeps nothing back
        return f"cannot write ({error.strerror}): free space for files and for the printed output"
    return f"{error}: check the path, its permissions and the space there"


def _stdout_refuses() -> str | None:
    """Return why standard output takes nothing more, and write nothing more to it; ``None`` where it may."""
    try:
        _flush()
    except OSError as error:
        give_up(sys.stdout.fileno())
        return error.strerror
    except ValueError:  # closed by who called
        return "it is closed"
    return None


def _as_bytes(error: UnicodeError) -> tuple[bytes, int]:
    """Encode what an output cannot: bytes of file names as they are, other characters as JSON writes them."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    made = b""
    for char in error.object[error.start : error.end]:
        if 0xDC80 <= ord(char) <= 0xDCFF:
            made += bytes([ord(char) - 0xDC00])
        else:
            made += json.dumps(char)[1:-1].encode("ascii")
    return made, error.end


def _show(usual: Callable[..., None]) -> Callable[..., None]:
    """Print our own warnings as we print errors, each once and without the source; leave others as they are."""
    printed: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, MetagradWarning):
            if str(message) not in printed:
                say(str(message))
            printed.add(str(message))
        else:
            usual(message, category, *place)

    return show


def command_of(words: list[str]) -> Any:
    """Return the command that words give."""
    known, prog, about, rest = COMMAND_HOMES, "metagrad", DESCRIPTION, words
    if words[0] == "reproduce":
        known, prog, about, rest = FIGURE_HOMES, "metagrad reproduce", str(Reproduce.__doc__), words[1:] or ["--help"]
    if rest[0] in ("-h", "--help"):
        made = parser(prog, about, [], usage="COMMAND ...")
        group = made.add_argument_group("commands", f"{prog} COMMAND --help lists a command's options")
        for name, home in known.items():
            group.add_argument(name, help=str(imported(home).__doc__).split("\n")[0].replace("%", "%%"))
        print(made.format_help(), end="")
        raise SystemExit(0)
    if rest[0] not in known:
        near = did_you_mean(rest[0], list(known)) or f": the commands are {', '.join(known)}"
        raise MetagradError(f"{prog} has no command {in_short(repr(rest[0]), 60)}{near}")
    command, prog = imported(known[rest[0]]), f"{prog} {rest[0]}"
    return command.parsed(rest[1:], prog) if hasattr(command, "parsed") else parse(command, rest[1:], prog)


def imported(home: str) -> Any:
    """Return the class of a command."""
    module, name = home.split(":")
    return getattr(importlib.import_module(f"metagrad.cli.{module}"), name)
