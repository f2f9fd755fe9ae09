"""Images grouped by class: what a data set hands over and an episode sampler draws from."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    first:
        int64, ``(classes,)``; where in ``images`` each class begins. Default: one after the other from 0, and nothing
        else in ``images``; several splits may share one array.

    Raises
    ------
    ValueError
        if shapes, types or counts do not fit together.
    """

    images: Tensor
    counts: Tensor
    names: tuple[str, ...]
    first: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64, device="cpu"))

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            raise ValueError(f"images must be uint8 (N, C, H, W), got {self.images.dtype} {tuple(self.images.shape)}")
        if len(self.names) != len(self.counts) or len(set(self.names)) != len(self.names):
            raise ValueError("names must be unique, one per class")
        if not len(self.first) and len(self.counts):
            if int(self.counts.sum()) != len(self.images):
                raise ValueError(f"counts sum to {int(self.counts.sum())}, but there are {len(self.images)} images")
            object.__setattr__(self, "first", self.counts.cumsum(0) - self.counts)
        elif len(self.counts) and int((self.first + self.counts).max()) > len(self.images):
            raise ValueError(f"classes end at image {int((self.first + self.counts).max())} of {len(self.images)}")

    def with_at_least(self, count: int) -> ImageClasses:
        """Return the classes that have so many images."""
        enough = self.counts >= count
        if bool(enough.all()):
            return self
        names = tuple(name for name, kept in zip(self.names, enough.tolist(), strict=True) if kept)
        return ImageClasses(self.images, self.counts[enough], names, self.first[enough])

    def to(self, device: torch.device | str) -> ImageClasses:
        """Return the same classes on ``device``; elsewhere than here, without images of other classes."""
        if torch.empty(0, device=device).device == self.images.device:
            return self
        here = self.images.device
        spots = [
            torch.arange(a, a + n, device=here) for a, n in zip(self.first.tolist(), self.counts.tolist(), strict=True)
        ]
        return ImageClasses(self.images[torch.cat(spots)].to(device), self.counts.to(device), self.names)


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
    notes:
        what a person should know of how it was read: files that were left out.
    """

    name: str
    train: ImageClasses
    val: ImageClasses
    test: ImageClasses
    rotations: bool
    preprocessing: str
    digest: str
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        splits = (set(self.train.names), set(self.val.names), set(self.test.names))
        if len(set.union(*splits)) != sum(map(len, splits)):
            raise ValueError(f"the splits of {self.name} share classes")
