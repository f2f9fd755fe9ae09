"""Change one file of each format that metagrad reads, run a command that reads it, and judge: many times.

A changed file is *wrong in silence* if the command succeeds with another result than that of the file as it was, and
says nothing on stderr. What that means depends on the file:

- Of a **run, a model, or a cache** every bit has one right value: any other result is wrong, whether a disk or an
  editor changed it. Spaces, the recorded command, versions and times have no meaning and may change.
- **Caches** may be made anew without a word: then the result is the same. It is compared to the pixel, class by class.
- **Archives of published data** (Omniglot, CIFAR-100) are known by their contents: they too have one right value.
- A whole **model** in place of another is that other model: it stands for itself.
- A run's or a model's file that is **signed** anew, with a checksum that fits, is somebody's own work: its numbers may
  be others, but what cannot be so is refused in one line.
- **Pictures, zips of them, tables, pickles and splits** are a person's data: another picture is another picture. Here
  only tracebacks, hangs, untidy complaints and touched files count.
- Of a person's data that were **changed after they were cached**, with the size and time they had, the right result is
  that of the changed file: a cache that still gives the old one is wrong.
- A file that is **gone** is said, except one that a page or an adaptation can do without.

Beside the trial's files lie some of somebody else, hidden ones too: they must stay as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from . import child, fixtures
from .targets import TARGETS
from .trial import CASES, FINE, Trials, Verdict

FORMATS = sorted({target.format for target in TARGETS})


def main() -> int:
    """Run the campaign, print the table and one repeating command for each kind of failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign.mutate", description="Mutate what metagrad reads.")
    parser.add_argument("--count", type=int, default=1000, help="trials")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--formats", nargs="*", default=FORMATS, choices=FORMATS, metavar="FORMAT")
    parser.add_argument("--only", type=int, help="repeat the one trial of this number, and show it")
    parser.add_argument("--keep", type=Path, help="with --only: copy the trial's files to this new folder")
    parser.add_argument("--work", type=Path, help="where the files lie that it begins with; made if they are not there")
    asked = parser.parse_args()
    child.prepare()
    with contextlib.ExitStack() as stack:
        work = asked.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="campaign-")))
        work = work.resolve()
        base = work / "base"
        made(base)
        if asked.only is not None:
            folder = work / f"only-{os.getpid()}"
            verdict = Trials(base, folder).run(asked.seed, asked.only, asked.formats, asked.keep)
            print(json.dumps(dataclasses.asdict(verdict), indent=1), (folder / "said.err").read_text(), sep="\n")
            return int(verdict.case not in FINE)
        began = time.monotonic()
        verdicts = list(all_of(base, work, asked.seed, asked.count, asked.formats, asked.processes))
        print_table(verdicts, time.monotonic() - began)
        again = f"python -m tests.campaign.mutate --seed {asked.seed}" + (f" --work {work}" if asked.work else "")
        if asked.formats != FORMATS:
            again += " --formats " + " ".join(f"{name!r}" for name in asked.formats)
        return print_failures(verdicts, again)


def made(base: Path) -> None:
    """Make what trials begin with, unless it is there; what is printed meanwhile goes nowhere."""
    if (base / "whole").exists():
        fixtures.stand_in(base)
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        fixtures.make(base)


def all_of(base: Path, work: Path, seed: int, count: int, formats: list[str], processes: int) -> Iterator[Verdict]:
    """Share the trials among forked workers; yield what came of each, in the order of their numbers."""
    workers, files = [], [work / f"verdicts-{worker}.jsonl" for worker in range(processes)]
    for worker, path in enumerate(files):
        if not (pid := os.fork()):
            code = 1
            try:
                trials = Trials(base, work / f"worker-{worker}")
                with path.open("w", encoding="utf-8") as file:
                    for number in range(worker, count, processes):
                        verdict = trials.run(seed, number, formats)
                        file.write(json.dumps(dataclasses.asdict(verdict)) + "\n")
                        file.flush()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        workers.append(pid)
    failed = [os.waitpid(pid, 0)[1] for pid in workers]
    if any(failed):
        raise SystemExit("a worker failed")
    found = [Verdict(**json.loads(line)) for path in files for line in path.read_text(encoding="utf-8").splitlines()]
    yield from sorted(found, key=lambda verdict: verdict.number)


def print_table(verdicts: list[Verdict], seconds: float) -> None:
    """Print a row for each format, in Markdown."""
    rows: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        rows[verdict.format][verdict.case] += 1
        rows["all"][verdict.case] += 1
    print("| format | tried |", " | ".join(CASES), "|")
    print("|---" * (2 + len(CASES)) + "|")
    for name, counts in sorted(rows.items(), key=lambda row: (row[0] == "all", row[0])):
        print(f"| {name} | {counts.total()} |", " | ".join(str(counts[case]) for case in CASES), "|")
    print(f"\n{len(verdicts)} trials in {seconds:.0f} s")


def print_failures(verdicts: list[Verdict], again: str) -> int:
    """Print each kind of failure with its number and the command that repeats one; return the exit code."""
    kinds: dict[tuple[str, ...], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        if verdict.case not in FINE:
            kinds[verdict.format, verdict.case, verdict.command, verdict.kind].append(verdict)
    for (name, case, command, kind), some in sorted(kinds.items()):
        print(f"\n{name}, {command}: {case} ×{len(some)}: {kind}\n  {some[0].what}\n  {again} --only {some[0].number}")
    return int(bool(kinds))


if __name__ == "__main__":
    raise SystemExit(main())
