"""Images grouped by class: what a data set hands over and an episode sampler draws from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageClasses:
    """The images of one split, sorted by class.

    Attributes
    ----------
    images:
        uint8, ``(N, C, H, W)``; the images of a class lie next to each other.
    counts:
        int64, ``(classes,)``; images per class, in the order of ``names``. They sum to ``N``.
    names:
        one name per class, unique.

    Raises
    ------
    ValueError
        if shapes, types or counts do not fit together.
    """

    images: Tensor
    counts: Tensor
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        if len(self.names) != len(self.counts) or len(set(self.names)) != len(self.names):
            raise ValueError("names must be unique, one per class")
        if int(self.counts.sum()) != len(self.images):
            raise ValueError(f"counts sum to {int(self.counts.sum())}, but there are {len(self.images)} images")

    def to(self, device: torch.device | str) -> ImageClasses:
        """Return the same classes with images and counts on ``device``."""
        return ImageClasses(self.images.to(device), self.counts.to(device), self.names)


@dataclass(frozen=True)
class Dataset:
    """A data set split into disjoint classes for meta-training, meta-validation and meta-testing.

    Attributes
    ----------
    name:
        what the command line calls it.
    train, val, test:
        the three splits; no class is in two of them.
    rotations:
        whether a class turned by 90, 180 or 270 degrees counts as a new class in meta-training.
    preprocessing:
        one line saying how a picture became these pixels; recorded with every result.
    digest:
        sha256 (hex) of what the splits were made from; a resumed run must see the same.
    """

    name: str
    train: ImageClasses
    val: ImageClasses
    test: ImageClasses
    rotations: bool
    preprocessing: str
    digest: str

    def __post_init__(self) -> None:
        splits = (set(self.train.names), set(self.val.names), set(self.test.names))
        if len(set.union(*splits)) != sum(map(len, splits)):
            raise ValueError(f"the splits of {self.name} share classes")
