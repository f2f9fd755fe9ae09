"""The whole suite in one command: every table, CSV and figure, some forty minutes on an idle machine.

    pip install -c constraints.txt -e '.[bench]' && python benchmarks/suite.py

Results go to ``benchmarks/results`` (CSV files named by ``--machine``) and ``docs/speed.png``. Each part is a command
of its own and can be run alone.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Run the parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", default="2cores", help="name in the result files (2cores)")
    machine = parser.parse_args().machine
    csv = {name: str(HERE / "results" / f"{name}-{machine}.csv") for name in ("scaling", "sweeps")}
    csv["speed"] = str(HERE / "results" / "speed.csv")  # of all machines
    for part, *options in (
        ("speed", "--csv", csv["speed"]),
        ("machines",),
        ("sweeps", "--csv", csv["sweeps"]),
        ("scaling", "--csv", csv["scaling"]),
        ("memory",),
        ("phases",),
        ("one_task",),
        ("figure", "--speed", csv["speed"], "--sweeps", csv["sweeps"]),
    ):
        print(f"\n== {part}", flush=True)
        subprocess.run([sys.executable, str(HERE / f"{part}.py"), *options], check=True)


if __name__ == "__main__":
    main()
