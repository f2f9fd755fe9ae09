"""A command in a forked child: what it imports is there already, so that a trial takes a tenth of a second."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib
import io
import os
import pkgutil
import resource
import signal
import subprocess
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

SECONDS = 60.0
MEMORY = 3 * 2**30  # bytes that a child may ask for beyond what it begins with


class Child:
    """A forked child that runs ``metagrad`` with these words in ``folder``; what it prints goes to files at ``out``."""

    def __init__(self, words: list[str], folder: Path, out: Path) -> None:
        self.files = [out.with_suffix(ending) for ending in (".out", ".err")]
        places = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for path in self.files]
        sys.stdout.flush()
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            _in_child(words, folder, places)
        for place in places:
            os.close(place)

    def wait(self, seconds: float) -> int:
        """Return the exit code, negative for a signal, as :meth:`subprocess.Popen.wait` does.

        Raises
        ------
        subprocess.TimeoutExpired
            if it takes longer than ``seconds``.
        """
        stops = time.monotonic() + seconds
        while self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > stops:
                raise subprocess.TimeoutExpired("metagrad", seconds)
            else:
                time.sleep(0.003)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, if it is still there."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def printed(self) -> list[str]:
        """Return what it printed on stdout and on stderr."""
        return [path.read_text(encoding="utf-8", errors="replace") for path in self.files]


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (negative: a signal; ``None``: it had to be stopped), what it printed."""

    code: int | None
    said: str
    complaint: str


def run(words: list[str], folder: Path, out: Path, seconds: float = SECONDS) -> Outcome:
    """Run ``metagrad`` in a forked child, for so many seconds at most."""
    child = Child(words, folder, out)
    try:
        code: int | None = child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGKILL)
        child.wait(seconds)
        code = None
    return Outcome(code, *child.printed())


def _in_child(words: list[str], folder: Path, places: list[int]) -> None:
    code = 70  # of the campaign's own failure
    try:
        os.setsid()
        os.chdir(folder)
        os.environ["METAGRAD_CACHE"] = str(folder / "cache")
        for stream, place in enumerate([os.open(os.devnull, os.O_RDONLY), *places]):
            os.dup2(place, stream)
        sys.stdout, sys.stderr = (os.fdopen(place, "w", encoding="utf-8", closefd=False) for place in (1, 2))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _limit_memory()
        code = _main(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main(words: list[str]) -> int:
    from metagrad.cli.main import main

    try:
        return main(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def prepare() -> None:
    """Let this process, and so its children, say which pixels every data set has that it loads."""
    import metagrad
    from metagrad import data
    from metagrad.classifier import calibrate
    from metagrad.cli.main import main

    torch.set_num_threads(1)
    ours = (module.name for module in pkgutil.walk_packages(metagrad.__path__, "metagrad."))
    for name in (*ours, "torch._dynamo", "torch.export", "matplotlib.backends.backend_svg"):
        if not name.endswith("__main__"):
            importlib.import_module(name)
    Image.init()
    with contextlib.redirect_stdout(io.StringIO()):
        main(["data", "list"])  # what the command line imports when it parses
    gc.freeze()  # a child's garbage collector leaves it alone, and so need not copy it
    calibrate._ASKED = 40  # images, not a thousand: what it comes to is the same whenever it is asked again
    for name in ("http_proxy", "https_proxy"):  # nothing is downloaded
        os.environ[name] = "http://127.0.0.1:9"
    os.environ.pop("METAGRAD_DATA", None)
    os.environ["COLUMNS"] = "100"
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # of forking
    warnings.filterwarnings("ignore", "Duplicate name")  # in a zip that is made so on purpose
    usual = data.load

    def load(*args: Any, **options: Any) -> Any:
        found = usual(*args, **options)
        print("pixels", pixels(found))
        return found

    data.load = load


def pixels(dataset: Any) -> str:
    """Digest the images that a data set really holds, class by class."""
    digest = hashlib.sha256()
    for part in (dataset.train, dataset.val, dataset.test):
        for name, first, count in zip(part.names, part.first.tolist(), part.counts.tolist(), strict=True):
            digest.update(name.encode("utf-8", "surrogatepass") + b"\0")
            digest.update(part.images[first : first + count].numpy().tobytes())
    return digest.hexdigest()[:16]
