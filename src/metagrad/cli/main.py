"""Entry point: parse, run, and turn every expected failure into one line and exit code 2."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from collections.abc import Sequence

import tyro

import metagrad
from metagrad.cli.evaluate import Evaluate
from metagrad.cli.train import Train
from metagrad.errors import MetagradError

DESCRIPTION = f"""Meta-learning with implicit gradients (metagrad {metagrad.__version__}).

Start with:  metagrad train glyphs"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code (0 done, 2 something to put right, 130 interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["-V"]):
        print(f"metagrad {metagrad.__version__}")
        return 0
    try:
        command = _parse(words or ["--help"])
        return command.main(words)
    except MetagradError as error:
        print(f"metagrad: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("metagrad: interrupted", file=sys.stderr)
        return 130


def _parse(words: list[str]) -> Train | Evaluate:
    """Parse with tyro; its boxed complaint becomes one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.extras.subcommand_cli_from_dict(
                {"train": Train, "evaluate": Evaluate}, args=words, prog="metagrad", description=DESCRIPTION
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise MetagradError(_one_line(said.getvalue(), words)) from None


def _one_line(box: str, words: list[str]) -> str:
    """Keep the complaint of a boxed message and drop the box."""
    lines = [re.sub(r"^[│╭╰─ ]+|[│╮╯─ ]+$", "", line) for line in box.splitlines()[1:]]
    kept = []
    for line in lines:
        if not line:  # the rule below the complaint
            break
        kept.append(line)
    command = f"metagrad {words[0]}" if words and words[0] in ("train", "evaluate") else "metagrad"
    return f"{' '.join(kept).rstrip('.:')}; see {command} --help"
