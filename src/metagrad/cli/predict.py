"""``metagrad predict``."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size

from metagrad.cli import allocator
from metagrad.cli.arguments import arg
from metagrad.cli.text import printable, say, shown
from metagrad.errors import MetagradError

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Predict:
    """Label pictures with a classifier that metagrad adapt made; each picture by itself."""

    model: Path = arg(positional=True, metavar="MODEL")
    """The file that metagrad adapt wrote."""
    images: tuple[str, ...] = arg(positional=True, metavar="PICTURES")
    """Picture files, folders of them, or - for a list of files on standard input, one a line."""
    format: Literal["table", "csv", "jsonl"] = "table"
    """table to read; csv and jsonl (one JSON object a line) for other programs, with every class's probability."""
    reject: bool = False
    """Label unknown what looks like none of the classes: as far from all of them as 1 in 20 pictures of known classes
    is, for so many classes and pictures of each. metagrad adapt says how much of the unknown that finds. In jsonl its
    class is null."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """package.module:name of your own code that the classifier names, to say that it may be imported. Once for each."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if not self.images:
            raise MetagradError("name pictures, folders of them, or - for a list on stdin")
        allocator.keep_memory()
        from metagrad.classifier.artifact import Classifier
        from metagrad.classifier.support import listed, read_all
        from metagrad.cli.progress import WorkProgress, console

        if sys.stdout is None:
            raise MetagradError("standard output is closed: there is nowhere to write to")
        classifier = Classifier.load(self.model, code=self.code)
        if self.reject and classifier.ood_threshold is None:
            raise MetagradError(f"{self.model} knows no threshold: its run was not calibrated; leave out --reject")
        if self.reject and _UNKNOWN in classifier.classes and self.format != "jsonl":
            say("one of the classes is called unknown too: --format jsonl tells it from what is rejected")
        pictures = list(listed(self.images, sys.stdin or ()))
        if not pictures:
            raise MetagradError("no picture is named on standard input")
        write = _WRITERS[self.format](classifier.classes)
        done = skipped = 0
        with WorkProgress(console(stderr=True, quiet=sys.stdout.isatty()), "labelling pictures") as progress:
            for paths, images, bad in read_all(pictures, classifier.reading):
                probabilities, ood_scores = classifier.classify(images)
                for path, row, ood_score in zip(paths, probabilities.tolist(), ood_scores.tolist(), strict=True):
                    far = self.reject and classifier.ood_threshold is not None and ood_score > classifier.ood_threshold
                    write(str(path), _UNKNOWN if far else None, row, ood_score)
                for path, why in bad:
                    say(f"{path} cannot be read ({why})")
                done, skipped = done + len(paths), skipped + len(bad)
                progress(done + skipped, len(pictures))
        if skipped and not done:
            none = "the only picture that is named cannot" if skipped == 1 else f"none of the {skipped} pictures can"
            raise MetagradError(f"{none} be read")
        return 0


Writer = Callable[[str, str | None, list[float], float], None]


def _table(classes: tuple[str, ...]) -> Writer:
    width = max(cell_len(printable(name)) for name in (_UNKNOWN, *classes))

    def write(path: str, instead: str | None, row: list[float], ood_score: float) -> None:
        best = max(range(len(row)), key=row.__getitem__)
        sure = "     –" if instead else f"{row[best]:6.1%}"
        print(f"{sure}  {set_cell_size(printable(instead or classes[best]), width)}  {printable(path)}")

    return write


def _csv(classes: tuple[str, ...]) -> Writer:
    def safe(text: str) -> str:
        return shown(printable(text) if sys.stdout.isatty() else text)

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["picture", "class", "probability", "ood_score", *(safe(name) for name in classes)])

    def write(path: str, instead: str | None, row: list[float], ood_score: float) -> None:
        best = max(range(len(row)), key=row.__getitem__)
        numbers = [f"{number:.6g}" for number in (row[best], ood_score, *row)]
        writer.writerow([safe(path), safe(instead or classes[best]), *numbers])

    return write


def _jsonl(classes: tuple[str, ...]) -> Writer:
    def write(path: str, instead: str | None, row: list[float], ood_score: float) -> None:
        best = max(range(len(row)), key=row.__getitem__)
        line: dict[str, Any] = {
            "picture": path,
            "class": None if instead else classes[best],
            "probability": row[best],
            "ood_score": ood_score,
            "probabilities": dict(zip(classes, row, strict=True)),
        }
        print(json.dumps(line, ensure_ascii=False))

    return write


_WRITERS = {"table": _table, "csv": _csv, "jsonl": _jsonl}
