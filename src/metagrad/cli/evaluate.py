"""``metagrad evaluate``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from metagrad.cli import allocator
from metagrad.cli.arguments import arg


@dataclass(frozen=True)
class Evaluate:
    """Measure a run's accuracy on new tasks, with a 95 % interval."""

    run: Path = arg(positional=True, metavar="RUN")
    """Directory of the run."""
    split: Literal["test", "val"] = "test"
    """Classes to draw from: test, never used to train or to choose weights, or val, used to choose weights."""
    tasks: int = arg(600, least=2)
    """Number of tasks; the interval narrows with its square root."""
    queries: int | None = arg(None, least=1)
    """Query images of each class. Default: as in training."""
    transductive: bool = True
    """Classify all query images of a task together, as the papers do: batch norms then use the statistics of all.
    --no-transductive classifies each image by itself."""
    seed: int = arg(0, least=0, most=2**62 - 1)
    """Seed of the tasks."""
    device: str | None = None
    """Where to compute. Default: as in training."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with the data set's original files. Default: METAGRAD_DATA, else they are downloaded."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """Your own code that the run names, as package.module:name: allow its import. Give it once for each name."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        allocator.keep_memory()
        from metagrad.cli.after_training import show_result
        from metagrad.cli.progress import Screen, WorkProgress, data_progress
        from metagrad.distributed import joined
        from metagrad.experiment.measure import measure
        from metagrad.experiment.run import Run
        from metagrad.experiment.setup import open_sources

        with joined() as ranks:
            screen = Screen(quiet=not ranks.first)
            run = Run.open(self.run, code=self.code)
            sources = open_sources(run, data_dir=self.data_dir, device=self.device, progress=data_progress(screen))
            ranks.require_same({"data": sources.digest, "--tasks": self.tasks, "--seed": self.seed})
            with WorkProgress(screen, "evaluating") as progress:
                result = measure(
                    run,
                    sources,
                    split=self.split,
                    tasks=self.tasks,
                    queries=self.queries,
                    seed=self.seed,
                    transductive=self.transductive,
                    progress=progress,
                    ranks=ranks,
                )
            show_result(screen, result)  # before it is kept: a read-only run can be measured all the same
            if ranks.first:
                run.append("evaluations.jsonl", {**result, "command": ["metagrad", *words]})
        return 0
