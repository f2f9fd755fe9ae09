"""One picture file as pixels, within bounds: of one picture, and of all that are decoded at the same time."""

from __future__ import annotations

import ctypes
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
MOST_PIXELS = 100_000_000  # of one picture: 100 megapixels are 300 MB decoded, more is not a photograph


class Room:
    """Room for the pixels that all threads together may have decoded; a thread that finds none waits.

    Parameters
    ----------
    most:
        pixels; a picture of more has the room to itself.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self.clear()

    def clear(self) -> None:
        """Free all room: a forked process has none of the threads that hold it."""
        self._free = self._most
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Hold room for so many pixels; not to be nested."""
        pixels = min(pixels, self._most)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= pixels)
            self._free -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._free += pixels
                self._changed.notify_all()


_LARGE = 4_000_000  # pixels
_LINES = 1_000_000  # pixels that are composed at a time
_ROOM = Room(MOST_PIXELS)  # a pixel takes 8 to 12 bytes while it is decoded
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ROOM.clear)


def reason(error: Exception) -> str:
    """Say in a line why a picture cannot be read."""
    if isinstance(error, UnidentifiedImageError):  # it names an object of Python's
        return "it is not a picture of a format that metagrad reads, or it is damaged"
    if isinstance(error, Image.DecompressionBombError):
        number = re.search(r"[0-9]+", str(error))  # the first is the number of pixels
        return f"it has {int(number[0]) if number else 0:,} pixels, more than {MOST_PIXELS:,}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:120] or type(error).__name__


@contextmanager
def opened(stream: IO[bytes], at_least: int | None = None, behind: str = "white") -> Iterator[Image.Image]:
    """Open one picture, upright and RGB, transparent parts in the colour ``behind``.

    ``at_least`` is a number of pixels a side that is enough. It waits until there is room for its pixels beside those
    that other threads have open. Do not nest it.

    Raises
    ------
    ValueError
        for one of too many pixels; Pillow raises what it likes for one that is damaged.
    """
    with Image.open(stream, formats=FORMATS) as image:
        # Only the header has been read so far.
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"it has {image.width}×{image.height} pixels, more than {MOST_PIXELS:,}")
        whole = image.width * image.height
        if at_least is not None:
            image.draft("RGB", (at_least, at_least))  # a JPEG may be decoded at a half, a quarter, an eighth
        with _ROOM.hold(whole if "progressive" in image.info else image.width * image.height):
            shown: Image.Image = image
            try:
                ImageOps.exif_transpose(image, in_place=True)
                shown = as_rgb(image, behind)
                yield shown
            finally:
                shown.close()  # gives the memory back before others take the room
                image.close()
                if whole > _LARGE:
                    _give_back()


def _give_back() -> None:
    """Give freed memory back to the system: glibc keeps it for the thread that freed it, 400 MB for each."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none, and need none
        if trim is not None:
            trim(0)


def decode(data: bytes, size: int) -> np.ndarray:
    """Turn one picture into uint8 ``(3, size, size)``; raise as :func:`opened` does."""
    with opened(io.BytesIO(data), at_least=2 * size) as image:
        return square(image, size)


def as_rgb(image: Image.Image, behind: str) -> Image.Image:
    """Return a picture of any mode as RGB, transparent parts ``behind``."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow would cut off all above 255
        grey = np.asarray(image)  # may have a hundred million pixels: nothing of eight bytes each is made of it
        if image.mode == "F":
            grey = np.nan_to_num(grey, posinf=0.0, neginf=0.0)
        most = grey.max()  # a scanner's 8 or 12 bits may lie in 16
        tops = (1 if image.mode == "F" else 255, 255, 4095, 65535)
        top = next((one for one in tops if most <= one), most)
        grey = grey if grey.min() >= 0 else grey.clip(0, None)
        scaled = np.empty(grey.shape, np.uint8)
        np.multiply(grey, np.float32(255 / top), out=scaled, dtype=np.float32, casting="unsafe")
        return Image.fromarray(scaled).convert("RGB")
    if "A" in image.getbands() or "transparency" in image.info:
        return _composed(image, behind)
    return image if image.mode == "RGB" else image.convert("RGB")


def _composed(image: Image.Image, behind: str) -> Image.Image:
    """Return a picture with transparent parts on paper, a few lines at a time: five copies of it take 2 GB."""
    whole = Image.new("RGB", image.size)
    height = max(1, _LINES // image.width)
    for top in range(0, image.height, height):
        part = image.crop((0, top, image.width, min(top + height, image.height))).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", part.size, behind), part).convert("RGB"), (0, top))
    return whole


def square(image: Image.Image, size: int) -> np.ndarray:
    """Return the largest square in the middle of an RGB picture, uint8 ``(3, size, size)``."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    resized = image.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=3.0)
    return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))
