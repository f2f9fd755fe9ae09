"""One picture as the images of a data set are: what a network was trained on is what it should be shown."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from PIL import Image

from metagrad.data import DATASETS
from metagrad.data.decoding import as_rgb, opened, square

T = TypeVar("T")
Kind = Literal["strokes", "photograph"]
COLOURED = 25.0  # of 255: drawings, in blue ink and yellow light too, have differences up to 12, photographs about 55
FILL = 2 / 3  # of the drawings that networks learn from, half take 0.54 to 0.75
_PALE = 160  # the least that the darkest pixel of any drawing of Omniglot has
_LONGEST = 20  # times its width
_FAINT = 16  # grey values between paper and ink below which nothing is drawn
_SPECKS = 0.01  # of the ink, at each end, does not count when it is measured


class Blank(ValueError):
    """Nothing is drawn on a picture of strokes."""

    def __init__(self) -> None:
        super().__init__("nothing is drawn on it")


@dataclass(frozen=True)
class Reading:
    """How a picture file becomes an image for a network.

    Attributes
    ----------
    kind:
        ``"photograph"``: RGB, the largest square in the middle. ``"strokes"``: grey, ink 255 on paper 0 whichever was
        the darker one, the square in whose middle is what is drawn.
    size:
        height and width of the image, pixels.
    fill:
        of strokes: what part of the square is drawn on, in the longer direction.
    """

    kind: Kind
    size: int
    fill: float = FILL

    @classmethod
    def of(cls, dataset: str, image_size: int | None) -> Reading:
        """Return how the pictures of a data set are read, by its name and, where it has several, their size."""
        if dataset in DATASETS and DATASETS[dataset].strokes:
            return cls("strokes", image_size or 28, DATASETS[dataset].fill or FILL)
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
        return self.told_apart(data)[0]

    def told_apart(self, data: bytes) -> tuple[np.ndarray, bytes]:
        """Return the same, and a digest by which two pictures are the same one; raise as a call does.

        A drawing's is of the page, before what is drawn is brought into the middle: a hyphen is no underscore.
        """
        at_least = 2 * self.size if self.kind == "photograph" else 10 * self.size

        def shown(behind: str) -> tuple[np.ndarray, bytes]:
            with opened(io.BytesIO(data), at_least=at_least, behind=behind) as image:
                if self.kind == "photograph":
                    found = self.picture(image)
                    return found, hashlib.sha256(found.tobytes()).digest()
                page = _page(image, self.size)
                return self.picture(page), hashlib.sha256(f"{page.size}".encode() + page.tobytes()).digest()

        return self._on_paper(shown)

    def pixels(self, picture: np.ndarray) -> np.ndarray:
        """Return the same of a picture that is an array, uint8 ``(H, W)``, ``(H, W, 3)`` or ``(H, W, 4)``."""
        image = Image.fromarray(picture)
        return self._on_paper(lambda behind: self.picture(as_rgb(image, behind)))

    def _on_paper(self, read: Callable[[str], T]) -> T:
        try:
            return read("white")
        except Blank:  # light ink on nothing at all shows on black
            return read("black")

    def colours(self, data: bytes) -> float:
        """Return how much the colours of a picture differ from place to place, in grey values of 255.

        Of two differences between channels, the greater range that eight tenths of the picture lie in: paper has one
        colour, and ink takes less than a tenth.
        """
        with opened(io.BytesIO(data), at_least=64) as image:
            pixels = np.asarray(image.reduce(max(1, max(image.size) // 64)), dtype=np.float64)
        red, green, blue = np.moveaxis(pixels, -1, 0)
        return max(float(np.ptp(np.quantile(part, (0.1, 0.9)))) for part in (red - green, (red + green) / 2 - blue))

    def picture(self, image: Image.Image) -> np.ndarray:
        """Return uint8 ``(channels, size, size)`` of a picture; raise as a call does."""
        return square(image, self.size) if self.kind == "photograph" else _strokes(image, self.size, self.fill)


def _page(image: Image.Image, size: int) -> Image.Image:
    if max(image.size) > _LONGEST * min(image.size):
        raise ValueError(f"it has {image.width}×{image.height} pixels: too long for a drawing")
    return image.reduce(max(1, max(image.size) // (20 * size)))  # what is a 20th of the page high is left whole


def _strokes(image: Image.Image, size: int, fill: float) -> np.ndarray:
    image = _page(image, size)
    grey = np.asarray(image.convert("L"), dtype=np.float64)
    ink = _lit(grey) if _unevenly_lit(grey) else None
    ink = _flat(grey) if ink is None else ink
    drawn = (ink * 255).clip(0, 255).round().astype(np.uint8)
    small = np.asarray(framed(Image.fromarray(drawn), fill).resize((size, size), Image.Resampling.LANCZOS))
    if not small.max():
        raise Blank
    if small.max() < _PALE:  # a thin pen on a large page
        small = (small * (255.0 / small.max())).round().astype(np.uint8)
    return small[None].copy()  # Pillow's own memory is not for writing


def framed(drawn: Image.Image, fill: float) -> Image.Image:
    """Return the square around what is drawn, which fills this part of it; beyond the picture there is paper.

    People draw large or small, here or there on a page. Of characters that fill 0.5 to 0.9 of it, 89 % are classified
    correctly; without this 34 % (docs/results-diary.md).

    Parameters
    ----------
    drawn:
        grey, ink 255 on 0.
    fill:
        in the longer direction.

    Raises
    ------
    Blank
        where nothing is drawn.
    """
    factor = max(1, max(drawn.size) // 128)
    coarse = np.asarray(drawn.reduce(factor), dtype=np.float64)  # the noise of a camera is averaged away
    coarse = coarse * (coarse > coarse.max() / 4)
    if not coarse.any():
        raise Blank
    ends = []
    for axis in (0, 1):  # x, y
        upto = coarse.sum(axis).cumsum()
        upto /= upto[-1]
        ends.append((int((upto <= _SPECKS).sum()) * factor, (int((upto < 1 - _SPECKS).sum()) + 1) * factor))
    side = max(1, round(max(high - low for low, high in ends) / fill))
    left, top = ((low + high - side) // 2 for low, high in ends)
    return drawn.crop((left, top, left + side, top + side))  # Pillow fills with 0


def _border(grey: np.ndarray) -> np.ndarray:
    return np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])


def _flat(grey: np.ndarray) -> np.ndarray:
    """Return how much ink there is on paper that is as bright everywhere: 0 none, 1 the most."""
    paper, least, most = float(np.median(_border(grey))), grey.min(), grey.max()
    ink = least if paper - least >= most - paper else most
    if abs(paper - ink) < _FAINT:
        raise Blank
    return (paper - grey) / (paper - ink)


def _unevenly_lit(grey: np.ndarray) -> bool:
    """Say whether the paper, which most of the border is, is brighter here than there."""
    low, high = np.quantile(_border(grey), (0.2, 0.8))
    return bool(high - low > _FAINT)


def _lit(grey: np.ndarray) -> np.ndarray | None:
    """Return the same of a photograph of paper, with a shadow on it: its brightness is a smooth surface.

    The surface is a polynomial of the second degree, fitted to pixels that are not ink: those near it. ``None`` where
    it fits badly: then it is ink that crosses the border.
    """
    height, width = grey.shape
    thin = grey[:: -(-height // 64), :: -(-width // 64)]
    powers = np.stack([_surface(one, thin.shape).ravel() for one in np.eye(6)], axis=1)
    near, noise = np.ones(thin.shape, bool), 0.0
    for _ in range(8):
        some = powers[near.ravel()]
        weights = np.linalg.solve(some.T @ some + 1e-9 * np.eye(6), some.T @ thin[near])  # lstsq is far slower
        surface = (powers @ weights).reshape(thin.shape)
        noise = 1.5 * float(np.median(np.abs(thin - surface)[near]))
        near = np.abs(thin - surface) < max(2.5 * noise, 4.0)
    off = _surface(weights, grey.shape) - grey
    low, high = np.quantile(off, (0.0005, 0.9995))  # of a small drawing on a large page there is little
    sign, most = (1, high) if high >= -low else (-1, -low)
    floor = 2.5 * noise  # of the camera
    if most - floor < _FAINT and noise > _FAINT / 2:
        return None
    if most - floor < _FAINT:
        raise Blank
    return (sign * off - floor) / (most - floor)


def _surface(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a polynomial of the second degree at every pixel; x and y go from -1 to 1."""
    y, x = (np.linspace(-1, 1, side) for side in shape)
    one, a, b, aa, ab, bb = weights
    return (one + a * x + aa * x * x)[None] + (b * y + bb * y * y)[:, None] + ab * np.outer(y, x)
