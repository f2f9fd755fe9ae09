"""Glyphs: letters of many scripts, drawn from the DejaVu fonts that matplotlib ships.

A data set for which nothing is downloaded. Each class is one letter; its drawings differ in font, slant,
size, stroke width and a smooth random bending, as if written by different people. The classes are listed in
``splits/glyphs.json``, made by ``tools/make_glyph_splits.py``: every script is wholly in one split, and no
two classes look alike.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL
import torch
from PIL import features

from metagrad.data.arrays import cached_arrays
from metagrad.data.cache import cache_root
from metagrad.data.class_splits import SPLITS, blocks, published_split
from metagrad.data.classes import Dataset
from metagrad.data.glyph_drawing import CODE_VERSION, FACES, RECIPE, Recipe, draw_classes, font_folder
from metagrad.data.rows import Progress


def load(*, cache_dir: Path | None = None, progress: Progress | None = None) -> Dataset:
    """Return the glyphs data set, drawing it first if the cache does not hold it.

    Parameters
    ----------
    cache_dir
        where the drawings are kept, in the folder ``glyphs``; ``None`` means
        :func:`metagrad.data.cache.cache_root`.
    progress
        called as ``progress(done, total, what)`` while drawing, not when the cache has everything.

    Raises
    ------
    MetagradError
        if matplotlib's fonts are missing, or the cache cannot be read or written.
    """
    folder = font_folder()
    split = published_split("glyphs")
    names = [name for which in SPLITS for name in split[which]]
    found = cached_arrays(
        _cache_key(folder, names, RECIPE),
        lambda: {"images": draw_classes(names, folder, RECIPE, progress)},
        shapes={"images": (len(names) * RECIPE.per_class, 1, RECIPE.side, RECIPE.side)},
        what="glyphs",
        cache_dir=(cache_root() if cache_dir is None else cache_dir) / "glyphs",
    )["images"]
    digest = hashlib.sha256(json.dumps(split, sort_keys=True).encode())
    digest.update(found.tobytes())
    return Dataset(
        "glyphs",
        *blocks(torch.from_numpy(found), split, RECIPE.per_class),
        rotations=False,  # a Canadian Aboriginal syllabic turned by 90 degrees is another letter
        preprocessing=(
            "DejaVu letters cropped to their ink, scaled to fit, then rotated, sheared, scaled, bent and cut "
            f"to a random stroke width; {RECIPE.side}x{RECIPE.side}, ink 255 on background 0"
        ),
        digest=digest.hexdigest(),
    )


def _cache_key(folder: Path, names: Sequence[str], recipe: Recipe) -> str:
    """Return a name for the drawings that changes with anything they are made from."""
    made_from = {
        "code": CODE_VERSION,
        "recipe": dataclasses.asdict(recipe),
        "names": list(names),
        "fonts": {face: hashlib.sha256((folder / f"{face}.ttf").read_bytes()).hexdigest() for face in FACES},
        "versions": [PIL.__version__, features.version("freetype2"), np.__version__, torch.__version__],
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:32]
