"""Folders of small pictures, made of noise."""

import io
import os

import numpy as np
from PIL import Image

SIZE = 16


def picture(seed, mode="RGB", size=(40, 30), form="PNG", **options):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, form, **options)
    return file.getvalue()


def fill(root, classes=8, each=5, prefix=""):
    for c in range(classes):
        (root / f"{prefix}class {c}").mkdir(parents=True)
        for i in range(each):
            (root / f"{prefix}class {c}" / f"{i}.png").write_bytes(picture(100 * c + i))
    return root


def folder_of_pictures(root):
    """Make seven classes of three pictures, all of one size and time."""
    for c in range(7):
        (root / f"class {c}").mkdir(parents=True)
        for i in range(3):
            pixels = np.random.default_rng(10 * c + i).integers(0, 256, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / f"class {c}" / f"{i}.bmp")
            os.utime(root / f"class {c}" / f"{i}.bmp", (1.7e9, 1.7e9))
    return root
