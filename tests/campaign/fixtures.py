"""What the campaign starts from: pictures, data sets in their published layouts, two trained runs, and their caches."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from importlib import resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from ..strokes import drawings

ENDINGS = ("png", "jpg", "webp", "gif", "bmp", "tiff", "ppm")
SMALL = (
    "--image-size", "16", "--network", "conv4", "--filters", "4", "--ways", "3", "--queries", "2", "--tasks", "2",
    "--method", "maml", "--inner-steps", "2", "--val-every", "2", "--val-tasks", "4", "--test-tasks", "4",
    "--checkpoint-seconds", "1e-9",
)  # fmt: skip
_OMNIGLOT = {
    "train": ["images_background/Alpha/character01", "images_background/Alpha/character02"],
    "val": ["images_background/Beta/character01"],
    "test": ["images_evaluation/Gamma/character01", "images_evaluation/Gamma/character02"],
}


def coloured(kinds: int, each: int, seed: int) -> list[list[Image.Image]]:
    """Draw small photographs, as it were: strokes in one colour on another."""
    g = np.random.default_rng(seed)
    found = []
    for some in drawings(kinds, each, seed):
        ink, paper = g.integers(0, 256, (2, 3))
        shades = some[:, ::2, ::2, None] / 255
        found.append([Image.fromarray((ink + shade * (paper - ink)).astype(np.uint8)) for shade in shades])
    return found


def class_folders(folder: Path, kinds: int, each: int, seed: int, endings: tuple[str, ...] = ("png",)) -> None:
    """Write ``each`` pictures of as many kinds into a folder a kind, in one format after the other."""
    for kind, some in enumerate(coloured(kinds, each, seed)):
        (folder / f"kind{kind:02}").mkdir(parents=True)
        for number, picture in enumerate(some):
            picture.save(folder / f"kind{kind:02}" / f"{number}.{endings[number % len(endings)]}")


def split_folder(folder: Path, seed: int) -> None:
    """Write class folders with a split beside them."""
    class_folders(folder, 12, 6, seed)
    split = {"train": range(5), "val": range(5, 8), "test": range(8, 12)}
    named = {which: [f"kind{kind:02}" for kind in kinds] for which, kinds in split.items()}
    (folder / "split.json").write_text(json.dumps(named))


def make(base: Path) -> None:
    """Fill ``base``; it is whole when it has the file ``whole``."""
    from metagrad.cli.main import main

    shutil.rmtree(base, ignore_errors=True)
    data_sets(base)
    class_folders(base / "known", 3, len(ENDINGS), 3, ENDINGS)
    for number, picture in enumerate(coloured(1, len(ENDINGS), 4)[0]):
        (base / "new").mkdir(exist_ok=True)
        picture.save(base / "new" / f"{number}.{ENDINGS[number]}")
    for name in ("known", "pictures"):
        _zip(base / f"{name}.zip", {str(path.relative_to(base)): path.read_bytes() for path in _files(base / name)})
    timeless = SimpleNamespace(monotonic=lambda: 0.0, process_time=lambda: 0.0)  # the same bytes whenever it is made
    here, cache = Path.cwd(), os.environ.get("METAGRAD_CACHE")
    os.chdir(base)
    try:
        for data, run, model in (("others", "other", "other.model"), ("pictures", "run", "my.model")):
            os.environ["METAGRAD_CACHE"] = str(base / ("cache" if data == "pictures" else "cache-others"))
            words = ["train", "folder", "--data-dir", str(base / data), "--run", run, *SMALL, "--meta-steps", "4"]
            for command in (words, ["evaluate", run, "--tasks", "4"], ["check", run, "--tasks", "1"],
                            ["adapt", run, "known", "--out", model]):  # fmt: skip
                with mock.patch("metagrad.experiment.loop.time", timeless):
                    failed = main(command)
                if failed:
                    raise RuntimeError(f"the campaign's own {command} failed")
        for name, size in (("pickles", 8), ("tables", 8), ("cifar", 32), ("omniglot", 28), ("glyphs", 28)):
            main(info(name, base / name, size))
    finally:
        os.chdir(here)
        os.environ["METAGRAD_CACHE"] = cache or ""
    (base / "whole").touch()


def data_sets(base: Path) -> None:
    """Write small data sets into ``base``, and let them pass for the real ones in this process."""
    split_folder(base / "pictures", 1)
    split_folder(base / "others", 2)
    _mini_imagenet(base / "pickles", base / "tables")
    _cifar(base / "cifar")
    _omniglot(base / "omniglot")
    stand_in(base)


def info(name: str, folder: Path | str, size: int = 16) -> list[str]:
    """Return the command that reads a data set of the campaign."""
    known = {"pickles": "mini-imagenet", "tables": "mini-imagenet", "cifar": "cifar-fs"}.get(name, name)
    where = [] if name == "glyphs" else ["--data-dir", str(folder)]
    return ["data", "info", known, *where, "--image-size", str(size)]


def stand_in(base: Path) -> None:
    """Let a small Omniglot, CIFAR-100 and glyphs pass for the real ones, in this process."""
    from metagrad.data import cifar, glyphs, omniglot
    from metagrad.data.archive import contents_digest, open_members

    archives = []
    for name in ("images_background", "images_evaluation"):
        path = base / "omniglot" / f"{name}.zip"
        with open_members(path) as members:
            digest, count = contents_digest(members), len(members.names)
        archives.append(omniglot._Archive(name, "0" * 32, digest, count, "http://127.0.0.1:9/"))
    omniglot._ARCHIVES = tuple(archives)
    omniglot.published_split = lambda name: _OMNIGLOT
    hashes = sorted(hashlib.sha256(row.tobytes()).digest() for row in _records())
    cifar.RECORDS = hashlib.sha256(b"".join(hashes)).hexdigest()
    cifar._FILES, cifar._PER_CLASS = {"train.bin": 100, "test.bin": 100}, 2
    few = {which: names[:4] for which, names in _split("glyphs").items() if which in ("train", "val", "test")}
    glyphs.published_split = lambda name: few


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _zip(path: Path, content: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0)), data)


def _split(name: str) -> dict[str, Any]:
    return json.loads((resources.files("metagrad.data") / "splits" / f"{name}.json").read_text())


def _mini_imagenet(pickles: Path, tables: Path) -> None:
    g = np.random.default_rng(5)
    split = _split("mini-imagenet")
    (tables / "images").mkdir(parents=True)
    pickles.mkdir()
    for which in ("train", "val", "test"):
        images = g.integers(0, 256, (2 * len(split[which]), 84, 84, 3), dtype=np.uint8)
        classes = {label: [2 * number, 2 * number + 1] for number, label in enumerate(split[which])}
        held = {"image_data": images, "class_dict": classes}
        (pickles / f"mini-imagenet-cache-{which}.pkl").write_bytes(pickle.dumps(held, protocol=2))
        with (tables / f"{which}.csv").open("w", newline="") as file:
            table = csv.writer(file)
            table.writerow(("filename", "label"))
            for label, rows in classes.items():
                for row in rows:
                    Image.fromarray(images[row, :8, :8]).save(tables / "images" / f"{label}{row:08}.png")
                    table.writerow((f"{label}{row:08}.png", label))


def _classes_of_cifar() -> list[str]:
    split = _split("cifar-fs")
    labels = [label for which in ("train", "val", "test") for label in split[which]]
    return sorted(labels, key=lambda label: label.split("/")[1])


def _records() -> np.ndarray:
    labels = _classes_of_cifar()
    groups = sorted({label.split("/")[0] for label in labels})
    rows = np.random.default_rng(6).integers(0, 256, (200, 3074), dtype=np.uint8)
    for number in range(200):
        rows[number, :2] = groups.index(labels[number % 100].split("/")[0]), number % 100
    return rows


def _cifar(folder: Path) -> None:
    folder.mkdir()
    labels, rows = _classes_of_cifar(), _records()
    content = {
        "train.bin": rows[:100].tobytes(),
        "test.bin": rows[100:].tobytes(),
        "fine_label_names.txt": "\n".join(label.split("/")[1] for label in labels).encode(),
        "coarse_label_names.txt": "\n".join(sorted({label.split("/")[0] for label in labels})).encode(),
    }
    with tarfile.open(folder / "cifar-100-binary.tar.gz", "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(f"cifar-100-binary/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def _omniglot(folder: Path) -> None:
    content: dict[str, dict[str, bytes]] = {}
    classes = [name for which in _OMNIGLOT.values() for name in which]
    for kind, name in enumerate(classes):
        for number in range(20):
            pixels = np.ones((105, 105), dtype=bool)
            pixels[20 + 3 * kind + number, 10:90] = pixels[10:90, 20 + 2 * number] = False
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            content.setdefault(name.split("/")[0], {})[f"{name}/{number:02}.png"] = file.getvalue()
    for name, files in content.items():
        _zip(folder / f"{name}.zip", files)
