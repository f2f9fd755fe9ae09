"""Features in place of pictures: what computes them, and those of a data set of images."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from metagrad.data.class_splits import SPLITS
from metagrad.data.classes import Classes, Dataset, ImageClasses
from metagrad.data.feature_store import FeatureStore
from metagrad.data.rows import Progress
from metagrad.errors import MetagradError
from metagrad.files import require_readable

THREADS = min(8, os.cpu_count() or 1)  # hashlib and Pillow let go of the interpreter
_SOME = 4096  # pictures that are handed to the threads at once


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """A network whose features stand in place of pictures.

    Attributes
    ----------
    name:
        what people call it.
    digest:
        of its weights and whatever else decides the features.
    shape:
        of one picture's features.
    image_size:
        side of the pictures that it is given, in pixels.
    compute:
        gives features ``(B, *shape)`` of pictures, float32 ``(B, 3, image_size, image_size)`` in [0, 1] on the CPU.
    """

    name: str
    digest: str
    shape: tuple[int, ...]
    image_size: int
    compute: Callable[[Tensor], Tensor]

    def store(self, preprocessing: str, cache_dir: Path | None = None) -> FeatureStore:
        """Return the store of its features, of pictures that were prepared in this way."""
        directory = None if cache_dir is None else cache_dir / "features"
        return FeatureStore.open(
            self.digest, shape=self.shape, directory=directory, name=self.name, preprocessing=preprocessing
        )

    def of_bytes(self, batch: Tensor) -> Tensor:
        """Return features of pictures that are uint8."""
        return self.compute(batch.float().div_(255))


@dataclass(frozen=True)
class FeatureDataset:
    """A data set of features: an :class:`~metagrad.fewshot.EpisodeSampler` draws tasks from its splits.

    Attributes
    ----------
    name, preprocessing, digest, notes:
        as of a :class:`Dataset`; the digest is also of the network.
    train, val, test:
        the three splits, features float32 ``(N, *shape)``.
    pictures:
        the same pictures in the same order, to look at: a sampler of the same split, with the same generator, draws
        the pictures of the tasks; ``None`` if they were not requested.
    """

    name: str
    train: Classes
    val: Classes
    test: Classes
    preprocessing: str
    digest: str
    notes: tuple[str, ...] = ()
    pictures: Dataset | None = None


# --- keys --------------------------------------------------------------------------------------------------


def picture_keys(paths: Sequence[Path]) -> list[bytes]:
    """Return the sha256 of the content of each file.

    Raises
    ------
    MetagradError
        for a file that cannot be read.
    """

    def key(path: Path) -> bytes:
        require_readable(path, missing="name a picture")
        try:
            return hashlib.sha256(path.read_bytes()).digest()
        except OSError as error:
            raise MetagradError(f"{path} cannot be read ({error.strerror}): check the disk") from error

    return list(in_threads(key, paths))


def array_keys(images: Tensor | np.ndarray) -> list[bytes]:
    """Return the sha256 of the type, the shape and the content of each row of an array, ``(N, ...)``."""
    rows = np.asarray(images.cpu() if isinstance(images, Tensor) else images)
    what = f"{rows.dtype.str}{rows.shape[1:]}".encode()
    return list(in_threads(lambda n: hashlib.sha256(what + rows[n].tobytes()).digest(), range(len(rows))))


def in_threads(work: Callable[[Any], Any], some: Sequence[Any]) -> Iterator[Any]:
    """Yield the results of work that lets go of the interpreter, in order."""
    with ThreadPoolExecutor(max_workers=THREADS) as pool:
        for first in range(0, len(some), _SOME):  # a pool's map takes all at once
            yield from pool.map(work, some[first : first + _SOME])


# --- of a data set of images -------------------------------------------------------------------------------


def at_size(images: Tensor, size: int) -> Tensor:
    """Return uint8 images ``(B, C, H, W)`` as a network of photographs wants them.

    Returns
    -------
    Tensor
        float32 ``(B, 3, size, size)`` in [0, 1]; grey ones three times, resized by bicubic interpolation.

    Raises
    ------
    ValueError
        for images of neither one nor three channels.
    """
    if images.shape[1] not in (1, 3):
        raise ValueError(f"images must have 1 or 3 channels, got {images.shape[1]}")
    return fit_images(images.float().div_(255), size)


def fit_images(images: Tensor, size: int) -> Tensor:
    """Return images ``(B, C, H, W)`` in [0, 1] with three channels, resized to ``size`` by bicubic interpolation."""
    if images.shape[-2:] != (size, size) and len(images):  # as Pillow does; without antialias torch has other weights
        images = functional.interpolate(images, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return images.expand(-1, 3, *images.shape[-2:])


def features_of_images(images: Tensor, extractor: FeatureExtractor, *, progress: Progress | None = None) -> Tensor:
    """Return features ``(N, *shape)`` of uint8 images ``(N, C, H, W)``; those in the store are not computed again."""
    store = extractor.store(_prepared(extractor))
    rows = store.features(
        array_keys(images),
        lambda numbers: at_size(images[numbers].cpu(), extractor.image_size),
        extractor.compute,
        progress=progress,
    )
    return rows


def _prepared(extractor: FeatureExtractor) -> str:
    return f"grey three times, bicubic to {extractor.image_size}x{extractor.image_size}, scaled to [0, 1]"


def features_of_dataset(
    dataset: Dataset,
    extractor: FeatureExtractor,
    *,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> FeatureDataset:
    """Return the features of a data set's images, with the same classes, splits and names.

    Where ``dataset.rotations`` says that turned classes are classes of their own, features have the upright ones alone.

    Parameters
    ----------
    dataset:
        of images with one or three channels; they are resized (:func:`at_size`).
    cache_dir:
        metagrad's cache by default.
    progress:
        called with (done, total, what).
    """
    parts: list[ImageClasses] = [getattr(dataset, which) for which in SPLITS]
    own = [_rows_of(part) for part in parts]
    ends = np.cumsum([0, *map(len, own)]).tolist()
    keys = [key for part, rows in zip(parts, own, strict=True) for key in _keys_at(part.images, rows)]

    def load(numbers: list[int]) -> Tensor:
        which = [next(k for k in range(len(parts)) if number < ends[k + 1]) for number in numbers]
        images = [parts[k].images[own[k][number - ends[k]]] for number, k in zip(numbers, which, strict=True)]
        return at_size(torch.stack(images).cpu(), extractor.image_size)

    how = _prepared(extractor)
    store = extractor.store(how, cache_dir)
    found = store.find(keys, load, extractor.compute, progress=progress)
    train, val, test = (
        Classes(found.gather(slice(ends[k], ends[k + 1])), part.counts.cpu(), part.names)
        for k, part in enumerate(parts)
    )
    says = f"{dataset.preprocessing}; {how}; features of {extractor.name}"
    digest = hashlib.sha256(json.dumps([dataset.digest, store.identity]).encode()).hexdigest()
    return FeatureDataset(dataset.name, train, val, test, says, digest, dataset.notes, dataset)


def _rows_of(part: Classes) -> Tensor:
    """Return the rows of a split in the order of its classes."""
    places = zip(part.first.tolist(), part.counts.tolist(), strict=True)
    rows = [torch.arange(first, first + count, device="cpu") for first, count in places]
    return torch.cat(rows) if rows else torch.empty(0, dtype=torch.int64, device="cpu")


def _keys_at(images: Tensor, rows: Tensor) -> Iterator[bytes]:
    for some in rows.split(_SOME):  # not all: they may live in a file
        yield from array_keys(images[some.to(images.device)])
