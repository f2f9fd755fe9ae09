"""``metagrad report``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from metagrad.cli.arguments import arg
from metagrad.errors import MetagradError

if TYPE_CHECKING:
    from metagrad.cli.progress import Screen
    from metagrad.report.page import RunView


@dataclass(frozen=True)
class Report:
    """Write a page about one or more runs: results, tasks as pictures with the mistakes, curves, options."""

    runs: tuple[Path, ...] = arg(positional=True, metavar="RUN")
    """Directory of a run; if you give several, the page compares them."""
    out: Path = arg(Path("report.html"), metavar="FILE")
    """HTML file to write, self-contained; an existing one is replaced."""
    data_dir: Path | None = arg(None, metavar="DIR")
    """Folder with the data set's original files, for the pictures of tasks. Default: as in training; without the data
    the page has no pictures."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """Allow the import of your own code that the run names, as package.module:name. Give it once for each name."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if not self.runs:
            raise MetagradError("give a run directory: metagrad report runs/first")
        if self.out.is_dir():
            raise MetagradError(f"--out {self.out} is a folder: give a file")
        from metagrad.cli.progress import Screen
        from metagrad.experiment.storage import FILES
        from metagrad.files import require_apart

        require_apart(self.out, *self.runs, ours=FILES.__contains__)
        screen = Screen()
        names = [folder.resolve().name for folder in self.runs]
        labels = names if len(set(names)) == len(names) else [str(folder) for folder in self.runs]
        from metagrad.report.runs import write_page

        shown = [self._shown(screen, folder, label) for folder, label in zip(self.runs, labels, strict=True)]
        write_page(shown, self.out, follow=True, busy=screen.status)
        size = os.path.getsize(self.out) / 1024
        screen.write_line(f"wrote {self.out} ({size:.0f} kB): open it in a browser")
        return 0

    def _shown(self, screen: Screen, folder: Path, label: str) -> RunView:
        from metagrad.cli.progress import data_progress
        from metagrad.experiment.run import Run
        from metagrad.experiment.setup import open_sources
        from metagrad.report.runs import view_of

        run = Run.open(folder, code=self.code)
        sources = None
        if run.dataset is not None and run.has("best"):
            try:
                sources = open_sources(run, data_dir=self.data_dir, device="cpu", progress=data_progress(screen))
            except MetagradError as error:
                screen.write_line(f"the page has no pictures of {label}: {error}")
        return view_of(run, label, sources, busy=screen.status)
