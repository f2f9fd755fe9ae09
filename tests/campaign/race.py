"""Let several processes, or threads, use one empty cache for the first time at the same moment.

All must succeed, see the same pixels, say nothing, and leave no temporary file; who comes later must find them too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from . import child, fixtures
from .child import pixels

_SECONDS = 60.0


def _loaders(base: Path) -> dict[str, Callable[[], str]]:
    from metagrad import data

    def of(name: str, folder: Path | None, size: int | None = None) -> Callable[[], str]:
        return lambda: pixels(data.load(name, data_dir=folder, image_size=size))

    return {
        "pictures": of("folder", base / "pictures", 16),
        "pickles": of("mini-imagenet", base / "pickles", 8),
        "cifar": of("cifar-fs", base / "cifar"),
        "omniglot": of("omniglot", base / "omniglot"),
        "glyphs": of("glyphs", None),
    }


def race(load: Callable[[], str], cache: Path, processes: int, threads: int) -> list[str]:
    """Load in so many processes, of so many threads each, at once; return what each saw, or how it failed."""
    gun, starts = os.pipe()
    runners = []
    for _ in range(processes):
        ours, theirs = os.pipe()
        if not (pid := os.fork()):
            os.close(starts)
            _run(load, cache, gun, theirs, threads)
        os.close(theirs)
        runners.append((pid, ours))
    os.close(gun)
    time.sleep(0.05)  # until all wait
    os.close(starts)
    found = []
    for pid, ours in runners:
        with open(ours, encoding="utf-8") as answers:
            lines = answers.read().splitlines()
        status = os.waitpid(pid, 0)[1]
        found += lines + [f"ended with status {status}"] * (threads - len(lines))
    return found


def _run(load: Callable[[], str], cache: Path, gun: int, answers: int, threads: int) -> None:
    os.environ["METAGRAD_CACHE"] = str(cache)
    together = threading.Barrier(threads)

    def one() -> None:
        together.wait()
        try:
            said = load()
        except BaseException as error:
            ours = re.findall(r'File "[^"]*/(metagrad/[^"]*)", line \d+, in (\w+)', traceback.format_exc())
            said = f"{type(error).__name__} in {' '.join(ours[-1]) if ours else '?'}: {' '.join(str(error).split())}"
        os.write(answers, f"{said[:400]}\n".encode())

    with contextlib.redirect_stdout(None):
        os.read(gun, 1)  # returns when the parent closes its end
        some = [threading.Thread(target=one) for _ in range(threads)]
        for thread in some:
            thread.start()
        for thread in some:
            thread.join(_SECONDS)
    os._exit(0)


def main() -> int:
    """Run the campaign; print a row for each cache."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.race", description="Race for an empty cache.")
    parser.add_argument("--rounds", type=int, default=20, help="of each cache, with 2 and 6 processes or threads")
    parser.add_argument("--drawn", action="store_true", help="all glyphs, twice: they take ten seconds to draw")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    child.prepare()
    from metagrad.data import glyphs

    failures, began = 0, time.monotonic()
    rng = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="campaign-") as work:
        base = Path(work).resolve() / "base"
        every_split = glyphs.published_split
        fixtures.data_sets(base)
        if asked.drawn:
            glyphs.published_split = every_split
        print("| cache | who | rounds | not all the same |\n|---|---|---|---|")
        for name, load in _loaders(base).items():
            for processes, threads in ((2, 1), (6, 1), (1, 6)):
                bad, rounds = [], 2 if asked.drawn and name == "glyphs" else asked.rounds
                for number in range(rounds):
                    cache = base.parent / f"{name}-{processes}-{threads}-{number}-{rng.randrange(10**6)}"
                    found = race(load, cache, processes, threads)
                    left = [path.name for path in cache.rglob("*") if ".metagrad-" in path.name or ".tmp" in path.name]
                    again = race(load, cache, 1, 1)
                    if left or len({*found, *again}) > 1:
                        bad.append(sorted({*found, *again}) + left)
                who = f"{processes} processes" if threads == 1 else f"{threads} threads"
                print(f"| {name} | {who} | {rounds} | {len(bad)} |", flush=True)
                failures += len(bad)
                for some in bad[:1]:
                    print("\n".join(f"  {one}" for one in some))
    print(f"{failures} rounds failed; {time.monotonic() - began:.0f} s")
    return int(failures > 0)


if __name__ == "__main__":
    raise SystemExit(main())
