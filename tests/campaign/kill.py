"""Kill runs at random moments of their whole life, resume them, and compare what they come to, to the bit.

A life is one run with an empty cache: it is killed one to four times in a row (SIGKILL; SIGTERM or Ctrl-C, at times
twice; or no file may grow beyond some size, as on a full disk), each time at a moment between the first import and the
last line of the report; then it may go on to its end. What must hold:

- after every kill, each file of the run is whole, but for the last line of ``metrics.jsonl``;
- SIGTERM and Ctrl-C end with exit code 130 (or by that signal, before metagrad is imported), a full disk with exit code
  2 and one line, none of them with a traceback;
- at the end, weights, moments and random state are those of an uninterrupted run to the bit, as are metrics, result and
  calibration up to times and memory;
- no temporary file is left in the run or the cache, and nothing outside is touched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open

from .child import Child, prepare
from .fixtures import SMALL, split_folder
from .targets import finished
from .trial import changed, state

_SECONDS = 120.0
_LONGEST = 4  # kills in a row


@dataclass
class Life:
    """What happened to one run."""

    number: int
    kills: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class Process(subprocess.Popen[bytes]):
    """``python -m metagrad``, from the first import on, as a :class:`Child`; its output goes through pipes.

    A file would be one of those that may not grow.
    """

    def __init__(self, words: list[str], folder: Path, out: Path) -> None:
        env = {**os.environ, "METAGRAD_CACHE": str(folder / "cache")}
        super().__init__([sys.executable, "-m", "metagrad", *words], cwd=folder, env=env, stdin=subprocess.DEVNULL,
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip

    def printed(self) -> list[str]:
        """Return nothing, and what it printed on stderr."""
        if not hasattr(self, "_complaint"):
            self._complaint = self.communicate()[1].decode(errors="replace")
        return ["", self._complaint]


class Killer:
    """Lives of one run, all on the same data, compared with one that was left alone."""

    def __init__(self, work: Path, seed: int, forked: bool) -> None:
        self.work, self.seed, self.forked, self.data = work, seed, forked, work / "pictures"
        split_folder(self.data, 1)
        began, alone = time.monotonic(), self._folder("alone")
        running = self._start(alone)
        if running.wait(_SECONDS) or (complaint := running.printed()[1]):
            raise RuntimeError(f"the run that is left alone failed: {complaint}")
        self.seconds = time.monotonic() - began
        self.expected, self.names = dict(finished(alone / "run")), _names(alone)
        self.untouched = state(self.data)

    def live(self, number: int) -> Life:
        """Kill, resume, compare."""
        rng, life = random.Random(f"{self.seed} {number}"), Life(number)
        folder = self._folder(f"life-{number}")
        victims = state(folder)
        for _ in range(rng.randint(1, _LONGEST)):
            if self._once(folder, life, rng):
                break
            life.wrong += _not_whole(folder / "run")
        last = self._start(folder)
        if last.wait(_SECONDS) or last.printed()[1]:
            life.wrong.append(f"the last resume ended with {last.returncode}: {last.printed()[1][-300:]}")
            return life
        try:
            found = dict(finished(folder / "run"))
        except Exception as error:
            life.wrong.append(f"what it came to cannot be read: {error}")
            return life
        life.wrong += [f"{name} differs" for name, value in self.expected.items() if found[name] != value]
        life.wrong += [f"left: {re.sub('[0-9a-f]{12,}', '…', name)}" for name in _names(folder) - self.names]
        if stray := [*changed(victims, {name: state(folder).get(name) for name in victims}),
                       *changed(self.untouched, state(self.data))]:  # fmt: skip
            life.wrong.append(f"touched: {stray}")
        return life

    def _once(self, folder: Path, life: Life, rng: random.Random) -> bool:
        """Start or resume the run and interrupt it; return whether it had come to its end."""
        how = rng.choice(("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGINT", "full disk"))
        begin = rng.choice((0.0, 0.4))  # half of them while it works, not while it imports
        moment, twice = rng.uniform(begin, 1.05) * self.seconds, rng.random() < 0.3
        running = self._start(folder)
        if how == "full disk":
            most = int(10 ** rng.uniform(3.3 if self.forked else 0, 4.6))  # a child's complaint is in a file too
            resource.prlimit(running.pid, resource.RLIMIT_FSIZE, (most, most))
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(moment)
            running.send_signal(getattr(signal, how))
            if twice:
                time.sleep(rng.uniform(0, 0.3))
                running.send_signal(getattr(signal, how))
        try:
            code = running.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            running.send_signal(signal.SIGKILL)
            life.wrong.append(f"{how} after {moment:.2f} s: it hangs")
            return False
        complaint = running.printed()[1]
        if code == 0:
            return True
        life.kills[how] += 1
        if wrong := _not_tidy(how, code, complaint):
            life.wrong.append(f"{how}{' twice' * twice} after {moment:.2f} s of {self.seconds:.2f}: {wrong}")
        return False

    def _start(self, folder: Path) -> Process | Child:
        words = ["train", "--resume", "run"]
        if not (folder / "run" / "config.json").exists():
            small = [{"3": "2"}.get(word, word) for word in SMALL]  # two classes a task: it is calibrated in no time
            words = ["train", "folder", "--data-dir", str(self.data), "--run", "run", *small, "--meta-steps", "12"]
        return (Child if self.forked else Process)(words, folder, folder / "said")

    def _folder(self, name: str) -> Path:
        folder = self.work / name
        for victim in (".git-credentials", ".pre-commit-config.yaml", "notes.tmp"):
            (folder / "beside").mkdir(parents=True, exist_ok=True)
            (folder / "beside" / victim).write_text("a person's\n")
        return folder


def _not_tidy(how: str, code: int, complaint: str) -> str | None:
    ours = re.findall(r'File "[^"]*/(metagrad/[^"]*)", line (\d+)', complaint)
    if "Traceback" in complaint and ours:  # Python itself can be interrupted while it starts
        return f"traceback in {':'.join(ours[-1])}: {complaint.splitlines()[-1][:200]}"
    if how == "SIGKILL":
        return None if code == -signal.SIGKILL else f"exit code {code}: {complaint[-300:]}"
    if how == "full disk":
        lines = complaint.splitlines()
        tidy = code == 2 and len(lines) == 1 and lines[0].startswith("metagrad: ")
        return None if tidy else f"exit code {code}: {complaint[-300:]}"
    return None if code in (130, -getattr(signal, how)) else f"exit code {code}: {complaint[-300:]}"


def _not_whole(run: Path) -> list[str]:
    """Return which files of a run cannot be read to their end."""
    bad = []
    for path in run.glob("*.*"):
        try:
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118
            elif path.suffix == ".json":
                json.loads(path.read_bytes())
            elif path.suffix == ".jsonl":
                [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
            elif path.suffix == ".html" and not path.read_bytes().endswith(b"</html>\n"):
                raise ValueError
        except Exception as error:
            bad.append(f"{path.name} is not whole ({type(error).__name__})")
    return bad


def _names(folder: Path) -> set[str]:
    return {name for name in state(folder) if name.startswith(("run/", "cache/"))}


def lives(killer: Killer, kills: int, processes: int) -> Iterator[Life]:
    """Live until there were so many kills, some lives at once."""
    number = 0
    with ThreadPoolExecutor(processes) as pool:
        several = map if processes == 1 else pool.map  # forks are for the main thread
        while kills > 0:
            for life in several(killer.live, range(number, number + processes)):
                kills -= life.kills.total()
                yield life
            number += processes


def main() -> int:
    """Run the campaign; print what it came to."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.kill", description="Kill runs and resume them.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--forked", action="store_true", help="fork them from one that has imported all: no imports")
    parser.add_argument("--life", type=int, help="live this one alone (moments differ a little from time to time)")
    asked = parser.parse_args()
    kills: Counter[str] = Counter()
    again = f"python -m tests.campaign.kill --seed {asked.seed}{' --forked' * asked.forked}"
    if asked.forked:
        prepare()
    began, count, failed = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="campaign-") as work:
        killer = Killer(Path(work).resolve(), asked.seed, asked.forked)
        some = lives(killer, asked.kills, asked.processes) if asked.life is None else [killer.live(asked.life)]
        for life in some:
            kills, count, failed = kills + life.kills, count + 1, failed + bool(life.wrong)
            for wrong in life.wrong:
                print(f"life {life.number}: {wrong}\n  {again} --life {life.number}", flush=True)
    said = ", ".join(f"{number} {how}" for how, number in sorted(kills.items()))
    print(f"{kills.total()} kills ({said}) in {count} lives, {failed} of them not as they should be; "
          f"{time.monotonic() - began:.0f} s")  # fmt: skip
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
