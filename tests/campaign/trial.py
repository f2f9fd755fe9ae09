"""One trial: files are laid out, one is changed, a command reads it, and what comes of it is judged."""

from __future__ import annotations

import os
import random
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .child import Outcome, run
from .mutations import mutate
from .targets import COMMANDS, TARGETS, Target, meaning, result

CASES = ("refused", "same", "wrong", "traceback", "untidy", "hang", "crash", "touched")
FINE = ("refused", "same")
_LONGEST = 2000  # characters of a line for a person
# Without them a page or an adaptation has less, as that of a run that has not come so far.
_OPTIONAL = ("metrics.jsonl", "result.json", "calibration.json", "best.safetensors")
_VICTIMS = ("beside/.git-credentials", "beside/.pre-commit-config.yaml", "beside/notes.tmp", "run/.a-person's",
            "run/.notes.tmp", "cache/.a-person's", "cache/notes.tmp")  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """What came of a trial: its case, and what like cases have in common (``kind``)."""

    number: int
    format: str
    command: str
    what: str
    case: str
    kind: str
    seconds: float


class Trials:
    """Trials that begin with the files of ``base`` and work in ``work``."""

    def __init__(self, base: Path, work: Path) -> None:
        self.base, self.work = base, work
        self._expected: dict[str, list[Any]] = {}
        self._found = state(base)

    def run(self, seed: int, number: int, formats: list[str], keep: Path | None = None) -> Verdict:
        """Change one file, run one command, judge; the same for the same seed, number and formats."""
        rng, began = random.Random(f"{seed} {number}"), time.monotonic()
        name = rng.choice(formats)  # every format as often as every other
        target = rng.choice([target for target in TARGETS if target.format == name])
        command = rng.choice(target.commands)
        expected = self.expected(command)
        folder = self._laid_out(command)
        if target.before:
            self._outcome(command, folder)
        path = rng.choice(sorted(folder.glob(target.place)))
        before = path.read_bytes()
        peer = sorted(self.base.glob(target.peer))[0]
        what = mutate(path, target.kind, peer, folder / "beside", rng)
        free = target.input or "signed: " in what or _harmless(target, command, before, path)
        free = free or (target.format == "model" and path.is_file() and path.read_bytes() == peer.read_bytes())
        laid = state(folder)
        outcome = self._outcome(command, folder)
        case, kind = judge(outcome)
        stray = [*touched(command, laid, state(folder)), *changed(self._found, state(self.base))]
        if target.before and case == "same" and not outcome.complaint:
            shutil.rmtree(folder / "cache")
            expected = result(command, folder, self._outcome(command, folder).said)
        said = outcome.complaint or "no pictures of" in outcome.said  # a page that says on stdout why it has none
        if case == "same" and not free and not said:
            case, kind = compare(command, folder, outcome, expected, what)
        if stray:
            case, kind = "touched", re.sub("[0-9a-f]{12,}", "…", ", ".join(stray))
        if keep is not None:
            shutil.copytree(folder, keep, symlinks=True)
        return Verdict(number, name, command, f"{path.relative_to(folder)}: {what}", case, kind,
                       time.monotonic() - began)  # fmt: skip

    def expected(self, command: str) -> list[Any]:
        """Return what a command comes to if nothing is changed."""
        if command not in self._expected:
            folder = self._laid_out(command)
            outcome = self._outcome(command, folder)
            if outcome.code or outcome.complaint:
                raise RuntimeError(f"the campaign's own {command!r} failed: {outcome}")
            self._expected[command] = result(command, folder, outcome.said)
        return self._expected[command]

    def _outcome(self, command: str, folder: Path) -> Outcome:
        words = [word.replace("BASE", str(self.base)) for word in COMMANDS[command].words]
        return run(words, folder, self.work / "said")

    def _laid_out(self, command: str) -> Path:
        folder = self.work / "trial"
        shutil.rmtree(folder, ignore_errors=True)
        for name in (*COMMANDS[command].needs, "cache"):
            copy = shutil.copytree if (self.base / name).is_dir() else shutil.copy2
            copy(self.base / name, folder / name) if folder.exists() else _first(copy, self.base / name, folder / name)
        for name in _VICTIMS:
            if name.startswith("beside/") or (folder / name).parent.exists():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text("a person's\n")
        return folder


def _first(copy: Any, source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True)
    copy(source, to)


def _harmless(target: Target, command: str, before: bytes, path: Path) -> bool:
    """Say whether a change has no meaning, or takes away what nobody needs."""
    if not path.exists() and not path.is_symlink():
        return target.format in _OPTIONAL and command in ("report", "adapt")
    return path.is_file() and meaning(target, before) == meaning(target, path.read_bytes())


def judge(outcome: Outcome) -> tuple[str, str]:
    """Return the case, as far as what was printed tells, and what like cases have in common."""
    lines = outcome.complaint.splitlines()
    tidy = all(line.startswith("metagrad:") and len(line) <= _LONGEST for line in lines) and len(lines) <= 3
    if outcome.code is None:
        return "hang", ""
    if outcome.code < 0:
        return "crash", f"signal {-outcome.code}"
    if "Traceback" in outcome.complaint or outcome.code not in (0, 1, 2):
        return "traceback", _place(outcome.complaint)
    if not tidy or (outcome.code == 2 and not lines):
        long = next((line for line in lines if not line.startswith("metagrad:")), lines[0] if lines else "nothing said")
        return "untidy", f"{len(lines)} lines of at most {max(map(len, lines), default=0)}: {long[:80]}"
    return ("refused", "") if outcome.code == 2 else ("same", "")


def _place(trace: str) -> str:
    """Return the last place of metagrad in a traceback, and the error."""
    ours = re.findall(r'File "[^"]*/(metagrad/[^"]*)", line \d+, in (\w+)', trace)
    last = next((line for line in reversed(trace.splitlines()) if re.match(r"[\w.]+(:|$)", line)), "")
    return f"{ours[-1][0]} {ours[-1][1]}: {last[:100]}" if ours else last[:100]


def compare(command: str, folder: Path, outcome: Outcome, expected: list[Any], what: str) -> tuple[str, str]:
    """Return the case, and where the result differs from what was to be expected."""
    kind = re.sub(r"^[^:]*: | at \d+.*| in line.*|, its time kept| \(.*|(?<= of )(\w+)\..*", r"\1", what)
    try:
        found = result(command, folder, outcome.said)
    except Exception as error:  # what was written is no better than what was read
        return "wrong", f"{kind} (what it wrote cannot be read: {type(error).__name__})"
    return ("same", "") if found == expected else ("wrong", f"{kind} (differs: {difference(expected, found)})")


def difference(one: Any, other: Any) -> str:
    """Return where two results differ, in a few words."""
    if isinstance(one, dict) and isinstance(other, dict):
        name = next(name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name))
        return f"{name} {difference(one.get(name), other.get(name))}"
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return difference(*next((a, b) for a, b in zip(one, other, strict=True) if a != b))
    if isinstance(one, str) and isinstance(other, str):
        line = next((b for a, b in zip(one.splitlines(), other.splitlines(), strict=False) if a != b), "lines")
        return re.sub(r"[0-9a-f]{12,}|[0-9.]+", "…", line.strip())[:40]
    return type(one).__name__


def state(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return what tells of a change to any file below a folder."""
    found, pending = {}, [(str(folder), "")]
    while pending:
        place, prefix = pending.pop()
        with os.scandir(place) as entries:
            for entry in entries:
                name = f"{prefix}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append((entry.path, f"{name}/"))
                else:
                    status = entry.stat(follow_symlinks=False)
                    found[name] = (status.st_size, status.st_mtime_ns, status.st_ino, status.st_mode)
    return found


def changed(before: dict[str, tuple[int, ...]], now: dict[str, tuple[int, ...]]) -> list[str]:
    """Return what is new, gone, or another."""
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def touched(command: str, before: dict[str, tuple[int, ...]], now: dict[str, tuple[int, ...]]) -> list[str]:
    """Return what changed in a trial and is not the command's to write, or was left there for a moment only."""

    def may(name: str) -> bool:
        ours = name in COMMANDS[command].writes or name.startswith("cache/")
        return ours and name not in _VICTIMS and ".metagrad-" not in name

    return [name for name in changed(before, now) if not may(name)]
