"""``metagrad report``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metagrad.cli.arguments import arg
from metagrad.errors import MetagradError

if TYPE_CHECKING:
    from rich.console import Console

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
        from metagrad.report.runs import write_page

        found = [self._shown(screen, folder, label) for folder, label in zip(self.runs, labels, strict=True)]
        write_page(found, self.out, follow=True, busy=screen.status)
        size = os.path.getsize(self.out) / 1024
        screen.print(
            f"wrote {self.out} ({size:.0f} kB): open it in a browser", highlight=False, markup=False, soft_wrap=True
        )
        return 0

    def _shown(self, screen: Console, folder: Path, label: str) -> Shown:
        from metagrad.cli.progress import data_progress
        from metagrad.experiment.run import Run
        from metagrad.experiment.setup import open_sources
        from metagrad.report.runs import shown

        run = Run.open(folder, code=self.code)
        dataset = None
        if run.dataset is not None and run.has("best"):
            try:
                dataset = open_sources(
                    run, data_dir=self.data_dir, device="cpu", progress=data_progress(screen)
                ).dataset
            except MetagradError as error:
                screen.print(f"no pictures of {label}: {error}", highlight=False, markup=False, soft_wrap=True)
        return shown(run, label, dataset, busy=screen.status)
