"""How time and memory of one meta-gradient grow, one setting at a time, every point in a fresh process.

    python benchmarks/sweeps.py --csv benchmarks/results/sweeps-2cores.csv     # all sweeps, some twenty minutes
    python benchmarks/sweeps.py --only tasks inner_steps
    python benchmarks/sweeps.py --fit benchmarks/results/sweeps-2cores.csv     # measure nothing, fit what is there

A point is iMAML with the exact Hessian (the workload of ``workload.py``, 8 tasks where tasks are not what is swept):
seconds are the least of ``--repeats`` calls after one that does not count in each of ``--passes`` processes,
``peak_mb`` the whole process's high-water mark, the least too. Fits: the exponent of time in the setting by least
squares on logarithms; for inner and CG steps, which add to what one meta-gradient costs anyway, a straight line and how
far the times are from it.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from contestants import exact_hessian
from metagrad.allocator import keep_memory
from metagrad.experiment.record import versions
from workload import Workload, add_options, chosen, least

SWEEPS = {
    "tasks": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "inner_steps": (1, 2, 5, 10, 20, 50, 100, 200),
    "cg_steps": (1, 2, 5, 10, 20),
    "ways": (2, 5, 10, 20),
    "shots": (1, 2, 5, 10),
    "filters": (16, 32, 64, 128),
    "image_size": (14, 28, 56, 84),
}
BASE = Workload(tasks=8)
STRAIGHT = ("inner_steps", "cg_steps")  # a straight line with an offset, not a power


def point(work: Workload, repeats: int) -> None:
    """Print seconds and the process's peak memory in MB."""
    keep_memory()
    model, theta, tasks = work.draw(work.tasks, torch.float32)
    seconds = least(lambda: exact_hessian(work, model, theta, tasks), repeats)
    with open("/proc/self/status") as file:
        peak = next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM"))
    print(seconds, peak)


def measure(sweeps: list[str], passes: int, repeats: int) -> list[dict[str, str]]:
    """Run all points ``passes`` times over, so that a slow minute of the machine hits none alone; keep the least."""
    best: dict[tuple[str, int], list[float]] = {}
    for turn in range(passes):
        for sweep, value in ((name, value) for name in sweeps for value in SWEEPS[name]):
            work = replace(BASE, **{sweep: value})
            settings = [word for name, v in asdict(work).items() for word in (f"--{name.replace('_', '-')}", str(v))]
            command = [sys.executable, __file__, "--point", "--repeats", str(repeats), *settings]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            found = [float(word) for word in said]
            best[sweep, value] = [min(pair) for pair in zip(found, best.get((sweep, value), found), strict=True)]
            print(f"{turn + 1}/{passes} {sweep:12s} {value:4d} {found[0]:9.4f} s {found[1]:7.0f} MB", flush=True)
    return [
        {"sweep": sweep, "value": str(value), "seconds": f"{seconds:.5f}", "peak_mb": f"{peak:.1f}"}
        for (sweep, value), (seconds, peak) in best.items()
    ]


def fits(rows: list[dict[str, str]]) -> list[str]:
    """Describe how each sweep's time grows, and how flat memory is in the inner steps."""
    said = []
    for sweep in dict.fromkeys(row["sweep"] for row in rows):
        mine = [row for row in rows if row["sweep"] == sweep]
        x, seconds, peak = (np.array([float(row[key]) for row in mine]) for key in ("value", "seconds", "peak_mb"))
        exponent = np.polyfit(np.log(x), np.log(seconds), 1)[0]
        line = f"{sweep}: exponent of time {exponent:.3f} over {x[0]:.0f} to {x[-1]:.0f}"
        if sweep in STRAIGHT:
            slope, offset = np.polyfit(x, seconds, 1, w=1 / seconds)
            off = np.abs(slope * x + offset - seconds) / seconds
            line = (
                f"{sweep}: {offset * 1e3:.0f} ms + {slope * 1e3:.2f} ms a step, at most {off.max():.1%} from that line"
            )
        said.append(f"{line}; peak memory {peak[0]:.0f} to {peak[-1]:.0f} MB ({peak[-1] / peak[0]:.2f})")
    return said


def main() -> None:
    """Sweep, write the CSV, print the fits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--only", nargs="*", choices=SWEEPS, default=list(SWEEPS), help="sweeps to run (all)")
    parser.add_argument("--passes", type=int, default=3, help="processes a point, one in each pass over all (3)")
    parser.add_argument("--repeats", type=int, default=2, help="calls a process; the least time of all counts (2)")
    parser.add_argument("--csv", type=Path, help="file to write")
    parser.add_argument("--fit", type=Path, help="CSV to fit instead of measuring")
    parser.add_argument("--point", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        point(chosen(options), options.repeats)
        return
    if options.fit:
        with options.fit.open() as file:
            rows = list(csv.DictReader(file))
    else:
        rows = measure(options.only, options.passes, options.repeats)
        if options.csv:
            found = {key: str(value) for key, value in versions().items()}
            with options.csv.open("w", newline="") as file:
                table = csv.DictWriter(file, [*rows[0], *found])
                table.writeheader()
                table.writerows(row | found for row in rows)
    print("\n".join(fits(rows)))


if __name__ == "__main__":
    main()
