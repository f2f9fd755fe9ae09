"""Letters drawn from the fonts that matplotlib ships, as if written by different people.

Drawings of a letter differ in font, slant, size, stroke width and a smooth random bending. They depend on the recipe,
the letter, and the versions of the libraries that draw.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch.nn.functional import avg_pool2d, grid_sample, interpolate

from metagrad.data.rows import Progress
from metagrad.errors import MetagradError

#: Raise it whenever the code below would draw other pictures from the same recipe.
CODE_VERSION = 2

#: The faces drawn from. The two "Display" faces are left out: they hold a few letters only.
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
)

_BATCH = 1000  # drawings warped at once; bounds the memory and does not change a picture


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how the drawings of a letter vary; part of the cache key.

    Lengths are in pixels of the working canvas, which is twice as fine as the pictures.

    Attributes
    ----------
    seed:
        where all randomness comes from.
    per_class:
        drawings of each letter.
    side:
        height and width of a picture.
    canvas:
        height and width of the canvas that drawings are bent on.
    extent:
        the longer side of the letter before it is bent.
    font_size:
        the size at which outlines are filled in, before they are scaled to ``extent``.
    rotation:
        largest rotation in degrees, either way.
    shear:
        largest sideways slant, as a tangent, either way.
    log_scale:
        largest logarithm of the scale of each axis, either way.
    shift:
        largest shift of each axis, either way.
    knots:
        the bending field is smooth noise through this many knots a side.
    bend:
        standard deviation of the bending at a knot.
    blur:
        standard deviation of the blur before the stroke is cut out again.
    cut:
        lowest and highest grey value at which the stroke ends: low makes it bold, high makes it thin.
    """

    seed: int = 1729
    per_class: int = 20
    side: int = 28
    canvas: int = 56
    extent: int = 38
    font_size: int = 96
    rotation: float = 12.0
    shear: float = 0.15
    log_scale: float = 0.15
    shift: float = 2.5
    knots: int = 5
    bend: float = 1.4
    blur: float = 1.0
    cut: tuple[float, float] = (0.34, 0.62)


RECIPE = Recipe()


def letter(name: str) -> str:
    """Return the character of a class name: ``α`` for ``Greek/U+03B1 GREEK SMALL LETTER ALPHA``."""
    return chr(int(name.split("/U+", 1)[1].split(" ", 1)[0], 16))


def font_folder() -> Path:
    """Return the folder of matplotlib's TrueType fonts, without importing matplotlib.

    Raises
    ------
    MetagradError
        if matplotlib or one of the fonts is not there.
    """
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise MetagradError("glyphs is drawn from matplotlib's fonts: install it with pip install matplotlib")
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    missing = [face for face in FACES if not (folder / f"{face}.ttf").is_file()]
    if missing:
        raise MetagradError(
            f"matplotlib came without its font {missing[0]}.ttf, which glyphs is drawn from: "
            "install it anew with pip install --force-reinstall matplotlib"
        )
    return folder


def covered(folder: Path) -> dict[str, frozenset[int]]:
    """Return the code points that each face of ``FACES`` in ``folder`` has a shape for."""
    # A requirement of matplotlib; slow to import, and a full cache needs none.
    from fontTools.ttLib import TTFont

    points = {}
    for face in FACES:
        with TTFont(folder / f"{face}.ttf", lazy=True) as font:
            points[face] = frozenset(font.getBestCmap())
    return points


def faces_for(character: str, points: dict[str, frozenset[int]]) -> list[str]:
    """Return the faces a letter is drawn from: those that have it and keep to its usual shape."""
    has = [face for face in FACES if ord(character) in points[face]]
    if "\u0400" <= character <= "\u052f":
        # Italic Cyrillic is another alphabet to the eye: its te looks like m, its i like u, its pe like n.
        has = [face for face in has if not face.startswith("DejaVuSerif-") or not face.endswith("Italic")]
    elif "\u10a0" <= character <= "\u10ff" or "\u2d00" <= character <= "\u2d2f":
        # Georgian: many capitals, and jhani, are drawn by another pattern in Serif, some letters in Mono too.
        has = [face for face in has if not face.startswith(("DejaVuSerif", "DejaVuSansMono"))]
    elif character == "\u0576":  # Armenian now: an open arch in Sans, a loop on a stem in Serif
        has = [face for face in has if not face.startswith("DejaVuSerif")]
    return has


def open_font(folder: Path, face: str, recipe: Recipe = RECIPE) -> ImageFont.FreeTypeFont:
    """Return one face at the size of the recipe.

    The layout engine is fixed: whether the other one is there differs between builds of Pillow.
    """
    path = str(folder / f"{face}.ttf")
    return ImageFont.truetype(path, recipe.font_size, layout_engine=ImageFont.Layout.BASIC)


def normalised(character: str, font: ImageFont.FreeTypeFont, recipe: Recipe = RECIPE) -> np.ndarray:
    """Return a letter cropped to its ink, scaled to ``extent`` and centred: uint8, canvas x canvas.

    A letter without ink gives zeros.
    """
    left, top, right, bottom = (int(edge) for edge in font.getbbox(character))
    picture = Image.new("L", (max(right - left, 1) + 8, max(bottom - top, 1) + 8))
    ImageDraw.Draw(picture).text((4 - left, 4 - top), character, fill=255, font=font)
    out = np.zeros((recipe.canvas, recipe.canvas), dtype=np.uint8)
    ink = picture.getbbox()
    if ink is None:
        return out
    picture = picture.crop(ink)
    scale = recipe.extent / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    x, y = (recipe.canvas - width) // 2, (recipe.canvas - height) // 2
    out[y : y + height, x : x + width] = np.asarray(picture.resize((width, height), Image.Resampling.BOX))
    return out


def draw_classes(
    names: Sequence[str], folder: Path, recipe: Recipe = RECIPE, progress: Progress | None = None
) -> np.ndarray:
    """Return the drawings of the named classes, class after class: uint8, ``(N, 1, side, side)``.

    The drawings of a class depend on the recipe and its letter only, not on the other classes.

    Parameters
    ----------
    names
        class names, such as ``Greek/U+03B1 GREEK SMALL LETTER ALPHA``.
    folder
        where the fonts are.
    recipe
        how the drawings vary.
    progress
        called as ``progress(done, total, what)`` after each batch, counting classes.
    """
    points = covered(folder)
    fonts = {face: open_font(folder, face, recipe) for face in FACES}
    step = max(1, _BATCH // recipe.per_class)
    done = []
    for start in range(0, len(names), step):
        batch = names[start : start + step]
        made = [_class_sources(letter(name), points, fonts, recipe) for name in batch]
        sources = np.concatenate([source for source, _, _ in made])
        motion = np.concatenate([move for _, move, _ in made])
        bending = np.concatenate([bend for _, _, bend in made])
        done.append(_deform(sources, motion, bending, recipe))
        if progress is not None:
            progress(start + len(batch), len(names), "drawing glyphs")
    return np.concatenate(done)


def _class_sources(
    character: str,
    points: dict[str, frozenset[int]],
    fonts: dict[str, ImageFont.FreeTypeFont],
    recipe: Recipe,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose by seed how one letter is drawn: its plain shapes, seven uniform numbers each, bending noise."""
    rng = np.random.default_rng([recipe.seed, ord(character)])
    faces = faces_for(character, points)
    if not faces:
        raise MetagradError(
            f"matplotlib's fonts lack U+{ord(character):04X}, which glyphs needs: "
            "install it anew with pip install --force-reinstall matplotlib"
        )
    shapes = np.stack([normalised(character, fonts[face], recipe) for face in faces])
    # Every face comes up before one is used again, so that few drawings already show all of them.
    chosen = rng.permutation(len(faces))[np.arange(recipe.per_class) % len(faces)]
    motion = rng.uniform(-1.0, 1.0, (recipe.per_class, 7))
    bending = rng.standard_normal((recipe.per_class, 2, recipe.knots, recipe.knots))
    return shapes[chosen], motion.astype(np.float32), bending.astype(np.float32)


def _deform(sources: np.ndarray, motion: np.ndarray, bending: np.ndarray, recipe: Recipe) -> np.ndarray:
    """Move, bend and restroke plain shapes, and shrink them to pictures.

    Each step computes every pixel by itself, so that neither batches nor threads change a bit.
    """
    ink = torch.from_numpy(sources).to(torch.float32).div(255.0).unsqueeze(1)
    moved = grid_sample(ink, _grid(motion, bending, recipe), padding_mode="zeros", align_corners=False)
    low, high = recipe.cut
    level = torch.from_numpy(low + (high - low) * (motion[:, 6] + 1.0) / 2.0).view(-1, 1, 1, 1)
    # A ramp a quarter wide, not a step: the edge of the stroke stays smooth.
    stroke = ((_blurred(moved, recipe.blur) - level) / 0.25 + 0.5).clamp(0.0, 1.0)
    small = avg_pool2d(stroke, recipe.canvas // recipe.side)
    return small.mul(255.0).round().to(torch.uint8).numpy()


def _grid(motion: np.ndarray, bending: np.ndarray, recipe: Recipe) -> torch.Tensor:
    """Return where each pixel of a drawing comes from in the plain shape, as ``grid_sample`` wants it."""
    unit = torch.from_numpy(motion).view(-1, 7, 1, 1)
    angle = unit[:, 0] * float(np.deg2rad(recipe.rotation))
    shear = unit[:, 1] * recipe.shear
    scale_x, scale_y = (unit[:, i] * recipe.log_scale for i in (2, 3))
    half = recipe.canvas / 2
    centres = (torch.arange(recipe.canvas, dtype=torch.float32, device="cpu") + 0.5) / half - 1.0
    x = centres.view(1, 1, -1) - unit[:, 4] * recipe.shift / half
    y = centres.view(1, -1, 1) - unit[:, 5] * recipe.shift / half
    turned_x = angle.cos() * x + angle.sin() * y
    turned_y = angle.cos() * y - angle.sin() * x
    offset = interpolate(
        torch.from_numpy(bending), size=(recipe.canvas, recipe.canvas), mode="bicubic", align_corners=True
    ) * (recipe.bend / half)
    from_x = (turned_x + shear * turned_y) * scale_x.exp() + offset[:, 0]
    from_y = turned_y * scale_y.exp() + offset[:, 1]
    return torch.stack([from_x, from_y], dim=-1)


def _blurred(pictures: torch.Tensor, deviation: float) -> torch.Tensor:
    """Return ``(N, 1, H, W)`` pictures under a Gaussian blur.

    A sum of shifted copies in a fixed order: a convolution may add in an order that depends on the threads.
    """
    reach = int(np.ceil(3 * deviation))
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / deviation) ** 2)
    weights /= weights.sum()
    for axis in (-1, -2):
        pad = (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach)
        padded = torch.nn.functional.pad(pictures, pad)
        length = pictures.shape[axis]
        total = torch.zeros_like(pictures)
        for shift, weight in enumerate(weights):
            total += float(weight) * padded.narrow(axis, shift, length)
        pictures = total
    return pictures
