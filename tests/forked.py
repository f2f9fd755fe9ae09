"""Commands and programs in forked processes: what this process has imported is there, so that a start is quick."""

import contextlib
import multiprocessing
import os
import runpy
import sys
from functools import partial

import matplotlib.backends.backend_svg  # noqa: F401  what a training imports in the end
import torch._dynamo  # noqa: F401  what torch imports at the first optimizer

from metagrad.cli.main import main


class Forked:
    """``work()``, which returns the exit code, in a process with these variables of the environment.

    What it prints goes to the file ``said``, its complaints too unless ``errors`` is given.
    """

    def __init__(self, work, said, errors=None, *, encoding="utf-8", **environment):
        self.said, self.encoding = said, encoding
        streams = (said, said if errors is None else errors, encoding)
        self.process = multiprocessing.get_context("fork").Process(target=_run, args=(work, streams, environment))
        self.process.start()

    def ended(self, seconds=120):
        """Wait for its end; return the exit code, negative for a signal, and what it printed."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"it runs after {seconds} seconds: {self.said.read_bytes()}")
        return self.process.exitcode, self.said.read_text(self.encoding, errors="surrogateescape")


def command(words, said, errors=None, **options):
    """Start ``metagrad`` with these words."""
    return Forked(partial(main, list(words)), said, errors, **options)


def program(path, words, said, **options):
    """Start a Python program with these words, from a file or, by its dotted name, a module."""
    return Forked(partial(_program, path, list(words)), said, **options)


def _program(path, words):
    sys.argv = [str(path), *words]
    if isinstance(path, str):
        runpy.run_module(path, run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), run_name="__main__")
    return 0


def _run(work, streams, environment):
    os.environ.update(environment)
    said, errors, encoding = streams
    for path in (said, errors):
        path.write_bytes(b"")
    with open(said, "a", encoding=encoding) as out, open(errors, "a", encoding=encoding) as err:
        for number, stream in ((1, out), (2, err)):
            os.dup2(stream.fileno(), number)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = work()
    sys.exit(code)
