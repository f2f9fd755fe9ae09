"""How far the probabilities of classifiers that come of a run can be trusted: what was found, kept beside the run."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metagrad.data.features import fit_images
from metagrad.errors import MetagradError, in_short
from metagrad.strict_json import is_count, is_number

if TYPE_CHECKING:
    from metagrad.experiment.run import Run

CALIBRATION = "calibration.json"
_SIDE = 84  # pixels: larger images are made as small before they are compared
_AT_ONCE = 64  # images
FACTS = ("brightness", "contrast", "detail")
_OLD_THRESHOLD = "strangeness"  # what metagrad 0.1 called it
_MAYBE = ("unknown_rejected", "auroc")  # not known where no class is left that a task is not told of


@dataclass(frozen=True)
class Size:
    """What validation tasks of one number of classes and of images a class came to, each image by itself.

    Attributes
    ----------
    ways, shots:
        classes, and images of each that were adapted to.
    temperature:
        what logits are divided by.
    ece_before, ece:
        expected calibration error, as a fraction, without it and with it.
    accuracy:
        fraction that was right.
    ood_threshold:
        the threshold of ``--reject``: an image whose ``ood_score`` is above it is like none of the classes.
    known_rejected, unknown_rejected:
        fractions of images of known and of unknown classes that are above it; ``None`` where there were no unknown.
    auroc:
        probability that an image of an unknown class has a greater ``ood_score`` than one of a known class.
    """

    ways: int
    shots: int
    temperature: float
    ece_before: float
    ece: float
    accuracy: float
    ood_threshold: float
    known_rejected: float
    unknown_rejected: float | None
    auroc: float | None

    def told(self) -> str:
        """Say what ``--reject`` does to tasks of this size."""
        found = "" if self.unknown_rejected is None else f"{self.unknown_rejected:.0%} of pictures of other things and "
        return f"--reject takes {found}{self.known_rejected:.0%} of those of its own classes for unknown"


@dataclass(frozen=True)
class Calibration:
    """What was measured on validation classes.

    Attributes
    ----------
    of:
        what the tasks were made of, in a few words.
    protocol:
        data set, split, and how it was asked.
    sizes:
        the first is the run's own; all pairs of the numbers of classes and of images that were tried.
    pixels:
        ``mean`` and ``std`` over training images of what :func:`pixel_statistics` sees.
    """

    of: str
    protocol: str
    sizes: tuple[Size, ...]
    pixels: dict[str, list[float]]

    @property
    def own(self) -> Size:
        """Tasks of the size that the run was trained on."""
        return self.sizes[0]

    def at(self, ways: int, shots: int) -> Size:
        """Return what to expect of tasks of another size: between those measured, linear in the logarithms of both.

        Beyond the largest and the smallest it is that of these, and says so in its ``ways`` and ``shots``.
        """
        ways = sorted((min(s.ways for s in self.sizes), ways, max(s.ways for s in self.sizes)))[1]
        shots = sorted((min(s.shots for s in self.sizes), shots, max(s.shots for s in self.sizes)))[1]
        names = [field.name for field in dataclasses.fields(Size)][2:]
        found = {name: self._between(name, ways, shots) for name in names}
        return Size(ways, shots, **found)

    def _between(self, name: str, ways: int, shots: int) -> Any:
        table = {(size.ways, size.shots): getattr(size, name) for size in self.sizes}
        if None in table.values():
            return None
        rows, columns = (sorted({pair[axis] for pair in table}) for axis in (0, 1))
        if name == "temperature":  # a ratio: 5 times from one size to another is seen
            table = {pair: math.log(value) for pair, value in table.items()}
        along = [np.interp(math.log(shots), np.log(columns), [table[row, one] for one in columns]) for row in rows]
        found = float(np.interp(math.log(ways), np.log(rows), along))
        return math.exp(found) if name == "temperature" else found

    def as_json(self) -> dict[str, Any]:
        """Return what :meth:`from_json` reads."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, found: Any) -> Calibration:
        """Return what :meth:`as_json` gave.

        Raises
        ------
        ValueError
            if it cannot be that.
        """
        try:
            sizes = tuple(_sound(size) for size in found["sizes"])
            pixels = {name: [found["pixels"][name][place] for place in range(len(FACTS))] for name in ("mean", "std")}
            words = found["of"], found["protocol"]
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"something is missing: {error}") from error
        pairs = {(size.ways, size.shots) for size in sizes}
        grid = len({ways for ways, _ in pairs}) * len({shots for _, shots in pairs})
        if not sizes or len(pairs) < len(sizes) or len(pairs) != grid:
            raise ValueError("sizes are missing")
        if not all(is_number(one) for row in pixels.values() for one in row):
            raise ValueError("pixels are no numbers")
        if not all(isinstance(word, str) for word in words):
            raise ValueError("the protocol is no text")
        return cls(*words, sizes, pixels)

    @classmethod
    def read(cls, path: Path) -> Calibration:
        """Return what a file that comes with metagrad holds."""
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def of_run(cls, run: Run, weights: str | None) -> Calibration | None:
        """Return the calibration of a run's weights, as :meth:`Run.read_measured` reads it."""
        found = run.read_measured(CALIBRATION, weights)
        try:
            return None if found is None else cls.from_json(found)
        except ValueError as error:
            raise MetagradError(
                f"{run.folder / CALIBRATION} is damaged, or of another version ({in_short(error)}): remove it; "
                f"metagrad train --resume {run.folder} makes it anew"
            ) from error


def _sound(facts: dict[str, Any]) -> Size:
    """Return the facts as what they should be.

    Raises
    ------
    ValueError, TypeError
        if they are something else.
    """
    facts = {"ood_threshold" if name == _OLD_THRESHOLD else name: value for name, value in facts.items()}
    for name, value in facts.items():
        if not is_number(value) and not (value is None and name in _MAYBE):
            raise ValueError(f"{name} is no number")
    size = Size(**facts)
    shares = (size.accuracy, size.ece, size.ece_before, size.known_rejected, size.unknown_rejected, size.auroc)
    if not all(share is None or 0 <= share <= 1 for share in shares):
        raise ValueError("a fraction is not between 0 and 1")
    counts = is_count(size.ways, 2) and is_count(size.shots, 1)
    if not counts or not 1e-6 < size.temperature < 1e6 or size.ood_threshold < 0:
        raise ValueError("a size cannot be so")
    return size


def pixels(images: Tensor) -> dict[str, list[float]]:
    """Return mean and standard deviation over images uint8 ``(N, C, H, W)`` of what :func:`pixel_statistics` sees."""
    seen = pixel_statistics(images)
    return {"mean": seen.mean(0).tolist(), "std": seen.std(0).tolist()}


def pixel_statistics(images: Tensor) -> Tensor:
    """Return each image's mean, standard deviation and mean step from pixel to pixel, ``(N, 3)``, in [0, 1]."""
    if len(images) > _AT_ONCE:
        return torch.cat([pixel_statistics(some) for some in images.split(_AT_ONCE)])
    x = images.float() / 255
    if x.shape[-1] > _SIDE:
        x = fit_images(x, _SIDE)
    detail = (x.diff(dim=-1).abs().mean((1, 2, 3)) + x.diff(dim=-2).abs().mean((1, 2, 3))) / 2
    return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3)), detail], dim=1)


def farthest_statistic(images: Tensor, seen: dict[str, list[float]]) -> tuple[float, str]:
    """Return how far the images are from those of training, in their standard deviations, and say in what."""
    mean, std = torch.tensor(seen["mean"]), torch.tensor(seen["std"])
    ours = pixel_statistics(images).median(0).values
    off = (ours - mean).abs() / std.clamp(min=1e-6)
    worst = int(off.argmax())
    return float(off[worst]), f"{FACTS[worst]} {ours[worst]:.2f}, there {mean[worst]:.2f} ± {std[worst]:.2f}"
