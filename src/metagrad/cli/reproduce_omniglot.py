"""``metagrad reproduce omniglot`` and ``metagrad reproduce omniglot-table``."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from metagrad import allocator
from metagrad.cli.arguments import arg
from metagrad.cli.figures import make_folder, over_seeds, require_hours, require_once, save_rows, table
from metagrad.errors import MetagradError
from metagrad.recipes.protocols import OmniglotMethod, OmniglotProtocol

if TYPE_CHECKING:
    from rich.table import Table

    from metagrad.recipes.omniglot import Cell, CellRow

_DEFAULT = OmniglotProtocol()
_SIZES = ("5way-1shot", "5way-5shot", "20way-1shot", "20way-5shot")
_CELLS = tuple(f"{method}-{size}" for method in get_args(OmniglotMethod) for size in _SIZES)
_SHORT = {
    "imaml": "iMAML",
    "imaml-hessian-free": "iMAML HF",
    "maml": "MAML",
    "fomaml": "FOMAML",
    "reptile": "Reptile",
}
_IN_PAPER = {
    "imaml": "iMAML, descent",
    "imaml-hessian-free": "iMAML, Hessian-free",
    "maml": "MAML",
    "fomaml": "first-order MAML",
    "reptile": "Reptile",
}


@dataclass(frozen=True)
class OmniglotTable:
    """Train the methods of the iMAML paper's table of Omniglot, in two stages each, and print ours beside the paper's.

    First ProtoNet learns features on tasks of many classes, then each method goes on from them. Every cell is a run in
    --out: after Ctrl-C, or when --hours are over, run the same command again to continue. The table shows a gap for
    each missing result.
    """

    out: Path = arg(Path("omniglot-table"), metavar="DIR")
    """Folder for the runs and the table."""
    cells: tuple[str, ...] = arg((), metavar="CELL")
    """Cells to train and print, such as imaml-5way-1shot: a method (imaml, imaml-hessian-free, maml, fomaml, reptile)
    and a size (5way-1shot, 5way-5shot, 20way-1shot, 20way-5shot). Default: all twenty."""
    seeds: tuple[int, ...] = (0,)
    """Seeds; each trains every cell anew, its features too."""
    hours: float | None = None
    """Stop after so many hours. Default: when all is done."""
    steps: int = arg(_DEFAULT.steps, least=1)
    """Meta-steps of the second stage."""
    tasks: int = arg(_DEFAULT.tasks, least=1)
    """Tasks of a meta-step of the second stage."""
    train_ways: int = arg(_DEFAULT.train_ways, least=2)
    """Classes of a training task of the second stage."""
    lr: float = _DEFAULT.lr
    """Outer step size of the second stage."""
    body_steps: int = arg(_DEFAULT.body_steps, least=1)
    """Meta-steps of the first stage, one task each: 12000 take two hours of a core, 4000 half an hour; these have 0.8
    points less at 20 ways, 0.2 at 5."""
    body_ways: int = arg(_DEFAULT.body_ways, least=2)
    """Classes of a task of the first stage."""
    body_queries: int = arg(_DEFAULT.body_queries, least=1)
    """Query images of each class in the first stage."""
    body_lr: float = _DEFAULT.body_lr
    """Outer step size of the first stage."""
    filters: int = arg(_DEFAULT.filters, least=1)
    """Width of the network of four convolutions with pooling."""
    val_tasks: int = arg(_DEFAULT.val_tasks, least=2)
    """Number of validation tasks; a third of them at 20 ways."""
    test_tasks: int = arg(_DEFAULT.test_tasks, least=2)
    """Number of test tasks of each cell; a third of them at 20 ways."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with Omniglot's archives. Default: METAGRAD_DATA, else they are downloaded."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        for name in self.cells:
            if name not in _CELLS:
                raise MetagradError(f"no cell is called {name!r}: --cells takes {', '.join(_CELLS[:3])}, …")
        require_hours(self.hours)
        require_once(cells=self.cells, seeds=self.seeds)
        make_folder(self.out)
        allocator.keep_memory()
        from metagrad.cli.interrupt import Interrupt, until
        from metagrad.cli.progress import QueueProgress, Screen
        from metagrad.recipes.omniglot import stage, trained

        screen = Screen()
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(OmniglotProtocol)}
        protocol, cells = OmniglotProtocol(**fields), self._cells()
        for cell in cells:
            stage(protocol, cell)  # impossible values are named before hours of work
        with Interrupt() as pressed, QueueProgress(screen) as progress:
            stop = until(self.hours, pressed)
            rows = list(trained(self.out, cells, protocol, data_dir=self.data_dir, report=progress, stop=stop))
        screen.print(_table(rows))
        missing = [cell.name for cell, row in zip(cells, rows, strict=True) if row.accuracy is None]
        if missing:
            screen.write_line(f"not measured yet: {', '.join(missing)}; run the same command again to continue")
        save_rows(screen, self.out, "omniglot", rows, protocol)
        return 130 if pressed() and missing else 0

    def _cells(self) -> list[Cell]:
        from metagrad.recipes.omniglot import Cell

        found = []
        for seed in self.seeds:
            for name in self.cells or _CELLS:
                method = next(one for one in sorted(get_args(OmniglotMethod), key=len)[::-1] if name.startswith(one))
                ways, shots = (int(part.rstrip("wayshot")) for part in name.removeprefix(f"{method}-").split("-"))
                found.append(Cell(method, ways, shots, seed))
        return found


@dataclass(frozen=True)
class Omniglot(OmniglotTable):
    """Train iMAML on Omniglot, 5-way 1-shot, in two stages: features by ProtoNet on many classes, then iMAML.

    It takes less than an hour of two cores, from nothing. After Ctrl-C, run the same command again to continue. With
    other --cells and --body-steps 12000 it is the command omniglot-table.
    """

    out: Path = arg(Path("omniglot"), metavar="DIR")
    """Folder for the runs and the table."""
    cells: tuple[str, ...] = arg(("imaml-5way-1shot",), metavar="CELL")
    """Cells to train and print: see omniglot-table."""
    body_steps: int = arg(4000, least=1)
    """Meta-steps of the first stage, one task each: half an hour of a core."""


def _table(rows: Sequence[CellRow]) -> Table:
    """Return a line for each cell: means over seeds, with the spread of seeds where there are several.

    The last column is the processor minutes from nothing until validation reached so many percent, of the slowest seed.
    """
    from metagrad.recipes.omniglot import REACHED
    from metagrad.report.page import published

    to = " / ".join(f"{100 * level:.0f}" for level in REACHED)
    lines = table("test, %", "ours", "paper", "seeds", "val", "CPU min", f"to {to}")
    cells: dict[tuple[str, int, int], list[CellRow]] = {}
    for row in rows:
        cells.setdefault((row.method, row.ways, row.shots), []).append(row)
    for (method, ways, shots), mine in cells.items():
        done = [100 * row.accuracy for row in mine if row.accuracy is not None]
        half = [100 * row.ci95 for row in mine if row.ci95 is not None]
        ours = "–"
        if done:
            mean, error = over_seeds(done, half)
            ours = f"{mean:.2f} ± {error:.2f}"
        checked = [100 * row.val_accuracy for row in mine if row.val_accuracy is not None]
        lines.add_row(
            f"{_SHORT[method]} {ways}w {shots}s",
            ours,
            published("omniglot", ways, shots).get(_IN_PAPER[method], "–"),
            f"{len(done)}",
            f"{statistics.mean(checked):.1f}" if checked else "–",
            f"{statistics.mean(row.cpu_seconds for row in mine) / 60:.0f}",
            " / ".join(_minutes([row.reached[place] for row in mine]) for place in range(len(REACHED))),
        )
    return lines


def _minutes(seconds: Sequence[float | None]) -> str:
    known = [one for one in seconds if one is not None]
    return f"{max(known) / 60:.0f}" if len(known) == len(seconds) else "–"
