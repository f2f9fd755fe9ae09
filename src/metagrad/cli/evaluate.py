"""``metagrad evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metagrad.cli import allocator
from metagrad.cli.arguments import arg
from metagrad.errors import MetagradError


@dataclass(frozen=True)
class Evaluate:
    """Measure a run's accuracy on new tasks, with a 95 % interval."""

    run: Path = arg(positional=True, metavar="RUN")
    """Directory of the run."""
    split: Literal["test", "val"] = "test"
    """Classes to draw from: test (never seen while training or choosing) or val."""
    tasks: int = 600
    """Tasks; the interval narrows with their square root."""
    queries: int | None = None
    """Query images a class. Default: as in training."""
    transductive: bool = True
    """Classify a task's query images together, as the papers do, which lets batch statistics see all of them;
    --no-transductive: each by itself, beside the support images only."""
    seed: int = 0
    """Seed of the tasks."""
    device: str | None = None
    """Where to compute. Default: as in training."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with the data set's original files. Default: METAGRAD_DATA, else they are downloaded."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """package.module:name of your own code that the run names, to say that it may be imported. Once for each."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        for name, least in (("tasks", 2), ("queries", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise MetagradError(f"--{name} must be at least {least}, got {value}")
        if self.seed >= 2**62:
            raise MetagradError(f"--seed must be below 2^62, got {self.seed}")
        allocator.keep_memory()
        from rich.progress import Progress

        from metagrad.cli.progress import console, data_progress
        from metagrad.cli.train import show_result
        from metagrad.distributed import joined
        from metagrad.experiment.measure import measure
        from metagrad.experiment.run import Run
        from metagrad.experiment.setup import open_sources

        with joined() as ranks:
            screen = console(quiet=not ranks.first)
            run = Run.open(self.run, code=self.code)
            sources = open_sources(run, data_dir=self.data_dir, device=self.device, progress=data_progress(screen))
            ranks.require_same({"data": sources.digest, "--tasks": self.tasks, "--seed": self.seed})
            with Progress(console=screen, disable=not screen.is_terminal or screen.quiet, transient=True) as bar:
                task = bar.add_task("evaluating", total=self.tasks)
                result = measure(
                    run,
                    sources,
                    split=self.split,
                    tasks=self.tasks,
                    queries=self.queries,
                    seed=self.seed,
                    transductive=self.transductive,
                    progress=lambda done, total: bar.update(task, completed=done, total=total),
                    ranks=ranks,
                )
            show_result(screen, result)  # before it is kept: a read-only run can be measured all the same
            if ranks.first:
                run.append("evaluations.jsonl", {**result, "command": ["metagrad", *words]})
        return 0
