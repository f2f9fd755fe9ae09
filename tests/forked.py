"""The command line in forked processes: what this process has imported is there already, so that a start is quick."""

import contextlib
import multiprocessing
import os
import sys

import matplotlib.backends.backend_svg  # noqa: F401  what a training imports in the end
import torch._dynamo  # noqa: F401  what torch imports at the first optimizer

from metagrad.cli.main import main

_SECONDS = 120


class Forked:
    """``metagrad`` with these words and variables of the environment; what it prints goes to ``said``, a file."""

    def __init__(self, words, said, **environment):
        self.said = said
        self.process = multiprocessing.get_context("fork").Process(target=_run, args=(words, said, environment))
        self.process.start()

    def ended(self):
        """Wait for its end; return the exit code, negative for a signal, and what it printed."""
        self.process.join(_SECONDS)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"it runs after {_SECONDS} seconds: {self.said.read_text()}")
        return self.process.exitcode, self.said.read_text()


def _run(words, said, environment):
    os.environ.update(environment)
    with open(said, "w", encoding="utf-8") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        code = main(words)
    sys.exit(code)
