"""A command in a forked child: Python, torch and metagrad are there already, so that a trial takes a tenth of a second."""

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


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit code (``None``: it had to be stopped; negative: by that signal), what it printed."""

    code: int | None
    said: str
    complaint: str


def run(words: list[str], folder: Path, out: Path, seconds: float = SECONDS) -> Outcome:
    """Run ``metagrad`` with these words in ``folder``; its output goes through files beside ``out``."""
    files = [out.with_suffix(ending) for ending in (".out", ".err")]
    sys.stdout.flush()
    child = os.fork()
    if not child:
        _in_child(words, folder, files)
    stops, status = time.monotonic() + seconds, 0
    while not (found := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > stops:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            break
        time.sleep(0.003)
    status = found[1]
    code = os.waitstatus_to_exitcode(status) if found[0] else None
    return Outcome(code, *(path.read_text(encoding="utf-8", errors="replace") for path in files))


def _in_child(words: list[str], folder: Path, files: list[Path]) -> None:
    code = 70  # of the campaign's own failure
    try:
        os.setsid()
        os.chdir(folder)
        os.environ["METAGRAD_CACHE"] = str(folder / "cache")
        for place, path in zip((1, 2), files, strict=True):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), place)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (open(place, "w", encoding="utf-8", closefd=False) for place in (1, 2))
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
