"""``metagrad reproduce cifar-table`` and ``metagrad reproduce cifar-two-stages``."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from metagrad import allocator
from metagrad.cli.arguments import arg
from metagrad.cli.figures import make_folder, over_seeds, require_hours, require_once, save_rows, table
from metagrad.errors import MetagradError
from metagrad.recipes.protocols import CifarTwoStagesProtocol, HeadMethod, HeadsProtocol, TwoStageMethod

if TYPE_CHECKING:
    from rich.table import Table

    from metagrad.cli.progress import Screen
    from metagrad.experiment.loop import Event
    from metagrad.recipes.heads import HeadsCell

_DEFAULT = HeadsProtocol()
_TWO_STAGES = CifarTwoStagesProtocol()


@dataclass(frozen=True)
class CifarTable:
    """Train MAML, ANIL, ITD-BiO and memory-reduced on CIFAR-FS and FC100 with several seeds, and say which one wins.

    Methods are compared task by task. Every cell is a run in --out: after Ctrl-C, or when --hours are over, run the
    same command again to continue. The table shows a gap for each missing result.
    """

    out: Path = arg(Path("cifar-table"), metavar="DIR")
    """Folder for the runs and the table."""
    datasets: tuple[Literal["cifar-fs", "fc100"], ...] = ("cifar-fs", "fc100")
    """Data sets."""
    methods: tuple[HeadMethod, ...] = ("memory-reduced", "maml", "anil", "itd-bio")
    """Methods; each is compared with the first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each trains every method anew, on tasks that the methods share."""
    hours: float | None = None
    """Stop after so many hours. Default: when all is done."""
    minutes: float = _DEFAULT.minutes
    """Minutes of processor time for each training."""
    shots: int = arg(_DEFAULT.shots, least=1)
    """Support images of each class."""
    tasks: int = arg(_DEFAULT.tasks, least=1)
    """Tasks of each meta-step."""
    filters: int = arg(_DEFAULT.filters, least=1)
    """Width of the network of four convolutions with pooling."""
    outer_lr: float = _DEFAULT.outer_lr
    """Constant step size of Adam."""
    test_tasks: int = arg(_DEFAULT.test_tasks, least=2)
    """Number of test tasks of each cell."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with CIFAR-100's archive. Default: METAGRAD_DATA, else it is downloaded."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        require_hours(self.hours)
        require_once(datasets=self.datasets, methods=self.methods, seeds=self.seeds)
        if not 0 < self.minutes < 10**5:
            raise MetagradError(f"--minutes must be positive and below 100000, got {self.minutes}")
        make_folder(self.out)
        allocator.keep_memory()
        from metagrad import data
        from metagrad.cli.interrupt import Interrupt, until
        from metagrad.cli.progress import Screen, data_progress
        from metagrad.recipes.heads import HeadsCell, experiment, run_method
        from metagrad.recipes.stages import require_possible

        screen = Screen()
        base = HeadsProtocol(
            minutes=self.minutes,
            shots=self.shots,
            tasks=self.tasks,
            filters=self.filters,
            outer_lr=self.outer_lr,
            test_tasks=self.test_tasks,
        )
        queue = [(dataset, seed, method) for dataset in self.datasets for seed in self.seeds for method in self.methods]
        cells = []
        with Interrupt() as pressed:
            stop = until(self.hours, pressed)
            loaded = {
                name: data.load(name, data_dir=self.data_dir, progress=data_progress(screen)) for name in self.datasets
            }
            for dataset, seed, method in queue:  # before hours of work
                wanted = experiment(method, dataset, replace(base, seed=seed))
                require_possible(self.out / f"{dataset}-{method}-{seed}", wanted, loaded[dataset])
            for dataset, seed, method in queue:
                folder, protocol = self.out / f"{dataset}-{method}-{seed}", replace(base, seed=seed)

                def report(event: Event, name: str = folder.name) -> None:
                    if "val_accuracy" in event.line:
                        score = f"{event.line['val_accuracy']:.1%}"
                        screen.write_line(f"{name}, meta-step {event.step}: validation {score}")

                if not stop() and not (folder / "result.json").exists():
                    command = ["metagrad", *words]
                    run_method(method, folder, loaded[dataset], protocol, command=command, report=report, stop=stop)
                cells.append(HeadsCell.of(folder, dataset, method, seed))
        _print_and_save(screen, self.out, cells, base)
        return 130 if pressed() else 0


@dataclass(frozen=True)
class CifarTwoStages:
    """Train MAML, ANIL, ITD-BiO and memory-reduced on the features of a ProtoNet, and say which one wins.

    First ProtoNet learns features on tasks of many classes, then each method goes on from them, and so does ProtoNet.
    Methods are compared task by task. Every cell is a run in --out: after Ctrl-C, or when --hours are over, run the
    same command again to continue. The table shows a gap for each missing result.
    """

    out: Path = arg(Path("cifar-two-stages"), metavar="DIR")
    """Folder for the runs and the table."""
    datasets: tuple[Literal["cifar-fs", "fc100"], ...] = ("cifar-fs",)
    """Data sets. The settings of the methods were chosen on cifar-fs."""
    methods: tuple[TwoStageMethod, ...] = ("memory-reduced", "maml", "anil", "itd-bio", "protonet")
    """Methods; each is compared with the first."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; each trains the features and every method anew, on tasks that the methods share."""
    hours: float | None = None
    """Stop after so many hours. Default: when all is done."""
    shots: int = arg(_TWO_STAGES.shots, least=1)
    """Support images of each class."""
    body_steps: int = arg(_TWO_STAGES.body_steps, least=1)
    """Meta-steps of the first stage, one task each: 3250 take half an hour of a core."""
    body_ways: int = arg(_TWO_STAGES.body_ways, least=2)
    """Classes of a task of the first stage."""
    body_lr: float = _TWO_STAGES.body_lr
    """Outer step size of the first stage."""
    steps: int = arg(_TWO_STAGES.steps, least=1)
    """Meta-steps of the second stage."""
    tasks: int = arg(_TWO_STAGES.tasks, least=1)
    """Tasks of a meta-step of the second stage."""
    lr: float = _TWO_STAGES.lr
    """Outer step size of the second stage."""
    filters: int = arg(_TWO_STAGES.filters, least=1)
    """Width of the network of four convolutions with pooling."""
    val_tasks: int = arg(_TWO_STAGES.val_tasks, least=2)
    """Number of validation tasks."""
    test_tasks: int = arg(_TWO_STAGES.test_tasks, least=2)
    """Number of test tasks of each cell."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with CIFAR-100's archive. Default: METAGRAD_DATA, else it is downloaded."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        require_hours(self.hours)
        require_once(datasets=self.datasets, methods=self.methods, seeds=self.seeds)
        make_folder(self.out)
        allocator.keep_memory()
        from metagrad.cli.interrupt import Interrupt, until
        from metagrad.cli.progress import QueueProgress, Screen, data_progress
        from metagrad.recipes.cifar_two_stages import trained

        screen = Screen()
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(CifarTwoStagesProtocol)}
        protocol = CifarTwoStagesProtocol(**fields)
        with Interrupt() as pressed, QueueProgress(screen) as report:
            queue = trained(
                self.out,
                self.datasets,
                self.methods,
                self.seeds,
                protocol,
                data_dir=self.data_dir,
                report=report,
                progress=data_progress(screen),
                stop=until(self.hours, pressed),
            )
            cells = list(queue)
        _print_and_save(screen, self.out, cells, protocol)
        return 130 if pressed() else 0


def _print_and_save(screen: Screen, out: Path, cells: Sequence[HeadsCell], protocol: object) -> None:
    """Print a table for each data set, name what is missing, and save all cells as a file."""
    for dataset in dict.fromkeys(cell.dataset for cell in cells):
        screen.print(_table(dataset, [cell for cell in cells if cell.dataset == dataset]))
    missing = [f"{cell.dataset}-{cell.method}-{cell.seed}" for cell in cells if cell.accuracy is None]
    if missing:
        screen.write_line(f"not measured yet: {', '.join(missing)}; run the same command again to continue")
    save_rows(screen, out, "cifar", [cell.plain() for cell in cells], protocol)


def _table(dataset: str, cells: Sequence[HeadsCell]) -> Table:
    """Return a line a method: the mean over seeds, and the paired difference to the first method."""
    methods = list(dict.fromkeys(cell.method for cell in cells))
    lines = table(f"{dataset}, test, %", "accuracy", f"{methods[0]} over it, paired", "seeds", "steps", "CPU s a step")
    first = {cell.seed: cell for cell in cells if cell.method == methods[0]}
    for method in methods:
        mine = [cell for cell in cells if cell.method == method and cell.accuracy is not None]
        gaps = [
            [one - other for one, other in zip(first[cell.seed].per_task, cell.per_task, strict=True)]
            for cell in mine
            if first[cell.seed].per_task
        ]
        lines.add_row(
            method,
            _interval([list(cell.per_task) for cell in mine]),
            "" if method == methods[0] else _interval(gaps, sign="+"),
            f"{len(mine)}",
            f"{statistics.mean(cell.meta_steps for cell in mine):.0f}" if mine else "–",
            f"{statistics.mean(cell.cpu_seconds / max(1, cell.meta_steps) for cell in mine):.2f}" if mine else "–",
        )
    return lines


def _interval(rows: Sequence[Sequence[float]], sign: str = "") -> str:
    """Return mean and half width at 95 %, in percent, of each seed's values by task."""
    if not rows:
        return "–"
    halves = [1.96 * statistics.stdev(row) / math.sqrt(len(row)) for row in rows]
    mean, half = over_seeds([statistics.mean(row) for row in rows], halves)
    return f"{100 * mean:{sign}.2f} ± {100 * half:.2f}"
