"""Folder, files and tables of the commands that compute figures."""

from __future__ import annotations

import csv
import dataclasses
import functools
import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metagrad.errors import MetagradError
from metagrad.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

    from metagrad.cli.progress import Screen


def write_figure(screen: Screen, out: Path, name: str, figure: Figure, rows: Sequence[Any], protocol: Any) -> None:
    """Write a figure as PNG and SVG, and its rows as CSV; say where they are."""
    for ending in ("png", "svg"):
        path = out / f"{name}.{ending}"
        refused = functools.partial(_refused, path)
        write_atomically(path, functools.partial(_save, figure, ending), refused=refused, follow=True)
        screen.write_line(str(path))
    save_rows(screen, out, name, rows, protocol)


def _save(figure: Figure, ending: str, path: Path) -> None:
    from metagrad.recipes.figures import save

    save(figure, path, ending)


def save_rows(screen: Screen, out: Path, name: str, rows: Sequence[Any], protocol: Any) -> None:
    """Write rows as CSV; say where they are."""
    path = out / f"{name}.csv"
    refused = functools.partial(_refused, path)
    write_atomically(path, lambda file: _save_rows(rows, protocol, file), refused=refused, follow=True)
    screen.write_line(str(path))


def make_folder(folder: Path) -> None:
    """Make the folder, and check before the work whether files can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _refused(folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MetagradError(f"cannot write into {folder}: choose another folder with --out")


def _refused(path: Path, error: OSError) -> MetagradError:
    return MetagradError(f"cannot write {path} ({error.strerror or error}): choose another folder with --out")


def require_hours(hours: float | None) -> None:
    """Refuse a budget of hours that is none.

    Raises
    ------
    MetagradError
        saying what would do.
    """
    if hours is not None and not 0 < hours < 10**4:
        raise MetagradError(f"--hours must be positive and below 10000, got {hours}")


def require_once(**options: Sequence[Any]) -> None:
    """Refuse an option that names something twice: one run would count as two in the means over seeds.

    Raises
    ------
    MetagradError
        naming it.
    """
    for name, values in options.items():
        for value in values:
            if values.count(value) > 1:
                raise MetagradError(f"--{name} has {value} twice: give it once")


def _save_rows(rows: Sequence[Any], protocol: Any, path: Path) -> None:
    """Write rows as CSV; shared settings are repeated in each row, so that every row is complete."""
    own = dataclasses.asdict(rows[0])
    shared = {
        name: value
        for name, value in dataclasses.asdict(protocol).items()
        if name not in own and not isinstance(value, tuple)
    }
    lines: list[dict[str, Any]] = [{**dataclasses.asdict(row), **shared} for row in rows]
    for line in lines:
        line.update({name: f"{value:.6g}" for name, value in line.items() if isinstance(value, float)})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)


def table(first: str, *rest: str) -> Table:
    """Return an empty table with these columns, numbers to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column(first)
    for name in rest:
        table.add_column(name, justify="right")
    return table


# 97.5 % quantiles of Student's t, for 1, 2, … degrees of freedom.
_STUDENT = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def over_seeds(means: Sequence[float], halves: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and half the width of its 95 % interval.

    It is Student's interval of the seeds' means. Where the interval over tasks is wider, or there is one seed, it is
    that one.

    Parameters
    ----------
    means, halves:
        each seed's mean over tasks, and half the width of its own 95 % interval.
    """
    tasks = math.sqrt(sum(half**2 for half in halves)) / len(halves)
    if len(means) == 1:
        return means[0], tasks
    factor = _STUDENT[min(len(means) - 1, len(_STUDENT)) - 1]
    return statistics.mean(means), max(tasks, factor * statistics.stdev(means) / math.sqrt(len(means)))
