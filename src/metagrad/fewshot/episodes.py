"""Episodes: T few-shot tasks drawn at once, on the device that holds the examples."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from metagrad import tree
from metagrad.data import rows
from metagrad.data.classes import Classes, ImageClasses
from metagrad.errors import MetagradError
from metagrad.fewshot.tasks import Batch, Tasks
from metagrad.fewshot.variation import Variation
from metagrad.scalars import whole


@dataclass(frozen=True, kw_only=True)
class EpisodeSampler:
    """Draws ``ways`` classes a task, and of each ``shots`` support and ``queries`` query examples, none twice.

    A class is in a task at most once, also when rotations are on: two turns of one symmetric letter would be the
    same picture under two labels. It is a :class:`TaskSource`.

    Parameters
    ----------
    classes:
        the examples to draw from.
    ways, shots, queries:
        classes a task; support and query examples a class. ``ways`` and ``shots`` may be a range such as ``(5, 20)``:
        each call draws a number from it, both ends included, and all tasks of the call have that number.
    rotations:
        turn every drawn class by a random multiple of 90 degrees, the same for its support and query, so that
        turned classes are classes of their own. Needs square images ``(N, C, H, W)``.
    variation:
        vary every drawn image by itself: of drawings, uint8 images with ink 255 on 0. ``None``: leave them as they are.

    Raises
    ------
    MetagradError
        if there are fewer classes than ``ways``, or a class has fewer examples than ``shots + queries``.

    Example
    -------
    >>> import torch
    >>> from metagrad.data import Classes, ImageClasses
    >>> features = Classes.from_arrays(torch.randn(60, 8), torch.arange(60) % 6)
    >>> sampler = EpisodeSampler(classes=features, ways=5, shots=1, queries=2)
    >>> tasks = sampler(4, generator=torch.Generator().manual_seed(0))
    >>> tasks.support.x.shape, tasks.query.x.shape
    (torch.Size([4, 5, 8]), torch.Size([4, 10, 8]))
    """

    classes: Classes
    ways: int | tuple[int, int]
    shots: int | tuple[int, int]
    queries: int
    rotations: bool = False
    variation: Variation | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.classes, Classes):
            raise MetagradError(
                f"classes must be Classes, got {type(self.classes).__name__}: Classes.from_arrays(x, y) makes them, "
                "and a Dataset has them as .train, .val and .test"
            )
        for name, least in (("ways", 2), ("shots", 1)):
            object.__setattr__(self, name, _number_or_range(name, getattr(self, name), least))
        object.__setattr__(self, "queries", whole("queries", self.queries, 1))
        ways, shots = _upper(self.ways), _upper(self.shots)
        available = len(self.classes.names)
        if ways > available:
            raise MetagradError(f"{ways} ways, but this split has {available} classes: lower ways")
        fewest = int(self.classes.counts.min())
        if shots + self.queries > fewest:
            name = self.classes.names[int(self.classes.counts.argmin())]
            what = "images" if isinstance(self.classes, ImageClasses) else "examples"
            raise MetagradError(
                f"{shots} shots + {self.queries} queries, but class {name} has {fewest} {what}: lower shots or "
                f"queries, or leave such classes out with classes.with_at_least({shots + self.queries})"
            )
        if self.rotations:
            self._require_square("rotations need", "rotations")
        if self.variation is not None:
            self._require_square("variation needs", "variation")
        if self.variation is not None and not isinstance(self.classes, ImageClasses):
            raise MetagradError("variation needs ImageClasses, uint8 with ink 255 on 0: leave it out for other data")

    def _require_square(self, wants: str, name: str) -> None:
        shape = self.classes.data.shape if isinstance(self.classes.data, Tensor) else ()
        if len(shape) != 4:
            raise MetagradError(f"{wants} images (N, C, H, W): leave {name} out for other data")
        if shape[-2] != shape[-1]:
            raise MetagradError(f"{wants} square images, these are {shape[-2]}×{shape[-1]}")

    @cached_property
    def _largest(self) -> int:
        """Examples of the largest class; read once, as each read waits for the GPU."""
        return int(self.classes.counts.max())

    def __call__(self, num_tasks: int, *, generator: torch.Generator) -> Tasks:
        """Draw ``num_tasks`` tasks, on the device that holds the examples.

        Parameters
        ----------
        generator:
            on the same device. Its state decides the tasks.

        Returns
        -------
        Tasks
            support ``(T, ways · shots, ...)``, query ``(T, ways · queries, ...)``, and ``classes`` ``(T, ways)`` int64:
            task t calls the class ``classes.names[tasks.classes[t, k]]`` ``k``, turned or not. uint8 images
            ``(N, C, H, W)`` become float32 in [0, 1]; everything else keeps its type.

        Raises
        ------
        MetagradError
            for fewer than one task, or a generator on another device.
        """
        num_tasks, device, counts = whole("num_tasks", num_tasks, 1), self.classes.device, self.classes.counts
        if generator.device.type != device.type:
            raise MetagradError(
                f"the generator is on {generator.device}, the examples on {device}: make it with "
                f"torch.Generator({str(device)!r})"
            )
        ways, shots = _draw_from(self.ways, generator), _draw_from(self.shots, generator)
        chosen = _distinct(len(counts), (num_tasks,), ways, generator, device)
        each = shots + self.queries
        places = _distinct(self._largest, (num_tasks, ways), each, generator, device, counts[chosen])
        places = places + self.classes.first[chosen][..., None]
        examples = tree.map_tensors(lambda leaf: leaf[places], self.classes.data)  # (T, ways, each, ...)
        if self.rotations:
            examples = rotated(examples, generator)
        if self.variation is not None:
            examples = self.variation(examples.float().div_(255), generator=generator)
        return labelled(examples, chosen, shots)


def labelled(examples: Any, classes: Tensor, shots: int) -> Tasks:
    """Return tasks of examples ``(T, ways, shots + queries, ...)`` and the numbers of their classes, ``(T, ways)``."""
    num_tasks, ways = classes.shape
    each = rows.length(tree.map_tensors(lambda leaf: leaf[0, 0], examples))
    labels = torch.arange(ways, device=classes.device).repeat(num_tasks, 1)

    def batch(part: slice, of_each: int) -> Batch:
        x = tree.map_tensors(lambda leaf: _flat(leaf[:, :, part]), examples)
        return Batch(x, labels.repeat_interleave(of_each, dim=1))

    return Tasks(batch(slice(0, shots), shots), batch(slice(shots, each), each - shots), classes)


def rotated(examples: Tensor, generator: torch.Generator) -> Tensor:
    """Turn the images of each task's classes, ``(T, ways, ...)``, by random multiples of 90 degrees."""
    turns = torch.randint(4, examples.shape[:2], generator=generator, device=examples.device)
    return _rotate(examples, turns)


def _number_or_range(name: str, value: Any, least: int) -> int | tuple[int, int]:
    if not isinstance(value, tuple | list):
        return whole(name, value, least)
    if len(value) != 2:
        raise MetagradError(f"{name} must be a whole number or a range (least, most), got {value!r}")
    low, high = (whole(f"both ends of {name}", end, least) for end in value)
    if low > high:
        raise MetagradError(f"{name} must be a range (least, most), got {value!r}: exchange the two")
    return low, high


def _upper(number_or_range: int | tuple[int, int]) -> int:
    return number_or_range if isinstance(number_or_range, int) else number_or_range[1]


def _draw_from(number_or_range: int | tuple[int, int], generator: torch.Generator) -> int:
    """Draw from a range; a number costs the generator nothing."""
    if isinstance(number_or_range, int):
        return number_or_range
    return int(
        torch.randint(number_or_range[0], number_or_range[1] + 1, (), generator=generator, device=generator.device)
    )


def _distinct(
    options: int,
    shape: tuple[int, ...],
    k: int,
    generator: torch.Generator,
    device: torch.device,
    limit: Tensor | None = None,
) -> Tensor:
    """Draw ``k`` different integers below ``limit`` (default ``options``) for every cell of ``shape``."""
    # Of one dtype whatever torch's default is: a seed means the same draws.
    keys = torch.rand(*shape, options, generator=generator, device=device, dtype=torch.float32)
    if limit is not None:
        keys.masked_fill_(torch.arange(options, device=device) >= limit[..., None], -1.0)
    return keys.topk(k, dim=-1).indices


def _rotate(examples: Tensor, turns: Tensor) -> Tensor:
    """Rotate the images of each (task, class) by ``turns`` quarter turns, by one gather of pixels."""
    side = examples.shape[-1]
    grid = torch.arange(side * side, device=examples.device).view(side, side)
    orders = torch.stack([grid.rot90(k).flatten() for k in range(4)])[turns]  # (T, ways, pixels)
    pixels = examples.flatten(-2)
    return pixels.gather(-1, orders[:, :, None, None].expand_as(pixels)).view_as(examples)


def _flat(examples: Tensor) -> Tensor:
    """Put the examples of a task's classes in one row; uint8 images become float32 in [0, 1]."""
    rows = examples.flatten(1, 2)
    return rows.float().div_(255) if rows.dtype == torch.uint8 and rows.dim() == 5 else rows
