"""Episodes: T few-shot tasks drawn at once, on the device that holds the images."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from metagrad.data.classes import ImageClasses
from metagrad.errors import MetagradError
from metagrad.fewshot.tasks import Batch, Tasks


@dataclass(frozen=True, kw_only=True)
class EpisodeSampler:
    """Draws ``ways`` classes a task, and of each ``shots`` support and ``queries`` query images, none twice.

    A class is in a task at most once, also when rotations are on: two turns of one symmetric letter would be the
    same picture under two labels.

    Parameters
    ----------
    classes:
        the images to draw from.
    ways, shots, queries:
        classes a task; support and query images a class.
    rotations:
        turn every drawn class by a random multiple of 90 degrees, the same for its support and query, so that
        turned classes are classes of their own. Needs square images.

    Raises
    ------
    MetagradError
        if there are fewer classes than ``ways``, or a class has fewer images than ``shots + queries``.
    """

    classes: ImageClasses
    ways: int
    shots: int
    queries: int
    rotations: bool = False

    def __post_init__(self) -> None:
        for name, least in (("ways", 2), ("shots", 1), ("queries", 1)):
            if getattr(self, name) < least:
                raise MetagradError(f"{name} must be at least {least}, got {getattr(self, name)}")
        available = len(self.classes.names)
        if self.ways > available:
            raise MetagradError(f"{self.ways} ways, but this split has {available} classes: lower --ways")
        fewest = int(self.classes.counts.min())
        if self.shots + self.queries > fewest:
            name = self.classes.names[int(self.classes.counts.argmin())]
            raise MetagradError(
                f"{self.shots} shots + {self.queries} queries, but class {name} has {fewest} images: "
                "lower --shots or --queries"
            )
        height, width = self.classes.images.shape[-2:]
        if self.rotations and height != width:
            raise MetagradError(f"rotations need square images, these are {height}×{width}")

    @cached_property
    def _most(self) -> int:
        """Images of the largest class; read once, since a GPU would be waited for."""
        return int(self.classes.counts.max())

    def __call__(self, num_tasks: int, *, generator: torch.Generator) -> Tasks:
        """Draw ``num_tasks`` tasks.

        Returns
        -------
        Tasks
            images are float32 in [0, 1], ``(T, ways · shots, C, H, W)`` and ``(T, ways · queries, C, H, W)``.
        """
        images, counts = self.classes.images, self.classes.counts
        device = images.device
        each = self.shots + self.queries
        chosen = _distinct(len(counts), (num_tasks,), self.ways, generator, device)
        spots = _distinct(self._most, (num_tasks, self.ways), each, generator, device, counts[chosen])
        first = self.classes.first[chosen]
        picked = images[first[..., None] + spots]  # (T, ways, each, C, H, W)
        if self.rotations:
            turns = torch.randint(4, (num_tasks, self.ways), generator=generator, device=device)
            picked = _turn(picked, turns)
        labels = torch.arange(self.ways, device=device).repeat(num_tasks, 1)
        return Tasks(
            Batch(_flat(picked[:, :, : self.shots]), labels.repeat_interleave(self.shots, dim=1)),
            Batch(_flat(picked[:, :, self.shots :]), labels.repeat_interleave(self.queries, dim=1)),
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


def _turn(picked: Tensor, turns: Tensor) -> Tensor:
    """Rotate the images of each (task, class) by ``turns`` quarter turns, by one gather of pixels."""
    side = picked.shape[-1]
    grid = torch.arange(side * side, device=picked.device).view(side, side)
    orders = torch.stack([grid.rot90(k).flatten() for k in range(4)])[turns]  # (T, ways, pixels)
    pixels = picked.flatten(-2)
    return pixels.gather(-1, orders[:, :, None, None].expand_as(pixels)).view_as(picked)


def _flat(images: Tensor) -> Tensor:
    return images.flatten(1, 2).float().div_(255)
