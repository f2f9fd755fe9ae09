"""Entry point: parse, run, and turn every expected failure into one line and exit code 2."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import docstring_parser
import tyro

import metagrad
from metagrad.cli.adapt import Adapt
from metagrad.cli.check import Check
from metagrad.cli.data import Data
from metagrad.cli.evaluate import Evaluate
from metagrad.cli.export import Export
from metagrad.cli.predict import Predict
from metagrad.cli.report import Report
from metagrad.cli.reproduce import MetaGradientError
from metagrad.cli.reproduce_convergence import Convergence
from metagrad.cli.reproduce_heads import MemoryReducedTable
from metagrad.cli.reproduce_memory import MemoryCompute
from metagrad.cli.text import printable
from metagrad.cli.train import Train
from metagrad.errors import MetagradError, MetagradWarning, is_out_of_memory

DESCRIPTION = f"""Meta-learning with implicit gradients (metagrad {metagrad.__version__}).

Start with:  metagrad train glyphs"""


@dataclass(frozen=True)
class Reproduce:
    """Compute a published figure anew: the picture (PNG and SVG) and its numbers (CSV)."""


_COMMANDS: dict[str, Callable[..., Any]] = {
    "train": Train,
    "evaluate": Evaluate,
    "check": Check,
    "adapt": Adapt,
    "predict": Predict,
    "export": Export,
    "report": Report,
    "data": Data,
    "reproduce": Reproduce,
}
_FIGURES: dict[str, Callable[..., Any]] = {
    "meta-gradient-error": MetaGradientError,
    "memory-compute": MemoryCompute,
    "memory-reduced": MemoryReducedTable,
    "convergence": Convergence,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (0 done, 2 something to put right, 130 interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        print(f"metagrad {metagrad.__version__}")
        return 0
    warnings.showwarning = _show(warnings.showwarning)
    codecs.register_error("metagrad", _as_bytes)
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "metagrad"), (sys.stderr, "metagrad")):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors=errors)
    if threading.current_thread() is threading.main_thread():  # what is half done is tidied up, as after Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore", module="PIL")  # what it thinks of a picture's metadata
    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's; there is a limit of our own
    try:
        command = _parse(words or ["--help"])
        code = int(command.main(words))
        if sys.stdout is not None:
            sys.stdout.flush()  # a reader that has seen enough is found out here, not at the end of the process
        return code
    except MetagradError as error:
        who = f" (rank {os.environ.get('RANK')})" if int(os.environ.get("WORLD_SIZE") or 1) > 1 else ""
        print(f"metagrad{who}: {printable(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of --help has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"metagrad: {error}: check the path, its permissions and the space there", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        print("metagrad: not enough memory: lower --chunk, --tasks, --queries or --filters", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("metagrad: interrupted", file=sys.stderr)
        return 130


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
    """Print our own warnings as we print errors, in one line without the source; leave others as they are."""

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, MetagradWarning):
            print(f"metagrad: {message}", file=sys.stderr)
        else:
            usual(message, category, *place)

    return show


def _parse(words: list[str]) -> Any:
    """Parse with tyro; its boxed complaint becomes one line."""
    said = io.StringIO()
    commands = _COMMANDS
    prog, about, rest = "metagrad", DESCRIPTION, words
    if words[0] == "reproduce":
        commands, prog, about, rest = _FIGURES, "metagrad reproduce", str(Reproduce.__doc__), words[1:] or ["--help"]
    if not rest[0].startswith("-") and rest[0] not in commands:
        raise MetagradError(f"{prog} has no {rest[0]!r}: there are {', '.join(commands)}")
    try:
        with contextlib.redirect_stderr(said), _flowing_help():
            return tyro.extras.subcommand_cli_from_dict(commands, args=rest, prog=prog, description=about)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise MetagradError(_one_line(said.getvalue(), words)) from None


@contextlib.contextmanager
def _flowing_help() -> Iterator[None]:
    """Let --help break lines where its width ends; tyro begins anew where a field's docstring has an indented line."""
    usual = docstring_parser.parse_from_object

    def parse(*what: Any) -> Any:
        found = usual(*what)
        for param in found.params:
            param.description = " ".join((param.description or "").split())
        return found

    docstring_parser.parse_from_object = parse  # type: ignore[assignment]
    try:
        yield
    finally:
        docstring_parser.parse_from_object = usual


def _one_line(box: str, words: list[str]) -> str:
    """Keep the complaint of a boxed message and drop the box."""
    kept: list[str] = []
    for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines()[1:]:
        text = line.strip("│| ")
        if kept and kept[0].startswith("Missing from ") and line.strip("│|").startswith(" " * 9):
            continue  # what --help says of it
        if text.strip("─╭╮╰╯-+ "):
            kept.append(text)
        elif kept:  # the rule below the complaint
            break
    named = [word for word, known in zip(words, (_COMMANDS, _FIGURES), strict=False) if word in known]
    command = " ".join(["metagrad", *named])
    if kept and kept[0].startswith("Missing from "):
        return f"{kept[0].removeprefix('Missing from ').rstrip(':')} needs {', '.join(kept[1:])}; see {command} --help"
    said = " ".join(kept).rstrip(".:")
    for noise in ("'None', ", ", 'None'", ". Expected 1 values"):
        said = said.replace(noise, "")
    return f"{said}; see {command} --help"
