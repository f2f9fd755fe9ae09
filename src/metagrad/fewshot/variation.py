"""Small differences between drawings of one kind: where they lie, how they lean, how thick the pen is."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from metagrad.errors import MetagradError
from metagrad.scalars import number

_DRAWN = 5  # numbers for each image: turn, shear, shift to the right and down, thickness
_MOST = 1e4


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How far drawings are varied, each image by itself; uniform up to these amounts, either way.

    Drawings have ink 1 on paper 0: what is moved beyond the edge is lost, and paper comes in from there.

    Parameters
    ----------
    shift:
        pixels, to the right and down.
    turn:
        degrees.
    shear:
        sideways slant, as a tangent.
    thickness:
        how far strokes become what a maximum (or a minimum) over 3×3 pixels makes of them: 0 leaves them, 1 adds (or
        takes) a pixel at each edge.

    Raises
    ------
    MetagradError
        for an amount that is no number, negative, or above 10,000; for a thickness above 1.

    Example
    -------
    >>> import torch
    >>> vary = Variation(shift=2.0, turn=0.0, shear=0.0, thickness=0.0)
    >>> vary(torch.zeros(3, 1, 28, 28), generator=torch.Generator().manual_seed(0)).shape
    torch.Size([3, 1, 28, 28])
    """

    shift: float = 2.0
    turn: float = 10.0
    shear: float = 0.15
    thickness: float = 0.5

    def __post_init__(self) -> None:
        for one in fields(self):
            value = number(given := getattr(self, one.name))
            most = 1.0 if one.name == "thickness" else _MOST
            if value is None or not 0 <= value <= most:
                raise MetagradError(f"{one.name} must be a number from 0 to {most:g}, got {given!r}")
            object.__setattr__(self, one.name, float(value))

    def __call__(self, images: Tensor, *, generator: torch.Generator) -> Tensor:
        """Return varied images.

        Parameters
        ----------
        images:
            float ``(..., C, H, W)`` in [0, 1], ink 1.
        generator:
            on the same device; every image takes five numbers from it.
        """
        flat = images.flatten(0, -4)
        # Of one dtype whatever torch's default is: a seed means the same draws.
        drawn = torch.rand(len(flat), _DRAWN, generator=generator, device=images.device, dtype=torch.float32)
        return self._varied(flat, drawn).view_as(images)

    def views(self, images: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
        """Return ``count`` views ``(count, ..., C, H, W)``: in each, all images are varied alike.

        So a view of an image does not depend on which other images there are.

        Parameters
        ----------
        images, generator:
            as above; each view takes five numbers.
        """
        flat = images.flatten(0, -4)
        drawn = torch.rand(count, _DRAWN, generator=generator, device=images.device, dtype=torch.float32)
        return torch.stack([self._varied(flat, one.expand(len(flat), -1)).view_as(images) for one in drawn])

    def _varied(self, flat: Tensor, drawn: Tensor) -> Tensor:
        """Vary images ``(N, C, H, W)`` by numbers from 0 to 1, ``(N, 5)``."""
        turn, shear, right, down, pen = (2 * drawn - 1).to(flat.dtype).unbind(1)
        moved = F.grid_sample(flat, self._grid(flat, turn, shear, right, down), align_corners=False)
        pen = self.thickness * pen[:, None, None, None]
        thick = F.max_pool2d(moved, 3, stride=1, padding=1) - moved
        thin = -F.max_pool2d(-moved, 3, stride=1, padding=1) - moved
        return moved + pen.clamp(min=0) * thick + (-pen).clamp(min=0) * thin

    def _grid(self, images: Tensor, turn: Tensor, shear: Tensor, right: Tensor, down: Tensor) -> Tensor:
        """Return where each pixel comes from, as ``grid_sample`` wants it: coordinates from -1 to 1."""
        angle, slant = turn * math.radians(self.turn), shear * self.shear
        cos, sin = angle.cos(), angle.sin()
        linear = torch.stack([cos, cos * slant + sin, -sin, cos - sin * slant], 1).unflatten(1, (2, 2))
        shift = torch.stack([right, down], 1)[..., None] * (2 * self.shift / images.shape[-1])
        # Shifted last, so that the rotation does not change the shift.
        affine = torch.cat([linear, -linear @ shift], 2)
        return F.affine_grid(affine, list(images.shape), align_corners=False)
