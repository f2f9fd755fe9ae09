"""Omniglot by alphabets: the background ones to learn from, the evaluation ones to test on, as its authors meant it.

Drawings are brought to one size. Some alphabets are written so small that two characters look alike at 28 pixels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from metagrad.data import DATASETS, omniglot
from metagrad.data.class_splits import SPLITS
from metagrad.data.classes import Dataset, ImageClasses
from metagrad.data.rows import Progress

#: Background alphabets to validate on: 129 of the 964 characters, of unlike kinds of script.
VALIDATION = ("Balinese", "Early_Aramaic", "Futurama", "Korean", "Tagalog")


def load(*, data_dir: Path | None = None, anew: bool = False, progress: Progress | None = None) -> Dataset:
    """Return Omniglot's images, split by its two sets of alphabets (Lake, Salakhutdinov and Tenenbaum, Science 2015).

    A class is called ``images_background/ALPHABET/CHARACTER`` or ``images_evaluation/...``. The n-th of its 20 images
    is by the n-th of the 20 people who drew that alphabet.

    Parameters
    ----------
    data_dir, anew, progress:
        see :func:`metagrad.data.omniglot.load`.

    Returns
    -------
    Dataset
        uint8 images of 28x28 with ink 255 on 0. The ink is in the middle, its longer side 0.85 of the image. 25
        alphabets to train on, 5 (:data:`VALIDATION`) to validate, 20 to test.

    Raises
    ------
    MetagradError
        as :func:`metagrad.data.omniglot.load` does.
    """
    fill = DATASETS["omniglot-alphabets"].fill
    return by_alphabets(omniglot.load(data_dir=data_dir, anew=anew, progress=progress, fill=fill))


def by_alphabets(dataset: Dataset) -> Dataset:
    """Return Omniglot, split by characters, with its classes split by alphabets."""
    parts = [getattr(dataset, which) for which in SPLITS]
    whole = ImageClasses(
        torch.cat([part.images for part in parts]),
        torch.cat([part.counts for part in parts]),
        tuple(name for part in parts for name in part.names),
        torch.cat([part.first + sum(len(before.images) for before in parts[:n]) for n, part in enumerate(parts)]),
    )
    names: dict[str, list[str]] = {which: [] for which in SPLITS}
    for name in sorted(whole.names):
        held = alphabet(name).rpartition("/")[2] in VALIDATION
        names["test" if name.startswith("images_evaluation/") else "val" if held else "train"].append(name)
    train, val, test = (whole.subset(names[which]) for which in SPLITS)
    digest = hashlib.sha256("\n".join([dataset.digest, *VALIDATION]).encode()).hexdigest()
    return Dataset(
        "omniglot-alphabets", train, val, test, dataset.rotations, dataset.preprocessing, digest, dataset.notes
    )


def alphabet(name: str) -> str:
    """Return the alphabet of a class, as in ``images_evaluation/Tibetan``."""
    return name.rpartition("/")[0]
