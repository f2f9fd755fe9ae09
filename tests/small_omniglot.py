"""Two small archives that pass for Omniglot's, and what a test does with them."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metagrad.data import omniglot
from metagrad.data.archive import contents_digest, open_members
from metagrad.data.classes import Dataset
from metagrad.data.rows import Progress
from metagrad.errors import MetagradError

SPLIT = {
    "train": ["images_background/Alpha/character01", "images_background/Alpha/character02"],
    "val": ["images_background/Beta/character01"],
    "test": ["images_evaluation/Gamma/character01", "images_evaluation/Gamma/character02"],
}
UNREACHABLE = "http://127.0.0.1:9/"


def drawing(seed: int) -> bytes:
    """Return a 1-bit PNG like Omniglot's: a black stroke, one to three pixels wide, on white."""
    pixels = np.ones((105, 105), dtype=bool)
    row, column = divmod(seed * 37 % 2500, 50)
    pixels[row + 20 : row + 21 + seed % 3, 10:90] = False
    pixels[10:90, column + 20] = False
    return png(pixels)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_zip(path: Path, content: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def write_folder(parent: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (parent / name).parent.mkdir(parents=True, exist_ok=True)
        (parent / name).write_bytes(data)


def describe(name: str, content: dict[str, bytes], folder: Path) -> omniglot._Archive:
    """Return what the loader must know to accept ``content`` as an archive, however it is packed."""
    source = folder / "describe.zip"
    write_zip(source, content)
    with open_members(source) as members:
        digest = contents_digest(members)
    return omniglot._Archive(name, "0" * 32, digest, len(content), f"{UNREACHABLE}{name}.zip")


@dataclass
class Small:
    """Two small archives: their content by file name, what the loader expects of them, and where to work."""

    root: Path
    content: dict[str, dict[str, bytes]]
    archives: list[omniglot._Archive]

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    def zip(self, place: str = ".") -> None:
        for name, content in self.content.items():
            write_zip(self.data / place / f"{name}.zip", content)

    def extract(self, place: str = ".") -> None:
        for content in self.content.values():
            write_folder(self.data / place, content)

    def load(
        self, progress: Progress | None = None, *, cache: Path | None = None, fill: float | None = None
    ) -> Dataset:
        return omniglot._load(self.data, cache or self.cache, progress, self.archives, SPLIT, fill=fill)

    def refuses(self, match: str) -> str:
        with pytest.raises(MetagradError, match=match) as caught:
            self.load()
        message = str(caught.value)
        assert "\n" not in message
        return message

    def redescribe(self) -> None:
        """Accept the content as it is now."""
        self.archives = [describe(name, content, self.root) for name, content in self.content.items()]

    def labels(self) -> list[str]:
        """Load and return what the progress callback heard of, in order and once each."""
        heard: list[tuple[int, int, str]] = []
        self.load(lambda *report: heard.append(report))
        assert all(0 <= done <= total for done, total, _ in heard)
        return list(dict.fromkeys(label for _, _, label in heard))


def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    """Return two archives with the drawings of five characters."""
    monkeypatch.delenv("METAGRAD_DATA", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    content: dict[str, dict[str, bytes]] = {"images_background": {}, "images_evaluation": {}}
    seed = 0
    for names in SPLIT.values():
        for name in names:
            for number in range(1, 21):
                seed += 1
                content[name.partition("/")[0]][f"{name}/{seed // 20:04}_{number:02}.png"] = drawing(seed)
    small = Small(tmp_path, content, [])
    small.redescribe()
    small.data.mkdir()
    return small


def same(one: Dataset, other: Dataset) -> bool:
    pairs = [(one.train, other.train), (one.val, other.val), (one.test, other.test)]
    return one.digest == other.digest and all(
        torch.equal(a.images, b.images) and a.names == b.names and torch.equal(a.counts, b.counts) for a, b in pairs
    )
