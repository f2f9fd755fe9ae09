"""mini-ImageNet (Ravi and Larochelle's split) and tiered-ImageNet, from the files people have of them.

Neither may be handed on, so there is nothing to download. mini-ImageNet is read from the ``images`` folder with
``train.csv``, ``val.csv`` and ``test.csv``, from class folders, or from the widespread pickled arrays; tiered-ImageNet
from class folders. Classes are those of the published splits, named by their WordNet numbers.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from metagrad.data import pictures
from metagrad.data.archive import fingerprint
from metagrad.data.cache import cache_root
from metagrad.data.class_splits import SPLITS, dataset, published_split
from metagrad.data.classes import Dataset
from metagrad.data.memmap import save_rows
from metagrad.data.names import short
from metagrad.data.pickled import read_arrays
from metagrad.data.rows import Progress
from metagrad.data.sources import data_directory, find
from metagrad.errors import MetagradError

_PICKLED = "mini-imagenet-cache-{which}.pkl"
_RECIPE = 1
_MOST_BYTES = 4 * 2**30  # of a pickle: the largest has 0.8 GB


def load(
    name: str,
    *,
    size: int = 84,
    data_dir: Path | None = None,
    strict: bool = False,
    anew: bool = False,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Load one of the two.

    Parameters
    ----------
    name:
        ``"mini-imagenet"`` or ``"tiered-imagenet"``.
    size:
        side of the square pictures, in pixels.
    data_dir:
        folder with the files, or with a folder or zip called ``mini-imagenet`` (``tiered-imagenet``). Without it the
        environment variable ``METAGRAD_DATA`` names it.
    strict, anew, cache_dir:
        see :func:`metagrad.data.pictures.load`.

    Raises
    ------
    MetagradError
        if the files are not there, cannot be read, or lack a class of the split.
    """
    place = data_directory(data_dir)
    if place is None:
        raise MetagradError(
            f"{name} may not be redistributed, so metagrad does not download it: give its folder with --data-dir"
        )
    source = find(place, name, (name, name.replace("-", "_"), f"{name}.zip", "."), Path.exists)
    split = published_split(name)
    if name == "mini-imagenet" and (source / _PICKLED.format(which="train")).is_file():
        return _from_pickles(name, source, split, size, anew, cache_dir, progress)
    labels = None
    if name == "mini-imagenet" and (source / "train.csv").is_file() and (source / "images").is_dir():
        labels = _by_tables(source).get
    found = pictures.load(
        source, size=size, strict=strict, anew=anew, cache_dir=cache_dir, progress=progress, labels=labels, nested=True
    )
    renamed = {label.rpartition("/")[2]: count for label, count in found.counts.items()}
    if len(renamed) != len(found.counts):
        raise MetagradError(f"{source} has a class in several folders: keep one of them")
    _require(renamed, split, name, source)
    says = pictures.preprocessing(size)
    return dataset(name, found.images, renamed, split, preprocessing=says, content=found.digest, notes=found.notes())


def _require(counts: dict[str, int], split: dict[str, list[str]], name: str, source: Path) -> None:
    missing = [label for which in SPLITS for label in split[which] if label not in counts]
    if missing:
        raise MetagradError(
            f"{source} lacks {len(missing)} classes of {name} ({', '.join(missing[:3])}, ...): complete it, or train "
            "on what is there with metagrad train folder"
        )


# --- images with tables ------------------------------------------------------------------------------------


def _by_tables(source: Path) -> dict[str, str]:
    """Return the class of each file name, as the three tables say."""
    labels: dict[str, str] = {}
    for which in SPLITS:
        path = source / f"{which}.csv"
        try:
            with path.open(newline="", encoding="utf-8") as file:
                for row in csv.DictReader(file):
                    labels[row["filename"]] = row["label"]
        except (OSError, KeyError, ValueError, csv.Error) as error:
            raise MetagradError(f"{path} is not a table with the columns filename and label ({error})") from error
    return labels


# --- pickled arrays ----------------------------------------------------------------------------------------


def _from_pickles(
    name: str,
    source: Path,
    split: dict[str, list[str]],
    size: int,
    anew: bool,
    cache_dir: Path | None,
    progress: Progress | None,
) -> Dataset:
    """Read ``{"image_data": (N, 84, 84, 3) uint8, "class_dict": {class: rows}}`` for each split."""
    cache = (cache_root() if cache_dir is None else cache_dir) / "pictures"
    files = [source / _PICKLED.format(which=which) for which in SPLITS]
    how = "\0".join([str(_RECIPE), str(size), *(f"{path.resolve()} {fingerprint(path)}" for path in files)])
    stem = f"pickled-{hashlib.sha256(how.encode()).hexdigest()[:24]}"

    def decode_all() -> dict[str, Any]:
        counts: dict[str, int] = {}
        content = hashlib.sha256()

        def rows() -> Iterator[np.ndarray]:
            for number, path in enumerate(files):
                if progress is not None:
                    progress(number, len(files), "reading pickled arrays")
                for label, images in _pickled_classes(path):
                    if label in counts:
                        raise MetagradError(f"{path}: the class {short(label)} is there twice: get it again")
                    counts[label] = len(images)
                    for image in images:
                        if image.shape[0] != size:
                            picture = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC)
                            image = np.asarray(picture)
                        row = np.ascontiguousarray(image.transpose(2, 0, 1))
                        content.update(row.data)
                        yield row

        save_rows(cache, rows(), (3, size, size), name=stem)
        return {"counts": counts, "digest": content.hexdigest()}

    found = pictures.decoded(cache / stem, size, lambda _: stem, decode_all, what=name, anew=anew, progress=progress)
    _require(found.counts, split, name, source)
    says = (
        f"84x84 RGB as pickled{'' if size == 84 else f', bicubic to {size}x{size}'}, scaled to [0, 1], no augmentation"
    )
    return dataset(name, found.images, found.counts, split, preprocessing=says, content=found.digest)


def _pickled_classes(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise MetagradError(
                f"{path} has more than {_MOST_BYTES // 2**30} GB, which is no mini-ImageNet: get it again"
            )
        data = path.read_bytes()
    except OSError as error:
        raise MetagradError(f"{path} cannot be read ({error.strerror}): check its permissions") from error
    value: Any = read_arrays(data, str(path))
    images, classes = (value.get(key) if isinstance(value, dict) else None for key in ("image_data", "class_dict"))
    if not (isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.shape[1:] == (84, 84, 3)) or not (
        isinstance(classes, dict) and all(isinstance(label, str) for label in classes)
    ):
        raise MetagradError(f'{path} has not "image_data", uint8 (N, 84, 84, 3), and "class_dict": get it again')
    for label, rows in classes.items():
        picked = _numbers(rows)
        if picked is None or (len(picked) and not (picked.min() >= 0 and picked.max() < len(images))):
            raise MetagradError(f"{path}: the class {short(label)} has images that are not in the file: get it again")
        yield label, images[picked]


def _numbers(rows: Any) -> np.ndarray | None:
    """Return a plain list or array of whole numbers; ``None`` for anything else, which may be nested without end."""
    if isinstance(rows, np.ndarray):
        return rows.astype(np.int64) if rows.ndim == 1 and rows.dtype.kind in "iu" else None
    if not isinstance(rows, list | tuple) or not all(isinstance(row, int | np.integer) for row in rows):
        return None
    numbers = [int(row) for row in rows]
    return np.array(numbers, dtype=np.int64) if all(abs(number) < 2**62 for number in numbers) else None
