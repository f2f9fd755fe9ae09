"""``metagrad reproduce omniglot-challenge``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metagrad import allocator
from metagrad.cli.arguments import arg
from metagrad.cli.figures import make_folder, save_rows, table
from metagrad.errors import MetagradError
from metagrad.recipes.protocols import ChallengeProtocol

if TYPE_CHECKING:
    from rich.table import Table

    from metagrad.experiment.loop import Event
    from metagrad.recipes.omniglot_challenge import ChallengeRow

_DEFAULT = ChallengeProtocol()


@dataclass(frozen=True)
class OmniglotChallenge:
    """Train on Omniglot's background alphabets, and tell apart 20 characters of one new alphabet from one drawing each.

    An interrupted training continues where it stopped. The table has our errors beside those of people and of
    published methods.
    """

    out: Path = arg(Path("omniglot-challenge"), metavar="DIR")
    """Folder for the run and the table."""
    run: Path | None = arg(None, metavar="RUN")
    """Test this run, which learned from omniglot-alphabets, rather than train one."""
    runs: int = arg(_DEFAULT.runs, least=2, most=10**4)
    """Runs of 20 characters drawn from each of the 20 evaluation alphabets."""
    meta_steps: int = arg(_DEFAULT.meta_steps, least=1)
    """Meta-steps of the training, one task each: 4000 take 40 minutes of a core."""
    train_ways: int = arg(_DEFAULT.train_ways, least=2)
    """Classes of a training task."""
    filters: int = arg(_DEFAULT.filters, least=1)
    """Width of the network of four convolutions with pooling."""
    pools: int = arg(_DEFAULT.pools, least=0, most=4)
    """How many of the four pool: with 3, places of the drawing stay apart."""
    variation: float = _DEFAULT.variation
    """How far training images are varied: shifts, turns, slants, thickness (as train --variation)."""
    views: int = arg(_DEFAULT.views, least=1, most=100)
    """Views of each drawing to average over: a little moved, turned, slanted, thicker or thinner. 1: none."""
    val_tasks: int = arg(_DEFAULT.val_tasks, least=2)
    """Number of validation tasks."""
    seed: int = arg(_DEFAULT.seed, least=0, most=2**62)
    """Seed of weights, tasks and runs."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with Omniglot's archives. Default: METAGRAD_DATA, else they are downloaded."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(ChallengeProtocol)}
        protocol = ChallengeProtocol(**fields)
        if self.run is not None:
            _require_no_training(protocol)
        make_folder(self.out)
        allocator.keep_memory()
        from metagrad.cli.interrupt import Interrupt
        from metagrad.cli.progress import Screen, WorkProgress, data_progress
        from metagrad.experiment.run import Run
        from metagrad.experiment.setup import open_sources
        from metagrad.recipes.omniglot_challenge import experiment, measure, trained

        screen, folder = Screen(), self.run or self.out / "run"
        if self.run is None:
            experiment(protocol)  # impossible values are named before anything is read
            with Interrupt() as stop, WorkProgress(screen, "training") as progress:

                def report(event: Event) -> None:
                    progress(event.step, event.meta_steps)
                    if "val_accuracy" in event.line:
                        score = f"{event.line['val_accuracy']:.1%}"
                        screen.write_line(f"meta-step {event.step}: validation, 5-way {score}")

                if not trained(folder, protocol, self.data_dir, report, stop):
                    screen.write_line("stopped and saved; run the same command again to continue")
                    return 130
        run = Run.open(folder)
        sources = open_sources(run, data_dir=self.data_dir, device="cpu", progress=data_progress(screen))
        with WorkProgress(screen, "alphabets") as progress:
            rows = measure(run, sources, protocol, progress)
        screen.print(_table(rows))
        measured = _Measured(run=str(self.run), views=self.views, seed=self.seed)
        save_rows(screen, self.out, "omniglot-challenge", rows, protocol if self.run is None else measured)
        return 0


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """What a table of a run trained elsewhere depends on; how it was trained is in the run."""

    run: str
    views: int
    seed: int


def _require_no_training(protocol: ChallengeProtocol) -> None:
    """Refuse options of a training where there is none."""
    for name, value in dataclasses.asdict(protocol).items():
        if name not in ("runs", "views", "seed") and value != getattr(_DEFAULT, name):
            raise MetagradError(
                f"--{name.replace('_', '-')} is for training, but --run tests a trained run: leave one of them out"
            )


def _table(rows: Sequence[ChallengeRow]) -> Table:
    from metagrad.recipes.omniglot_challenge import PUBLISHED, mean

    lines = table("20-way one-shot within an alphabet, errors", "each by itself", "20 together")
    for row in rows:
        lines.add_row(row.alphabet, f"{row.error:.1%}", f"{row.error_transductive:.1%}")
    means = (mean([row.error for row in rows]), mean([row.error_transductive for row in rows]))
    lines.add_row("mean ± 95 % over alphabets", *(f"{value:.1%} ± {half:.1%}" for value, half in means))
    for name, error in PUBLISHED.items():
        lines.add_row(f"published: {name}", f"{error} %", "")
    return lines
