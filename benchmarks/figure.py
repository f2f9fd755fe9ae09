"""Draw what the other benchmarks wrote: ``python benchmarks/figure.py`` makes ``docs/speed.png``."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator

RESULTS = Path(__file__).parent / "results"
NAMES = {
    "tasks": "tasks", "inner_steps": "inner steps", "cg_steps": "CG steps", "ways": "ways", "shots": "shots",
    "filters": "filters", "image_size": "image size, pixels",
}  # fmt: skip
OURS, OTHERS, MEMORY = "#1f6f8b", "#b9b9b9", "#c8553d"


def read(path: Path) -> list[dict[str, str]]:
    """Return a CSV's rows."""
    with path.open() as file:
        return list(csv.DictReader(file))


def bars(axes: plt.Axes, rows: list[dict[str, str]]) -> None:
    """Draw one bar a contestant, the fastest at the top, with its time."""
    rows = sorted(rows, key=lambda row: -float(row["seconds"]))
    ours = ("metagrad", "arithmetic")
    form = {"imaml": " (iMAML)", "maml": " (MAML)"}
    names = [row["contestant"] + form[row["form"]] * (not row["contestant"].startswith(ours)) for row in rows]
    seconds = [float(row["seconds"]) for row in rows]
    colours = [OURS if row["contestant"].startswith("metagrad") else OTHERS for row in rows]
    axes.barh(names, seconds, color=colours)
    for index, value in enumerate(seconds):
        axes.text(value, index, f" {value:.1f} s", va="center", fontsize=8)
    axes.set_xlim(0, max(seconds) * 1.15)
    axes.set_xlabel("seconds a meta-gradient")
    axes.set_title("one meta-gradient, 32 tasks", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)


def growth(axes: plt.Axes, rows: list[dict[str, str]], sweep: str) -> None:
    """Draw time (logarithmic, but where it is a straight line) and peak memory against one setting."""
    mine = [row for row in rows if row["sweep"] == sweep]
    x, seconds, peak = (np.array([float(row[key]) for row in mine]) for key in ("value", "seconds", "peak_mb"))
    straight = sweep in ("inner_steps", "cg_steps")  # these add to what a meta-gradient costs anyway
    axes.plot(x, seconds, "o-", color=OURS, markersize=4)
    if not straight:
        axes.set_xscale("log")
        axes.set_yscale("log")
        ticks = x[::2] if len(x) > 6 else x
        axes.set_xticks(ticks, [f"{value:.0f}" for value in ticks])
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(0, seconds.max() * 1.1)
    axes.set_xlabel(NAMES[sweep])
    axes.set_ylabel("seconds", color=OURS)
    other = axes.twinx()
    other.plot(x, peak, "s--", color=MEMORY, markersize=3, linewidth=1)
    other.set_ylim(0, max(1000, peak.max() * 1.1))
    other.set_ylabel("peak MB", color=MEMORY)


def main() -> None:
    """Draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--speed", type=Path, default=RESULTS / "speed.csv")
    parser.add_argument("--sweeps", type=Path, default=RESULTS / "sweeps-2cores.csv")
    parser.add_argument("--out", type=Path, default=RESULTS.parent.parent / "docs" / "speed.png")
    options = parser.parse_args()
    figure, grid = plt.subplots(2, 4, figsize=(15, 6.2), width_ratios=[1.5, 1, 1, 1], layout="constrained")
    speed = read(options.speed)
    bars(grid[0, 0], [row for row in speed if row["commit"] == speed[0]["commit"]])  # the first machine's
    rows = read(options.sweeps)
    rest = [axes for axes in grid.flat if axes is not grid[0, 0]]
    for axes, sweep in zip(rest, NAMES, strict=True):
        growth(axes, rows, sweep)
    figure.savefig(options.out, dpi=110)
    print(options.out)


if __name__ == "__main__":
    main()
