"""``metagrad adapt``."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metagrad.cli import allocator
from metagrad.cli.arguments import arg
from metagrad.cli.text import printable
from metagrad.errors import MetagradError

if TYPE_CHECKING:
    from metagrad.classifier.artifact import Classifier

_FAR = 4.0  # standard deviations of the training images


@dataclass(frozen=True)
class Adapt:
    """Learn new classes from a few pictures of each; write a classifier for metagrad predict."""

    run: Path = arg(positional=True, metavar="RUN")
    """Directory of a finished run; or what comes with metagrad: glyphs, a model of drawings, or photos, a pretrained
    network for photographs."""
    support: Path = arg(positional=True, metavar="SUPPORT")
    """Folder or zip with one folder for each class and a few pictures in each. Any number of classes and pictures will
    do, of any sizes, grey or colour."""
    out: Path = arg(metavar="MODEL")
    """File to write the classifier to, such as my.model; it replaces one that is there."""
    code: tuple[str, ...] = arg((), metavar="CODE", repeated=True)
    """Your own code that the run names, as package.module:name: allow its import. Give it once for each name."""

    def main(self, words: list[str]) -> int:
        """Run the command; return the exit code."""
        if self.out.is_dir():
            raise MetagradError(f"--out {self.out} is a folder: name a file")
        allocator.keep_memory()
        from metagrad.classifier.calibration import farthest_statistic
        from metagrad.classifier.learner import Learner
        from metagrad.classifier.support import read_support
        from metagrad.cli.progress import Screen, WorkProgress
        from metagrad.data.class_folders import ENDINGS
        from metagrad.experiment.storage import FILES
        from metagrad.files import require_apart

        require_apart(self.out, self.support, ours=lambda name: name.lower().endswith(ENDINGS))
        require_apart(self.out, self.run, ours=FILES.__contains__)
        screen = Screen()
        learner = Learner.of(self.run, code=self.code)
        with screen.status("reading pictures"):
            support = read_support(self.support, learner.reading, most=learner.most)
        notes = list(support.notes)
        if learner.calibration is not None:
            off, where = farthest_statistic(support.images, learner.calibration.pixels)
            if off > _FAR:
                notes.append(
                    f"these pictures are unlike those of {learner.facts['dataset']} that the network learned from: "
                    f"{where}, {off:.0f} standard deviations away; do not expect much"
                )
        with screen.status("adapting"):
            classifier = learner.adapt(support.images, support.labels)
        classifier.save(self.out)  # usable from here on, whatever becomes of what follows
        with WorkProgress(screen, "leaving pictures out in turn") as progress:
            left = learner.leave_one_out(support.images, support.labels, progress=progress)
        classifier = dataclasses.replace(classifier, facts={**classifier.facts, "left_out": left})
        classifier.save(self.out)
        for line in describe(classifier):
            screen.write_line(line)
        for note in notes:
            screen.write_line(f"note: {printable(note)}")
        size = self.out.stat().st_size / 1024
        screen.write_line(f"wrote {self.out} ({size:.0f} kB); next: metagrad predict {self.out} PICTURES")
        return 0


def describe(classifier: Classifier) -> list[str]:
    """Say in a few lines what an adaptation came to."""
    from metagrad.classifier.calibration import Size

    facts: dict[str, Any] = classifier.facts
    counts = facts["images"]
    few, many = min(counts.values()), max(counts.values())
    each = f"{few}" if few == many else f"{few} to {many}"
    lines = [
        f"{len(counts)} classes, {each} picture{'s' * (many > 1)} each; {facts['method']} trained "
        f"{facts['trained']} on {facts['dataset']} (validation {facts['val_accuracy']:.1%})",
        f"  on the pictures learned from: {facts['fit']:.0%} right, inner gradient norm {facts['inner_grad_norm']:.2g} "
        "(0: solved)",
    ]
    left, chance = facts["left_out"], 1 / len(counts)
    if left is not None:
        lines.append(
            f"  one of each class left out, ten times at most: {left['accuracy']:.0%} of {left['images']} right"
        )
        if left["accuracy"] < chance + 1.64 * math.sqrt(chance * (1 - chance) / left["images"]):
            lines.append(
                f"    chance alone may give as much ({chance:.0%} on average): perhaps it cannot tell these apart"
            )
    else:
        lines.append("  one picture a class: nothing can be left out to see how well it does; two or more tell")
    if facts["expected"] is not None:
        expected = Size(**facts["expected"])
        size = f"{expected.ways} classes, {expected.shots} picture{'s' * (expected.shots > 1)} of each"
        lines.append(
            f"  to compare with: {size}, {facts['expected_of']}: {expected.accuracy:.0%} right, probabilities off by "
            f"{expected.ece:.1%}; {expected.told()}"
        )
    else:
        lines.append("  probabilities are not calibrated: metagrad train --resume the run, which ends by doing it")
    return lines
