"""``metagrad report``."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metagrad.cli.arguments import arg
from metagrad.errors import MetagradError, MetagradWarning, in_short
from metagrad.strict_json import is_number

if TYPE_CHECKING:
    from rich.console import Console

    from metagrad.data import Dataset
    from metagrad.experiment.run import Run
    from metagrad.report.episodes import Confusion, Row
    from metagrad.report.page import Shown


@dataclass(frozen=True)
class Report:
    """Make one page of runs: curves, options, the command; of a data set's classes, tasks and mistakes too."""

    runs: tuple[Path, ...] = arg(positional=True, metavar="RUN")
    """Directories of runs; several are shown beside each other."""
    out: Path = arg(Path("report.html"), metavar="FILE")
    """File to write; one that is there is replaced. It holds everything: no other file, no network."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with the data set's original files, for the pictures of tasks. Default: as in training; without the data
    the page has no pictures."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """package.module:name of your own code that the run names, to say that it may be imported. Once for each."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if not self.runs:
            raise MetagradError("name a run directory: metagrad report runs/first")
        if self.out.is_dir():
            raise MetagradError(f"--out {self.out} is a folder: name a file")
        from metagrad.cli.progress import console
        from metagrad.experiment.storage import FILES
        from metagrad.files import require_apart

        require_apart(self.out, *self.runs, ours=FILES.__contains__)
        screen = console()
        names = [folder.resolve().name for folder in self.runs]
        labels = names if len(set(names)) == len(names) else [str(folder) for folder in self.runs]
        write_page(
            screen,
            [self._shown(screen, folder, label) for folder, label in zip(self.runs, labels, strict=True)],
            self.out,
            follow=True,
        )
        size = os.path.getsize(self.out) / 1024
        screen.print(
            f"wrote {self.out} ({size:.0f} kB): open it in a browser", highlight=False, markup=False, soft_wrap=True
        )
        return 0

    def _shown(self, screen: Console, folder: Path, label: str) -> Shown:
        from metagrad.cli.progress import data_progress
        from metagrad.experiment.run import Run
        from metagrad.experiment.setup import open_sources

        run = Run.open(folder, code=self.code)
        dataset = None
        if run.dataset is not None and run.has("best"):
            try:
                dataset = open_sources(
                    run, data_dir=self.data_dir, device="cpu", progress=data_progress(screen)
                ).dataset
            except MetagradError as error:
                screen.print(f"no pictures of {label}: {error}", highlight=False, markup=False, soft_wrap=True)
        return shown(screen, run, label, dataset)


def shown(screen: Console, run: Run, label: str, dataset: Dataset | None) -> Shown:
    """Return what a page shows of a run; tasks as pictures where the data are at hand."""
    from metagrad.classifier.calibration import Calibration
    from metagrad.classifier.learner import Learner
    from metagrad.experiment.experiment import described
    from metagrad.report.episodes import looked_at
    from metagrad.report.page import Shown

    lines = _metrics(run)
    best = run.load("best").digest if run.has("best") else None
    grids: list[list[Row]] = []
    hardest: list[Confusion] = []
    # A bilevel problem gives no network that says something of a picture.
    if dataset is not None and run.has("best") and hasattr(run.experiment.method, "weights"):
        with screen.status("looking at tasks"):
            grids, hardest = looked_at(Learner.of(run), dataset)
    calibration = Calibration.of_run(run, best)
    return Shown(label, described(run.experiment), run.record, lines, _result(run, best), calibration, grids, hardest)


def _metrics(run: Run) -> list[dict[str, Any]]:
    """Return the lines of a run's curve, and say what is wrong with them."""
    lines = run.metrics() if run.metrics_path.exists() else []
    if run.has("last") and (said := run.metrics_fault(run.load("last"))) is not None:
        warnings.warn(said, MetagradWarning, stacklevel=2)
    return lines


def write_page(screen: Console, runs: list[Shown], out: Path, *, follow: bool = False) -> None:
    """Write the page of these runs; a file that is there is replaced once the new one is whole.

    ``follow``: if ``out`` is a link, what it leads to is replaced; for a path that a person named.
    """
    from jinja2 import TemplateError

    from metagrad.files import write_text
    from metagrad.report.page import page

    def refused(error: OSError) -> MetagradError:
        return MetagradError(f"cannot write {out} ({error.strerror or error}): choose another --out")

    with screen.status("writing the page"):
        try:
            text = page(runs)
        except (LookupError, TypeError, ValueError, ArithmeticError, TemplateError) as error:
            which = ", ".join(run.label for run in runs)
            raise MetagradError(
                f"a file of {which} is damaged ({type(error).__name__}: {error}): restore it"
            ) from error
    write_text(out, text, refused=refused, follow=follow)


def _result(run: Run, weights: str | None) -> dict[str, Any]:
    """Return the result of a run that is finished; of another, nothing."""
    found = run.read_measured("result.json", weights)
    if found is None:
        return {}
    try:
        protocol = found["protocol"]
        numbers = [found["value"], found["ci95"], found.get("peak_memory_mb", 0)]
        numbers += [protocol.get(name, 0) for name in ("ways", "shots", "queries")] + [protocol["tasks"]]
        texts = [protocol["dataset"], protocol["split"], found.get("metric", "")]
        if not all(is_number(number) for number in numbers) or not all(isinstance(text, str) for text in texts):
            raise ValueError("a number or a name is none")
        found["protocol"]["transductive"] = bool(protocol["transductive"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise MetagradError(
            f"{run.folder / 'result.json'} is damaged ({in_short(error)}): restore or remove it"
        ) from error
    return found
