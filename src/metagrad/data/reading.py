"""One picture as the images of a data set are: what a network was trained on is what it should be shown."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from metagrad.data.pictures import opened, square

Kind = Literal["strokes", "photograph"]
_PALE = 160  # the least that the darkest pixel of any drawing of Omniglot has
_FAINT = 16  # grey values between paper and ink below which nothing is drawn


@dataclass(frozen=True)
class Reading:
    """How a picture file becomes an image for a network.

    Attributes
    ----------
    kind:
        ``"photograph"``: RGB, the largest square in the middle. ``"strokes"``: grey, ink 255 on paper 0 whichever was
        the darker one, the whole picture within a square.
    size:
        height and width of the image, pixels.
    """

    kind: Kind
    size: int

    @classmethod
    def of(cls, dataset: str, image_size: int | None) -> Reading:
        """Return how the pictures of a data set are read, by its name and, where it has several, their size."""
        if dataset in ("omniglot", "glyphs"):
            return cls("strokes", image_size or 28)
        return cls("photograph", image_size or 32)

    @property
    def channels(self) -> int:
        """Channels of the image."""
        return 1 if self.kind == "strokes" else 3

    def __call__(self, data: bytes) -> np.ndarray:
        """Return uint8 ``(channels, size, size)`` of a picture file's contents.

        Raises
        ------
        ValueError
            for a picture of too many pixels, or one of strokes with nothing drawn on it; Pillow raises what it likes
            for a damaged one.
        """
        with opened(io.BytesIO(data), at_least=2 * self.size if self.kind == "photograph" else None) as image:
            return self.picture(image)

    def picture(self, image: Image.Image) -> np.ndarray:
        """Return uint8 ``(channels, size, size)`` of a picture; raise as a call does."""
        return square(image, self.size) if self.kind == "photograph" else _strokes(image, self.size)


def _strokes(image: Image.Image, size: int) -> np.ndarray:
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    paper, least, most = float(np.median(border)), grey.min(), grey.max()
    ink = least if paper - least >= most - paper else most
    if abs(paper - ink) < _FAINT:
        raise ValueError("nothing is drawn on it")
    drawn = ((paper - grey) / (paper - ink) * 255).clip(0, 255).round().astype(np.uint8)
    side = max(drawn.shape)
    whole = ImageOps.pad(Image.fromarray(drawn), (side, side), color=0)
    small = np.asarray(whole.resize((size, size), Image.Resampling.LANCZOS))
    if small.max() < _PALE:  # a thin pen on a large page
        small = (small * (255.0 / small.max())).round().astype(np.uint8)
    return small[None].copy()  # Pillow's own memory is not for writing
