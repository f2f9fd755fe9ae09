"""Data sets, one file each; each offers ``load(...) -> Dataset``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metagrad.data.classes import Classes, Dataset, ImageClasses
from metagrad.data.rows import Progress
from metagrad.torch_modes import default_modes

__all__ = ["DATASETS", "About", "Classes", "Dataset", "ImageClasses", "load"]


@dataclass(frozen=True, kw_only=True)
class About:
    """What a data set is, and what suits it.

    Attributes
    ----------
    about:
        what it holds, how large it is and where it comes from, in one line.
    pictures:
        whether it has photographs that are read at a size of one's choice.
    strokes:
        whether it has drawings, grey, with ink 255 on 0.
    fill:
        what part of an image a drawing fills, where drawings were brought to one size.
    meta_steps:
        how long a training of it is.
    """

    about: str
    pictures: bool = False
    strokes: bool = False
    fill: float | None = None
    meta_steps: int = 10_000


DATASETS = {
    "glyphs": About(
        about="801 letters of many scripts in the fonts that matplotlib ships, 28x28 grey; drawn here, no download",
        strokes=True,
        meta_steps=500,
    ),
    "omniglot": About(
        about="1623 handwritten characters, 20 drawings each, 28x28 grey; 14 MB download (MIT licence)", strokes=True
    ),
    "omniglot-alphabets": About(
        about="omniglot split by alphabet (25 / 5 / 20 for training, validation, test), drawings brought to one size; "
        "the same download",
        strokes=True,
        fill=0.85,
    ),
    "drawings": About(about="glyphs and omniglot together, in fonts and by hand; omniglot's download", strokes=True),
    "cifar-fs": About(
        about="CIFAR-100's classes at random: 64 / 16 / 20, 600 photographs each, 32x32; 161 MB download"
    ),
    "fc100": About(about="CIFAR-100's classes by groups: 60 / 20 / 20, harder; the same download"),
    "mini-imagenet": About(
        about="ImageNet's 64 / 16 / 20 classes of Ravi and Larochelle, 600 each; your own copy (--data-dir)",
        pictures=True,
    ),
    "tiered-imagenet": About(
        about="ImageNet's 351 / 97 / 160 classes by groups; your own copy (--data-dir)", pictures=True
    ),
    "folder": About(about="your own pictures: a folder or zip with one folder a class (--data-dir)", pictures=True),
}


@default_modes()
def load(
    name: str,
    *,
    data_dir: Path | str | None = None,
    image_size: int | None = None,
    split: dict[str, Any] | None = None,
    strict: bool = False,
    anew: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Load a data set by the name the command line gives it.

    Parameters
    ----------
    name:
        ``"glyphs"``, ``"omniglot"``, ``"omniglot-alphabets"``, ``"drawings"``, ``"cifar-fs"``, ``"fc100"``,
        ``"mini-imagenet"``, ``"tiered-imagenet"`` or ``"folder"``.
    data_dir:
        folder with the original files; ``None`` means METAGRAD_DATA, else a download. Glyphs needs none. For
        ``"folder"``, the folder or zip of class folders itself.
    image_size:
        side of the pictures in pixels, where the data set has none of its own; ``None`` means 84.
    split:
        for ``"folder"``: which classes are for what (:func:`metagrad.data.folder.load`).
    strict:
        refuse a picture that cannot be read, rather than skip it.
    anew:
        read every original file, even if none seems to have changed, and check every byte that is cached.
    progress:
        called with (done, total, what) while files are checked, fetched or decoded.

    Raises
    ------
    MetagradError
        for files that are missing, altered or unreadable.
    """
    size, data_dir = image_size or 84, None if data_dir is None else Path(data_dir)
    if name == "glyphs":
        from metagrad.data import glyphs

        return glyphs.load(progress=progress)
    if name == "omniglot":
        from metagrad.data import omniglot

        return omniglot.load(data_dir=data_dir, anew=anew, progress=progress)
    if name == "omniglot-alphabets":
        from metagrad.data import omniglot_alphabets

        return omniglot_alphabets.load(data_dir=data_dir, anew=anew, progress=progress)
    if name == "drawings":
        from metagrad.data import drawings

        return drawings.load(data_dir=data_dir, anew=anew, progress=progress)
    if name in ("cifar-fs", "fc100"):
        from metagrad.data import cifar

        return cifar.load(name, data_dir=data_dir, anew=anew, progress=progress)
    if name in ("mini-imagenet", "tiered-imagenet"):
        from metagrad.data import imagenet

        return imagenet.load(name, size=size, data_dir=data_dir, strict=strict, anew=anew, progress=progress)
    if name == "folder":
        from metagrad.data import folder

        if data_dir is None:
            raise ValueError("folder needs data_dir")
        return folder.load(data_dir, size=size, split=split, strict=strict, anew=anew, progress=progress)
    raise ValueError(f"no data set is called {name!r}")
