"""``metagrad predict``."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.cells import cell_len, set_cell_size

from metagrad import allocator
from metagrad.cli.arguments import arg
from metagrad.cli.text import printable, say, shown
from metagrad.errors import MetagradError

_UNKNOWN = "unknown"


@dataclass(frozen=True)
class Predict:
    """Label pictures with a classifier from metagrad adapt; each picture by itself."""

    model: Path = arg(positional=True, metavar="MODEL")
    """The file that metagrad adapt wrote."""
    images: tuple[str, ...] = arg(positional=True, metavar="PICTURES")
    """Picture files, folders of them, or - to read the names of files from standard input, one on each line."""
    format: Literal["table", "csv", "jsonl"] = "table"
    """Form of the output: table for people; csv or jsonl (one JSON object on each line) for programs, with the
    probability of every class."""
    reject: bool = False
    """Label a picture unknown if it is farther from every class than 95 % of the pictures of known classes are.
    metagrad adapt prints how many unknown pictures this finds, and how many known ones it rejects. In jsonl the class
    is then null."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """Allow the import of your own code that the classifier names, as package.module:name. Give it once for each."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if not self.images:
            raise MetagradError("give picture files or folders, or - to read their names from standard input")
        allocator.keep_memory()
        from metagrad.classifier.artifact import Classifier
        from metagrad.classifier.support import how_to_convert, listed, read_all
        from metagrad.cli.progress import Screen, WorkProgress
        from metagrad.data.pictures import files_of, some_of

        if sys.stdout is None:
            raise MetagradError("standard output is closed: there is nowhere to write to")
        if self.model.is_dir() and Path(self.images[0]).is_file():
            raise MetagradError(f"{self.model} is a folder: give the model first, metagrad predict MODEL PICTURES")
        classifier = Classifier.load(self.model, code=self.code)
        classifier.require_pictures()
        if self.reject and classifier.ood_threshold is None:
            raise MetagradError(
                f"{self.model} has no threshold for --reject, since its run was not calibrated: leave it out"
            )
        if self.reject and _UNKNOWN in classifier.classes and self.format != "jsonl":
            say("one class is itself named unknown: use --format jsonl, where a rejected picture has the class null")
        others: list[str] = []
        pictures = list(listed(self.images, sys.stdin or (), others))
        if not pictures:
            raise MetagradError("standard input names no picture")
        write = _WRITERS[self.format](classifier.classes)
        done = skipped = 0
        with WorkProgress(Screen(stderr=True, quiet=sys.stdout.isatty()), "labelling pictures") as progress:
            for paths, images, bad in read_all(pictures, classifier.reading):
                probabilities, ood_scores = classifier.classify(images)
                for path, row, ood_score in zip(paths, probabilities.tolist(), ood_scores.tolist(), strict=True):
                    rejected = self.reject and ood_score > (classifier.ood_threshold or math.inf)
                    best = max(row)
                    label = None if rejected else classifier.classes[row.index(best)]
                    write(str(path), label, best, row, ood_score)
                for path, why in bad:
                    say(f"{path} cannot be read ({why})")
                done, skipped = done + len(paths), skipped + len(bad)
                progress(done + skipped, len(pictures))
        if others:
            say(f"left out {files_of(len(others))} of other kinds ({some_of(others)}){how_to_convert(others)}")
        if skipped and not done:
            none = "the only picture cannot" if skipped == 1 else f"none of the {skipped} pictures can"
            raise MetagradError(f"{none} be read")
        return 0


# Takes a picture, its label (None: rejected), the probability of the best class, each class's, and the out-of-
# distribution score.
Writer = Callable[[str, str | None, float, list[float], float], None]


def _table(classes: tuple[str, ...]) -> Writer:
    width = max(cell_len(printable(name)) for name in (_UNKNOWN, *classes))

    def write(path: str, label: str | None, best: float, row: list[float], ood_score: float) -> None:
        probability = "     –" if label is None else f"{best:6.1%}"
        print(
            f"{probability}  {set_cell_size(printable(_UNKNOWN if label is None else label), width)}  {printable(path)}"
        )

    return write


def _csv(classes: tuple[str, ...]) -> Writer:
    def safe(text: str) -> str:
        return shown(printable(text) if sys.stdout.isatty() else text)

    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["picture", "class", "probability", "ood_score", *(safe(name) for name in classes)])

    def write(path: str, label: str | None, best: float, row: list[float], ood_score: float) -> None:
        numbers = [f"{number:.6g}" for number in (best, ood_score, *row)]
        writer.writerow([safe(path), safe(_UNKNOWN if label is None else label), *numbers])

    return write


def _jsonl(classes: tuple[str, ...]) -> Writer:
    def write(path: str, label: str | None, best: float, row: list[float], ood_score: float) -> None:
        line: dict[str, Any] = {
            "picture": path,
            "class": label,
            "probability": best,
            "ood_score": ood_score,
            "probabilities": dict(zip(classes, row, strict=True)),
        }
        print(json.dumps(line, ensure_ascii=False))

    return write


_WRITERS = {"table": _table, "csv": _csv, "jsonl": _jsonl}
