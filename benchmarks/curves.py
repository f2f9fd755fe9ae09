"""Draw validation accuracy of runs against training time and meta-steps.

python benchmarks/curves.py RUN [RUN ...] --out curves.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def curve(folder: Path) -> tuple[list[int], list[float], list[float], list[float]]:
    """Return meta-steps, minutes, validation accuracy and its interval, both in per cent."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    seconds = {line["step"]: line["seconds"] for line in lines if "seconds" in line}
    found = [line for line in lines if "val_accuracy" in line and line["step"] in seconds]
    return (
        [line["step"] for line in found],
        [seconds[line["step"]] / 60 for line in found],
        [100 * line["val_accuracy"] for line in found],
        [100 * line["val_ci95"] for line in found],
    )


def main() -> None:
    """Draw the two panels."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--out", type=Path, required=True, help="picture to write (PNG or SVG)")
    options = parser.parse_args()
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
    for folder in options.runs:
        steps, minutes, accuracy, interval = curve(folder)
        method = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]["method"]
        for panel, x in zip(panels, (minutes, steps), strict=True):
            panel.plot(x, accuracy, label=method)
            low, high = ([a + s * i for a, i in zip(accuracy, interval, strict=True)] for s in (-1, 1))
            panel.fill_between(x, low, high, alpha=0.2)
    panels[0].set(xlabel="training time, minutes of wall clock", ylabel="validation accuracy, %")
    panels[1].set(xlabel="meta-steps")
    for panel in panels:
        panel.grid(alpha=0.3)
    panels[0].legend(loc="lower right")
    figure.savefig(options.out, dpi=150)


if __name__ == "__main__":
    main()
