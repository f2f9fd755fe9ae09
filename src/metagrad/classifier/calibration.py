"""How far the probabilities of classifiers adapted from a run can be trusted: measurements, kept beside the run."""

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
_MAYBE = ("unknown_rejected", "auroc")  # missing where no class is left over to serve as unknown


@dataclass(frozen=True)
class Size:
    """Measurements on validation tasks of one size (classes, images a class), each image classified by itself.

    Attributes
    ----------
    ways, shots:
        number of classes, and of support images of each.
    temperature:
        divisor of the logits.
    ece_before, ece:
        expected calibration error, as a fraction, before and after temperature scaling.
    accuracy:
        fraction of query images classified correctly.
    ood_threshold:
        the threshold of ``--reject``: an image with a greater ``ood_score`` is labelled unknown.
    known_rejected, unknown_rejected:
        fractions of images of known and of unknown classes that are rejected; the second is ``None`` where no class
        was left over to serve as unknown.
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

    def about_reject(self) -> str:
        """Return in words how often ``--reject`` is right and wrong on tasks of this size."""
        wrongly = f"wrongly rejects {100 * self.known_rejected:.0f} % of pictures of these classes"
        if self.unknown_rejected is None:
            return f"with --reject, metagrad predict {wrongly}"
        found = f"finds {100 * self.unknown_rejected:.0f} % of pictures of other classes"
        return f"with --reject, metagrad predict {found}, and {wrongly}"


@dataclass(frozen=True)
class Calibration:
    """What was measured on validation classes.

    Attributes
    ----------
    of:
        the classes of the tasks, in a few words.
    protocol:
        data set, split, number of queries and tasks.
    sizes:
        one entry for each pair of a number of classes and of images a class; the first is the run's own.
    pixels:
        ``mean`` and ``std`` of :func:`pixel_statistics` over the training images.
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
        """Return what to expect of tasks of another size: interpolated linearly in the logarithms of ways and shots.

        A size outside the measured range is clamped to it; ``ways`` and ``shots`` of the result are the clamped ones.
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
        if name == "temperature":  # a ratio, so its logarithm; it varies up to five times between sizes
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
            raise ValueError(f"a field is missing: {error}") from error
        pairs = {(size.ways, size.shots) for size in sizes}
        grid = len({ways for ways, _ in pairs}) * len({shots for _, shots in pairs})
        if not sizes or len(pairs) < len(sizes) or len(pairs) != grid:
            raise ValueError("sizes are missing")
        if not all(is_number(one) for row in pixels.values() for one in row):
            raise ValueError("pixels hold something other than numbers")
        if not all(isinstance(word, str) for word in words):
            raise ValueError("the protocol is not text")
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
                f"metagrad train --resume {run.folder} writes a new one"
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
            raise ValueError(f"{name} is not a number")
    size = Size(**facts)
    shares = (size.accuracy, size.ece, size.ece_before, size.known_rejected, size.unknown_rejected, size.auroc)
    if not all(share is None or 0 <= share <= 1 for share in shares):
        raise ValueError("a fraction is not between 0 and 1")
    counts = is_count(size.ways, 2) and is_count(size.shots, 1)
    if not counts or not 1e-6 < size.temperature < 1e6 or size.ood_threshold < 0:
        raise ValueError("a size is out of range")
    return size


def pixels(images: Tensor) -> dict[str, list[float]]:
    """Return mean and standard deviation of :func:`pixel_statistics` over images uint8 ``(N, C, H, W)``."""
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
    """Return how many standard deviations the images differ from the training images, and in which statistic."""
    mean, std = torch.tensor(seen["mean"]), torch.tensor(seen["std"])
    ours = pixel_statistics(images).median(0).values
    off = (ours - mean).abs() / std.clamp(min=1e-6)
    worst = int(off.argmax())
    return float(off[worst]), f"{FACTS[worst]} {ours[worst]:.2f}, training images {mean[worst]:.2f} ± {std[worst]:.2f}"
