"""``metagrad reproduce memory-reduced``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from metagrad import allocator
from metagrad.cli.arguments import arg
from metagrad.cli.figures import make_folder, table, write_figure
from metagrad.errors import MetagradError
from metagrad.recipes.protocols import HeadMethod, HeadsProtocol

if TYPE_CHECKING:
    from rich.table import Table

    from metagrad.experiment.loop import Event
    from metagrad.recipes.heads import HeadsRow

_DEFAULT = HeadsProtocol()


@dataclass(frozen=True)
class MemoryReducedTable:
    """Train MAML, ANIL, ITD-BiO and memory-reduced for the same time, and compare accuracy, time and memory.

    Every method has a run directory in --out: after Ctrl-C, run the same command again to continue.
    """

    dataset: Literal["cifar-fs", "fc100"] = "cifar-fs"
    """CIFAR-100 with its classes split at random (cifar-fs) or by groups (fc100)."""
    out: Path = arg(Path("memory-reduced"), metavar="DIR")
    """Folder for the runs, the table and the figure."""
    minutes: float = _DEFAULT.minutes
    """Minutes of processor time for the training of each method. Raise it to train on and test again."""
    methods: tuple[HeadMethod, ...] = ("maml", "anil", "itd-bio", "memory-reduced")
    """Methods to run and compare; several commands with different methods can share --out. memory-reduced solves its
    inner problem by 3 steps of Newton's method; memory-reduced-descent takes the published 20 steps of descent."""
    shots: int = _DEFAULT.shots
    """Support images of each class."""
    queries: int = _DEFAULT.queries
    """Query images of each class."""
    tasks: int = _DEFAULT.tasks
    """Tasks of each meta-step."""
    filters: int = _DEFAULT.filters
    """Width, in channels, of the network of four convolutions with pooling."""
    outer_lr: float = _DEFAULT.outer_lr
    """Constant step size of Adam."""
    features: Literal["cached", "recomputed"] = _DEFAULT.features
    """When head-only methods compute the body's features: once (cached), or at every inner step as published."""
    test_tasks: int = _DEFAULT.test_tasks
    """Number of test tasks."""
    seed: int = _DEFAULT.seed
    """Seed of weights and tasks."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with the data set's original files. Default: METAGRAD_DATA, else they are downloaded."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if not 0 < self.minutes < 10**5:
            raise MetagradError(f"--minutes must be positive, got {self.minutes}")
        if not self.methods:
            raise MetagradError(f"--methods needs at least one of {', '.join(get_args(HeadMethod))}")
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(HeadsProtocol)}
        protocol = HeadsProtocol(**fields)
        make_folder(self.out)
        allocator.keep_memory()
        from metagrad import data
        from metagrad.cli.interrupt import Interrupt
        from metagrad.cli.progress import Screen, WorkProgress, data_progress
        from metagrad.recipes.figures import draw_heads
        from metagrad.recipes.heads import experiment, run_method, seconds_spent

        screen = Screen()
        for method in self.methods:  # impossible values are named before the data are loaded
            experiment(method, self.dataset, protocol)
        dataset = data.load(self.dataset, data_dir=self.data_dir, progress=data_progress(screen))
        says = (
            f"{self.dataset}, 5-way {self.shots}-shot, {self.queries} queries a class, {self.tasks} tasks a meta-step, "
            f"{self.filters} filters\nAdam {self.outer_lr:g}, {self.minutes:g} processor minutes each, "
            f"features {self.features}, seed {self.seed}"
        )
        screen.write_line(f"Memory-reduced meta-learning and others: {says}.")
        rows, curves = [], []
        with Interrupt() as stop:
            for method in self.methods:
                with WorkProgress(screen, f"{method}, of {self.minutes:g} minutes") as progress:

                    def report(event: Event, method: str = method, progress: WorkProgress = progress) -> None:
                        if "cpu_seconds" in event.line:
                            progress(min(event.line["cpu_seconds"] / 60, self.minutes), self.minutes)
                        if "val_accuracy" in event.line:
                            score = f"{event.line['val_accuracy']:.1%}"
                            screen.write_line(f"{method}, meta-step {event.step}: validation {score}")

                    folder = self.out / f"{self.dataset}-{method}"
                    progress.begin_at(seconds_spent(folder) / 60)
                    command = ["metagrad", *words]
                    result = run_method(method, folder, dataset, protocol, command=command, report=report, stop=stop)
                if result is None:
                    screen.write_line("saved and stopped; run the same command again to continue")
                    return 130
                rows.append(result[0])
                curves += result[1]
        screen.print(_table(rows))
        write_figure(screen, self.out, f"{self.dataset}", draw_heads(curves, says), rows, protocol)
        return 0


def _table(rows: Sequence[HeadsRow]) -> Table:
    lines = table("", "test accuracy", "meta-steps", "CPU s a step", "peak MB")
    for row in rows:
        accuracy, seconds = f"{row.accuracy:.1%} ± {row.ci95:.1%}", row.cpu_seconds / row.meta_steps
        lines.add_row(row.method, accuracy, f"{row.meta_steps}", f"{seconds:.2f}", f"{row.megabytes:.0f}")
    return lines
