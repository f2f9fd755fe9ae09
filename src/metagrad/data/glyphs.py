"""Glyphs: letters of many scripts, drawn from the DejaVu fonts that matplotlib ships.

Nothing is downloaded. Each class is one letter. The classes are listed in ``splits/glyphs.json``, made by
``tools/make_glyph_splits.py``: every script is wholly in one split, and no two classes look alike.
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

from metagrad.data.cache import cache_root
from metagrad.data.class_splits import SPLITS, blocks, published_split
from metagrad.data.classes import Dataset
from metagrad.data.glyph_drawing import CODE_VERSION, FACES, RECIPE, Recipe, draw_classes, font_folder
from metagrad.data.memmap import cached_rows
from metagrad.data.rows import Progress


def load(*, cache_dir: Path | None = None, progress: Progress | None = None) -> Dataset:
    """Return the glyphs data set, drawn first if the cache does not hold it.

    Parameters
    ----------
    cache_dir:
        where the drawings are kept, in the folder ``glyphs``; the system's cache folder by default.
    progress:
        called with (done, total, what) while letters are drawn.

    Raises
    ------
    MetagradError
        if matplotlib's fonts are missing, or the cache cannot be read or written.
    """
    folder = font_folder()
    split = published_split("glyphs")
    names = [name for which in SPLITS for name in split[which]]
    cache = (cache_root() if cache_dir is None else cache_dir) / "glyphs"
    images = cached_rows(
        cache / f"{_cache_key(folder, names, RECIPE)}.npy",
        (len(names) * RECIPE.per_class, 1, RECIPE.side, RECIPE.side),
        lambda: draw_classes(names, folder, RECIPE, progress),
        what="glyphs",
    )
    digest = hashlib.sha256(json.dumps(split, sort_keys=True).encode())
    digest.update(images.numpy().data)
    return Dataset(
        "glyphs",
        *blocks(images, split, RECIPE.per_class),
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
