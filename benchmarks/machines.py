"""How much faster metagrad is than each contestant, by each measurement in ``results/speed.csv``, and the least.

python benchmarks/machines.py
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path


def main() -> None:
    """Print a row a contestant: the median ratio of each machine's rounds, and the least of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--csv", type=Path, default=Path(__file__).parent / "results" / "speed.csv")
    with parser.parse_args().csv.open() as file:
        rows = list(csv.DictReader(file))
    machines = list(dict.fromkeys((row["processor"], row["commit"]) for row in rows))
    for number, (processor, commit) in enumerate(machines, 1):
        one = next(row for row in rows if (row["processor"], row["commit"]) == (processor, commit))
        share = {row["contestant"]: float(row["seconds"]) for row in rows if row["commit"] == commit}
        print(
            f"measurement {number}: {processor}, {one['cores']} cores, {one['threads']} threads, "
            f"L2 {one['l2'] or '?'}, "
            f"L3 {one['l3'] or '?'}, {one['gflops'] or '?'} GFLOP/s, torch {one['torch']}, commit {commit}; "
            f"arithmetic is {share['arithmetic alone'] / share['metagrad, exact Hessian']:.0%} of a meta-gradient"
        )
    print("\n| contestant | least |", *(f"measurement {n} |" for n in range(1, len(machines) + 1)))
    print("|---|---|" + "---|" * len(machines))
    for contestant, form in dict.fromkeys((row["contestant"], row["form"]) for row in rows):
        ratios = {
            (row["processor"], row["commit"]): float(row["ratio"])
            for row in rows
            if (row["contestant"], row["form"]) == (contestant, form)
        }
        cells = [f"{ratios[one]:.2f}" if one in ratios else "–" for one in machines]
        print(f"| {contestant} ({form}) | {min(ratios.values()):.2f} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
