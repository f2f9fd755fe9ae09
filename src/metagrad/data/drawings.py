"""Drawings: letters of fonts and characters by hand together, the classes of glyphs and of Omniglot.

Each keeps its own split. A script that one of them holds out for validation or test is not learned from the other:
what the letters of an unseen script score is not helped by having seen them by hand.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from metagrad.data import glyphs, omniglot
from metagrad.data.class_splits import SPLITS
from metagrad.data.classes import Dataset, ImageClasses
from metagrad.data.rows import Progress

#: What is left out of training: scripts that the other data set validates or tests on. Old Church Slavonic, which
#: Omniglot tests on, is Cyrillic.
LEFT_OUT = {
    "glyphs": ("Cyrillic/",),
    "omniglot": tuple(f"images_background/{name}/" for name in ("Asomtavruli_(Georgian)", "N_Ko", "Tifinagh")),
}


def load(*, data_dir: Path | None = None, anew: bool = False, progress: Progress | None = None) -> Dataset:
    """Return the classes of glyphs and then those of Omniglot, in each of the three splits.

    Parameters
    ----------
    data_dir, anew:
        of Omniglot: see :func:`metagrad.data.omniglot.load`. Glyphs are drawn here.
    progress:
        called with (done, total, what) while letters are drawn, or files checked, fetched or decoded.

    Returns
    -------
    Dataset
        uint8 images of 28x28 with ink 255 on 0, 20 drawings a class; a class is called ``glyphs/...`` or
        ``omniglot/...`` after its name there. 1339 classes to train on, 283 to validate, 583 to test. Classes may be
        turned in training, also those of glyphs: among so many, two turns of one letter rarely meet.

    Raises
    ------
    MetagradError
        as the two do: for fonts or archives that are missing or altered.
    """
    return union(glyphs.load(progress=progress), omniglot.load(data_dir=data_dir, anew=anew, progress=progress))


def union(*parts: Dataset) -> Dataset:
    """Put data sets of drawings of one size side by side, split by split; those left out are in none."""

    def both(which: str) -> ImageClasses:
        found = [(one.name, getattr(one, which)) for one in parts]
        made = ImageClasses(
            torch.cat([classes.images for _, classes in found]),
            torch.cat([classes.counts for _, classes in found]),
            tuple(f"{name}/{label}" for name, classes in found for label in classes.names),
        )
        out = tuple(f"{name}/{start}" for name, starts in LEFT_OUT.items() for start in starts)
        return made.subset([name for name in made.names if which != "train" or not name.startswith(out)])

    train, val, test = (both(which) for which in SPLITS)
    return Dataset(
        "drawings",
        train,
        val,
        test,
        rotations=any(one.rotations for one in parts),
        preprocessing="; ".join(f"{one.name}: {one.preprocessing}" for one in parts),
        digest=hashlib.sha256("\n".join([*(one.digest for one in parts), str(LEFT_OUT)]).encode()).hexdigest(),
    )
