"""Pictures given as numbers: arrays, tensors, lists, rows of a matrix, columns of a data frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_CHANNELS = (1, 3, 4)
_TOPS = (1.0, 255.0, 4095.0, 65535.0)  # what white is in the usual ranges; a scanner's 12 bits lie in 16
_SHORTEST = 4  # pixels a side of the smallest picture that a row may be

Span = tuple[float, float]
Pictures = list[Any] | np.ndarray


def column(X: Any) -> Any:
    """Return the values of a data frame's column, or of a data frame with one column; anything else unchanged.

    Raises
    ------
    ValueError
        for a data frame some columns of which hold no numbers.
    """
    if isinstance(X, np.ndarray) and X.dtype.kind in "OUS" and X.ndim == 2 and X.shape[1] == 1:
        return X[:, 0]
    if not hasattr(X, "to_numpy"):
        return X
    held = X.to_numpy()
    if held.ndim == 1:
        return held
    if held.dtype.kind in "buif":
        return X  # rows of numbers, with names
    if held.shape[1] == 1:
        return held[:, 0]
    raise ValueError(
        f"a data frame of {held.shape[1]} columns, of which some hold no numbers: name the one that holds pictures, "
        f"such as X[{str(X.columns[0])!r}]"
    )


def are_files(pictures: Any) -> bool:
    """Say whether these are names of files.

    Raises
    ------
    ValueError
        for one name in place of a list, or a list of names in which something else is.
    """
    if isinstance(pictures, str | Path):
        raise ValueError(f"give a list of pictures, not one name: [{str(pictures)!r}]")
    if not (isinstance(pictures, Sequence | np.ndarray) and len(pictures) > 0 and isinstance(pictures[0], str | Path)):
        return False
    for number, one in enumerate(pictures):
        if not isinstance(one, str | Path):
            raise ValueError(f"picture {number} is no file name but {one!r:.100}")
    return True


def arrays(X: Any) -> Pictures | None:
    """Return pictures with height and width first, channels last, or ``None`` for what is no array of pictures.

    Raises
    ------
    ValueError
        for one of no pixels, of numbers that are not finite, or whose channel axis is ambiguous.
    """
    if _is_list_of_pictures(X):
        return [_laid_out(_pixels(one), 0, f"picture {number}") for number, one in enumerate(X)]
    whole = np.asarray(X)
    if whole.ndim < 3 or whole.dtype.kind not in "buif":
        return None
    if whole.ndim > 4:
        raise ValueError(f"pictures are (n, H, W), (n, H, W, 3) or (n, 3, H, W), these are {whole.shape}")
    return _laid_out(whole, 1, "the pictures")


def _pixels(one: Any) -> np.ndarray:
    """Return a picture as an array; of Pillow's, colours in place of a palette's numbers."""
    if isinstance(one, Image.Image) and one.mode in ("P", "PA", "LA", "CMYK", "YCbCr", "LAB", "HSV"):
        one = one.convert("RGBA")
    return np.asarray(one)


def _is_list_of_pictures(X: Any) -> bool:
    """Say whether these are pictures of their own sizes."""
    if not isinstance(X, list | tuple) and not (isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1):
        return False
    shapes = [np.shape(one) for one in X if not isinstance(one, str | Path)]
    return len(shapes) == len(X) > 0 and all(len(shape) in (2, 3) for shape in shapes)


def _laid_out(found: np.ndarray, lead: int, what: str) -> np.ndarray:
    """Return ``(..., H, W)`` or ``(..., H, W, channels)``, after ``lead`` axes."""
    if found.dtype.kind not in "buif":
        raise ValueError(f"{what} hold {found.dtype}, no numbers")
    if found.ndim - lead == 3:
        first, last = found.shape[lead] in _CHANNELS, found.shape[-1] in _CHANNELS
        if first == last:
            shown = "(n, H, W), (n, H, W, 3) or (n, 3, H, W)" if lead else "(H, W), (H, W, 3) or (3, H, W)"
            raise ValueError(
                f"{what} are {shown}, of 1, 3 or 4 channels; in the shape {found.shape} channels are ambiguous"
            )
        found = found if last else np.moveaxis(found, lead, -1)
        found = found[..., 0] if found.shape[-1] == 1 else found
    if not found.size:
        raise ValueError(f"there are no pictures: {what} are {found.shape}")
    if not np.isfinite(found).all():
        raise ValueError(f"{what} contain NaN or infinite numbers")
    return found


def from_rows(rows: np.ndarray) -> np.ndarray:
    """Return the pictures that the rows of a matrix are: ``(n, H, H)``, or ``(n, H, H, 3)``.

    Raises
    ------
    ValueError
        if their length is neither a square number nor three times one.
    """
    length = rows.shape[1]
    for channels in (1, 3):
        side = math.isqrt(length // channels)
        if side >= _SHORTEST and channels * side**2 == length:
            return rows.reshape(len(rows), side, side, *([3] if channels == 3 else []))
    raise ValueError(
        f"rows of {length} numbers are no pictures: a row is a square picture line by line, {_SHORTEST} pixels wide "
        "or more, grey or of three colours (64, 192, 784, ...); give others as an array (n, H, W)"
    )


def span_of(pictures: Pictures) -> Span:
    """Return which numbers are black and white.

    The usual ranges are recognised by their largest number: 0 to 1 and 0 to 255, and for whole numbers also 4095 and
    65535. Otherwise black and white are the smallest and the largest number in all pictures.
    """
    least = float(min(np.min(one) for one in pictures))
    most = float(max(np.max(one) for one in pictures))
    whole = all(one.dtype.kind in "bui" for one in pictures)
    if least >= 0:
        for top in _TOPS if whole else _TOPS[:2]:
            if top / 2 < most <= top:
                return 0.0, top
    return least, most


def require_alike(pictures: Pictures, span: Span) -> None:
    """Refuse pictures in another range than the support pictures.

    Raises
    ------
    ValueError
        naming both.
    """
    top, most = span[1], float(max(np.max(one) for one in pictures))
    if span[0] == 0 and top in _TOPS and (most > 2 * top or (top > 1 and 0 < most <= 1)):
        raise ValueError(
            f"fitted on pictures from 0 to {top:g}, but these go up to {most:g}: scale both in the same way"
        )


def as_bytes(one: np.ndarray, span: Span) -> np.ndarray:
    """Return a picture as uint8."""
    least, most = span
    if one.dtype == np.uint8 and span == (0.0, 255.0):
        return one
    scaled = (one.astype(np.float64) - least) / max(most - least, 1e-300) * 255
    return scaled.clip(0, 255).round().astype(np.uint8)
