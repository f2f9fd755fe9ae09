"""Omniglot: 1,623 handwritten characters, 20 drawings each, in Vinyals' split of 1028, 172 and 423."""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from metagrad.data.archive import Members, contents_digest, fingerprint, open_members
from metagrad.data.cache import cache_root, prepared, read_facts, remember
from metagrad.data.class_splits import SPLITS, blocks, published_split
from metagrad.data.classes import Dataset
from metagrad.data.memmap import cached_rows
from metagrad.data.reading import framed
from metagrad.data.rows import Progress
from metagrad.data.sources import data_directory, download, find, md5_of
from metagrad.errors import MetagradError

DRAWINGS_PER_CLASS = 20
SOURCE_SIZE = 105
SIZE = 28
PREPROCESSING = "105x105 1-bit -> 8-bit grey, inverted (ink 255), Lanczos to 28x28"

# Raise it whenever _decode changes, so that arrays cached by an earlier version are made anew.
_RECIPE = 1
# Drawings have about 250 bytes; a larger member is something else.
_MAX_DRAWING_BYTES = 64 * 1024
_PLACES = ("", "omniglot/", "omniglot-py/", "omniglot/python/")


@dataclass(frozen=True)
class _Archive:
    """One of the two archives, and how to tell that a file or folder is it."""

    name: str
    md5: str
    digest: str
    count: int
    url: str


_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_ARCHIVES = (
    _Archive(
        "images_background",
        "68d2efa1b9178cc56df9314c21c6e718",
        "07356096b8076fcf915341f8715e94822249e2a4d5b999fd2d0f6cf9ebffebd5",
        19280,
        _URL + "images_background.zip",
    ),
    _Archive(
        "images_evaluation",
        "6b91aef0f799c5bb55b94e3f2daec811",
        "f5165eb5f20d18e13c6515650b69a42a2c0507506969d410ba5e4a1c572bd542",
        13180,
        _URL + "images_evaluation.zip",
    ),
)


def load(
    *,
    data_dir: Path | None = None,
    anew: bool = False,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    fill: float | None = None,
) -> Dataset:
    """Load Omniglot, from a directory or by downloading it, decoding it the first time only.

    Parameters
    ----------
    data_dir:
        directory with ``images_background`` and ``images_evaluation``, as zip files or extracted; they may
        also lie in ``omniglot``, ``omniglot-py`` or ``omniglot/python`` below it. Without it the environment
        variable ``METAGRAD_DATA`` names the directory; without that too, the archives are downloaded.
    anew:
        verify the archives, even if they seem to be those that were verified.
    cache_dir:
        where decoded images and downloads are kept, in the folder ``omniglot``; `cache_root` by default.
    progress:
        called now and then with (done, total, what is being done).
    fill:
        bring what is drawn into the middle and to this part of the image, in its longer direction. ``None``: leave the
        page as it is.

    Returns
    -------
    Dataset
        uint8 images of 28x28 with ink 255 on 0, the classes of each split in the order of the committed
        split, the 20 drawings of a class in the order of their file names.

    Raises
    ------
    MetagradError
        if the archives are not where they should be, are not the official images, cannot be downloaded, or
        the cache cannot be written.
    """
    return _load(data_dir, cache_dir, progress, _ARCHIVES, published_split("omniglot"), anew, fill)


def _load(
    data_dir: Path | None,
    cache_dir: Path | None,
    progress: Progress | None,
    archives: Sequence[_Archive],
    split: Mapping[str, Sequence[str]],
    anew: bool = False,
    fill: float | None = None,
) -> Dataset:
    cache = (cache_root() if cache_dir is None else cache_dir) / "omniglot"
    place = data_directory(data_dir)
    if place is None:
        sources = {
            archive.name: download(archive.url, cache / f"{archive.name}.zip", md5=archive.md5, progress=progress)
            for archive in archives
        }
    else:
        sources = {archive.name: _find(place, archive.name) for archive in archives}
    for archive in archives:
        _accept(archive, sources[archive.name], cache, progress, anew)
    classes = [*split["train"], *split["val"], *split["test"]]
    made_from = "\n".join([*(archive.digest for archive in archives), *classes, *([] if fill is None else [str(fill)])])
    key = hashlib.sha256(made_from.encode("utf-8")).hexdigest()[:24]
    images = cached_rows(
        cache / f"images-v{_RECIPE}-{key}.npy",
        (len(classes) * DRAWINGS_PER_CLASS, 1, SIZE, SIZE),
        lambda: _decode_all(archives, sources, classes, progress, fill),
        what="Omniglot",
    )
    parts = blocks(images, split, DRAWINGS_PER_CLASS)
    digest = hashlib.sha256()
    for which, part in zip(SPLITS, parts, strict=True):
        digest.update("\0".join((which, *part.names)).encode("utf-8") + b"\0")
        digest.update(part.images.numpy().data)
    how = PREPROCESSING if fill is None else f"{PREPROCESSING}, ink in the middle, its longer side {fill} of the image"
    return Dataset("omniglot", *parts, rotations=True, preprocessing=how, digest=digest.hexdigest())


def _find(data_dir: Path, name: str) -> Path:
    """Return the zip or the extracted folder, whichever comes first."""

    def is_there(path: Path) -> bool:
        # An empty folder is what a failed extraction leaves; the zip may still be in another place.
        return path.is_file() or (path.is_dir() and any(entry.is_dir() for entry in path.iterdir()))

    places = [f"{place}{name}{ending}" for place in _PLACES for ending in (".zip", "")]
    return find(data_dir, f"Omniglot's {name}", places, is_there)


# --- verifying -------------------------------------------------------------------------------------------


def _accept(archive: _Archive, source: Path, cache: Path, progress: Progress | None, anew: bool) -> None:
    """Raise unless ``source`` is the archive; remember that it is until it changes."""
    memory = cache / "accepted.json"
    path, state = str(source.resolve()), [fingerprint(source, keep=_is_drawing), archive.digest]

    def read() -> bool | None:
        return (read_facts(memory) or {}).get(path) == state or None

    def build() -> None:
        if not (source.is_file() and md5_of(source) == archive.md5):
            _verify_contents(archive, source, progress)
        remember(memory, path, state)

    prepared(memory.with_suffix(""), read, build, what=source.name, anew=anew)


def _open(source: Path) -> Members:
    return open_members(source, keep=_is_drawing, max_member_bytes=_MAX_DRAWING_BYTES)


def _is_drawing(name: str) -> bool:
    # macOS adds "__MACOSX/.../._0709_01.png" to a zip, and "._0709_01.png" next to a file on some disks.
    return name.endswith(".png") and not name.startswith("__MACOSX/") and "/._" not in name


def _verify_contents(archive: _Archive, source: Path, progress: Progress | None) -> None:
    remedy = (
        f"get {archive.name}.zip again from {archive.url}, or remove {source} and let metagrad download it "
        "(no --data-dir, no METAGRAD_DATA)"
    )
    with _open(source) as members:
        if len(members.names) != archive.count:
            raise MetagradError(
                f"{source} is not the official {archive.name}: {_miscount(members.names, archive)}; {remedy}"
            )

        def report(done: int, total: int) -> None:
            if progress is not None:
                progress(done, total, f"verifying {source.name}")

        if contents_digest(members, report) != archive.digest:
            raise MetagradError(
                f"{source} is not the official {archive.name}: it has the right number of images ({archive.count}), "
                f"but names or contents are altered; {remedy}"
            )


def _miscount(names: Sequence[str], archive: _Archive) -> str:
    if len(names) > archive.count:
        return f"it has {len(names)} images, {len(names) - archive.count} more than the {archive.count} expected"
    counts = Counter(name.rpartition("/")[0] for name in names)
    incomplete = sorted(folder for folder, count in counts.items() if count < DRAWINGS_PER_CLASS)
    where = f" (among them in {incomplete[0]})" if incomplete else ""
    return f"{archive.count - len(names)} of {archive.count} images are missing{where}"


# --- decoding --------------------------------------------------------------------------------------------


def _decode_all(
    archives: Sequence[_Archive],
    sources: Mapping[str, Path],
    classes: Sequence[str],
    progress: Progress | None,
    fill: float | None,
) -> Iterator[np.ndarray]:
    """Yield uint8 (1, 28, 28), the drawings of ``classes`` in that order."""
    names = {archive.name: archive for archive in archives}
    if stray := [label for label in classes if label.partition("/")[0] not in names]:
        raise ValueError(f"{len(stray)} classes of the split belong to no archive")
    with contextlib.ExitStack() as stack:
        opened = {name: stack.enter_context(_open(sources[name])) for name in names}
        drawings: dict[str, list[str]] = {}
        for file in (file for members in opened.values() for file in members.names):
            drawings.setdefault(file.rpartition("/")[0], []).append(file)  # in the order of their names
        for done, label in enumerate(classes, start=1):
            name, files = label.partition("/")[0], drawings.get(label, [])
            if len(files) != DRAWINGS_PER_CLASS:
                raise MetagradError(
                    f"{opened[name].source} has {len(files)} instead of {DRAWINGS_PER_CLASS} drawings of {label}; "
                    f"get {name}.zip again from {names[name].url}"
                )
            for file in files:
                yield _decode(f"{opened[name].source}: {file}", opened[name].read(file), fill)[None]
            if progress is not None:
                progress(done, len(classes), "decoding Omniglot (classes)")


def _decode(where: str, data: bytes, fill: float | None = None) -> np.ndarray:
    """Turn one PNG into uint8 (28, 28), ink 255 on 0; ``where`` names it in an error."""
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            # Only the header has been read so far: a picture of a billion pixels stops here.
            if image.size != (SOURCE_SIZE, SOURCE_SIZE):
                raise MetagradError(
                    f"{where} is {image.width}x{image.height} pixels instead of {SOURCE_SIZE}x{SOURCE_SIZE}; "
                    "get the archive again"
                )
            # Grey before resizing: Pillow resizes a 1-bit picture by nearest neighbour, whatever filter it
            # is asked for, and thin strokes vanish.
            page = ImageOps.invert(image.convert("L"))
            drawn = page if fill is None else framed(page, fill)
    except MetagradError:
        raise
    except Exception as error:  # Pillow lets through whatever its parsers raise on a damaged file
        reason = " ".join(str(error).split())
        raise MetagradError(f"{where} is not a picture that can be read ({reason}); get the archive again") from error
    return np.asarray(drawn.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
