"""Omniglot from small archives made here, and once from the real ones."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metagrad.data import class_splits, omniglot
from metagrad.data.archive import contents_digest, open_members
from metagrad.data.classes import Dataset
from metagrad.data.sources import Progress
from metagrad.errors import MetagradError, MetagradWarning

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

    def load(self, progress: Progress | None = None, *, cache: Path | None = None) -> Dataset:
        return omniglot._load(self.data, cache or self.cache, progress, self.archives, SPLIT)

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


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
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


def test_shapes_order_and_description(small: Small) -> None:
    small.zip()
    dataset = small.load()
    assert dataset.name == "omniglot"
    assert dataset.rotations
    assert dataset.preprocessing == "105x105 1-bit -> 8-bit grey, inverted (ink 255), Lanczos to 28x28"
    for split, names in (
        (dataset.train, SPLIT["train"]),
        (dataset.val, SPLIT["val"]),
        (dataset.test, SPLIT["test"]),
    ):
        assert split.images.dtype == torch.uint8
        assert split.images.shape == (20 * len(names), 1, 28, 28)
        assert split.names == tuple(names)
        assert split.counts.tolist() == [20] * len(names)
    files = sorted(small.content["images_background"])
    for index in (0, 19, 20, 39):
        expected = omniglot._decode("here", small.content["images_background"][files[index]])
        assert np.array_equal(dataset.train.images[index, 0].numpy(), expected)


def test_committed_split() -> None:
    split = class_splits.published_split("omniglot")
    assert {part: len(names) for part, names in split.items()} == {"train": 1028, "val": 172, "test": 423}
    names = [name for part in split.values() for name in part]
    assert len(set(names)) == 1623
    assert all(part == sorted(part) for part in split.values())
    counts = {archive.name: archive.count for archive in omniglot._ARCHIVES}
    for archive, count in counts.items():
        assert 20 * sum(name.startswith(f"{archive}/") for name in names) == count


@pytest.mark.parametrize("place", [".", "omniglot", "omniglot-py", "omniglot/python"])
def test_zip_and_folder_give_the_same_wherever_they_are(small: Small, place: str) -> None:
    small.zip()
    expected = small.load()
    small.root /= "elsewhere"
    small.zip(place)
    assert same(small.load(), expected)
    small.root /= "extracted"
    small.extract(place)
    assert same(small.load(), expected)


def test_one_zip_and_one_folder(small: Small) -> None:
    write_zip(small.data / "omniglot" / "images_evaluation.zip", small.content["images_evaluation"])
    write_folder(small.data, small.content["images_background"])
    (small.data / "images_evaluation").mkdir()  # empty: passed over
    assert len(small.load().test.names) == 2


def test_environment_names_the_directory(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    small.zip()
    monkeypatch.setenv("METAGRAD_DATA", str(small.data))
    assert same(omniglot._load(None, small.cache, None, small.archives, SPLIT), small.load())
    with pytest.raises(MetagradError, match="nowhere does not exist"):  # an argument comes first
        omniglot._load(small.root / "nowhere", small.cache, None, small.archives, SPLIT)


def test_other_files_are_ignored(small: Small) -> None:
    small.zip()
    expected = small.load()
    for content in small.content.values():
        folder = next(iter(content)).rpartition("/")[0]
        content[f"{folder}/.DS_Store"] = b"x"
        content[f"{folder}/._0001_01.png"] = b"x"
        content[f"__MACOSX/{folder}/._0001_01.png"] = b"x"
    small.zip()
    assert same(small.load(cache=small.root / "second"), expected)
    for path in small.data.glob("*.zip"):
        path.unlink()
    small.extract()
    assert same(small.load(cache=small.root / "third"), expected)


def test_official_md5_is_enough(small: Small) -> None:
    small.zip()
    path = small.data / "images_background.zip"
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    small.archives[0] = replace(small.archives[0], md5=md5)
    assert small.labels() == ["verifying images_evaluation.zip", "decoding Omniglot (classes)"]


# --- the cache -------------------------------------------------------------------------------------------


def test_second_load_reads_the_cache_only(small: Small) -> None:
    small.zip()
    verifying = ["verifying images_background.zip", "verifying images_evaluation.zip"]
    assert small.labels() == [*verifying, "decoding Omniglot (classes)"]
    first = small.load()
    assert small.labels() == []
    assert same(small.load(), first)
    assert sorted(path.suffix for path in small.cache.rglob("*") if path.suffix in (".json", ".npy")) == [
        ".json",
        ".json",
        ".npy",
    ]


def test_touched_archive_is_verified_again(small: Small) -> None:
    small.zip()
    small.load()
    os.utime(small.data / "images_evaluation.zip", ns=(0, 12345))
    assert small.labels() == ["verifying images_evaluation.zip"]
    assert small.labels() == []


def test_archive_altered_after_it_was_accepted(small: Small) -> None:
    small.extract()
    small.load()
    (small.data / next(iter(small.content["images_background"]))).write_bytes(drawing(999))
    small.refuses("altered")


def test_memory_of_other_contents_does_not_count(small: Small) -> None:
    small.zip()
    small.load()
    small.archives[0] = replace(small.archives[0], digest="0" * 64)
    small.refuses("altered")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff\xfe"])
def test_damaged_memory_is_written_anew(small: Small, damage: bytes) -> None:
    small.zip()
    small.load()
    (small.cache / "omniglot" / "accepted.json").write_bytes(damage)
    with pytest.warns(MetagradWarning, match=r"accepted\.json is damaged"):
        assert "verifying images_background.zip" in small.labels()
    assert small.labels() == []


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: data[:-9]])
def test_damaged_cache_is_made_anew(small: Small, damage) -> None:
    small.zip()
    first = small.load()
    (path,) = (small.cache / "omniglot").glob("*.npy")
    path.write_bytes(damage(path.read_bytes()))
    with pytest.warns(MetagradWarning, match="npy is damaged"):
        assert small.labels() == ["decoding Omniglot (classes)"]
    assert same(small.load(), first)


def test_flipped_pixels_in_the_cache_are_noticed(small: Small) -> None:
    small.zip()
    first = small.load()
    (path,) = (small.cache / "omniglot").glob("*.npy")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.warns(MetagradWarning, match="npy is damaged"):
        assert same(small.load(), first)


def test_cache_of_another_shape(small: Small) -> None:
    small.zip()
    first = small.load()
    (path,) = (small.cache / "omniglot").glob("*.npy")
    np.save(path, np.zeros((3, 1, 28, 28), dtype=np.uint8))
    with pytest.warns(MetagradWarning, match=r"npy is damaged .*another shape"):
        assert same(small.load(), first)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="posix")
def test_cache_that_cannot_be_written(small: Small) -> None:
    small.zip()
    small.cache.write_bytes(b"a file where a folder should be")
    small.refuses("METAGRAD_CACHE")


# --- refusals --------------------------------------------------------------------------------------------


def test_missing_directory(small: Small) -> None:
    small.data.rmdir()
    assert str(small.data) in small.refuses("does not exist; pass another with --data-dir")


def test_empty_directory(small: Small) -> None:
    message = small.refuses("images_background")
    assert str(small.data) in message
    for place in (".", "omniglot", "omniglot-py", "omniglot/python"):
        assert all(str(Path(place) / name) in message for name in ("images_background", "images_background.zip"))


def test_one_archive_of_two(small: Small) -> None:
    write_zip(small.data / "images_background.zip", small.content["images_background"])
    small.refuses("images_evaluation is not in")


def test_missing_images(small: Small) -> None:
    content = small.content["images_background"]
    name = sorted(content)[25]
    content.pop(name)
    small.zip()
    message = small.refuses(r"1 of 60 images are missing \(among them in images_background/Alpha/character02\)")
    assert str(small.data / "images_background.zip") in message
    assert "get images_background.zip again" in message


def test_missing_class_and_added_images(small: Small) -> None:
    content = small.content["images_evaluation"]
    for name in [name for name in content if "character02" in name]:
        content.pop(name)
    small.zip()
    small.refuses("20 of 40 images are missing")
    content.update({f"images_evaluation/Gamma/character03/{i:02}.png": drawing(i) for i in range(30)})
    small.zip()
    small.refuses("has 50 images, 10 more than the 40 expected")


def test_altered_contents(small: Small) -> None:
    content = small.content["images_background"]
    content[next(iter(content))] = drawing(999)
    small.zip()
    message = small.refuses("altered")
    assert str(small.data / "images_background.zip") in message


def test_renamed_image(small: Small) -> None:
    content = small.content["images_background"]
    name = next(iter(content))
    content[name.replace(".png", "x.png")] = content.pop(name)
    small.extract()
    assert str(small.data / "images_background") in small.refuses("altered")


def test_truncated_zip(small: Small) -> None:
    small.zip()
    path = small.data / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(path) in small.refuses("not a whole zip file")


def test_zip_that_would_escape(small: Small) -> None:
    small.content["images_evaluation"]["../up.png"] = b"x"
    small.zip()
    small.refuses("refused")


def test_huge_member(small: Small) -> None:
    content = small.content["images_background"]
    content[next(iter(content))] = bytes(1_000_000)
    small.zip()
    small.refuses("over the limit")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"not a png", "not a picture"),
        (b"", "not a picture"),
        (drawing(1)[:60], "not a picture"),
        (drawing(1)[:16] + b"\xff" * 40, "not a picture"),
        (png(np.ones((28, 28), dtype=bool)), "28x28 pixels instead of 105x105"),
        (png(np.ones((10_000, 10_000), dtype=bool)), "10000x10000 pixels instead"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_undecodable_image(small: Small, data: bytes, match: str) -> None:
    content = small.content["images_background"]
    name = sorted(content)[3]
    content[name] = data
    small.redescribe()
    small.zip()
    message = small.refuses(match)
    assert name in message
    assert str(small.data / "images_background.zip") in message


def test_class_with_too_few_drawings(small: Small) -> None:
    content = small.content["images_background"]
    name = sorted(content)[3]
    content[name.replace("character01", "character09")] = content.pop(name)
    small.redescribe()
    small.zip()
    small.refuses("19 instead of 20 drawings of images_background/Alpha/character01")


def test_split_that_names_no_archive(small: Small) -> None:
    small.zip()
    split = {**SPLIT, "test": [*SPLIT["test"], "elsewhere/Delta/character01"]}
    with pytest.raises(ValueError, match="1 classes"):
        omniglot._load(small.data, small.cache, None, small.archives, split)


# --- decoding --------------------------------------------------------------------------------------------


def test_ink_is_bright_and_paper_is_dark() -> None:
    pixels = np.ones((105, 105), dtype=bool)
    pixels[:, 52:] = False
    image = omniglot._decode("here", png(pixels))
    assert image.shape == (28, 28)
    assert image.dtype == np.uint8
    assert (image[:, :10] == 0).all()
    assert (image[:, 18:] == 255).all()


def test_resizing_keeps_thin_strokes() -> None:
    # A stroke one pixel wide: nearest neighbour, which Pillow uses on 1-bit pictures whatever filter is
    # asked for, hits it or misses it; an antialiased resize spreads the same ink wherever it lies.
    sums, nearest = [], []
    for column in range(40, 48):
        pixels = np.ones((105, 105), dtype=bool)
        pixels[:, column] = False
        image = omniglot._decode("here", png(pixels))
        assert ((image > 0) & (image < 255)).any()
        sums.append(int(image[14].astype(int).sum()))
        one_bit = Image.fromarray(~pixels).resize((28, 28), Image.Resampling.LANCZOS)
        nearest.append(int(np.asarray(one_bit)[14].sum()))
    assert min(nearest) == 0  # the trap is still there
    assert max(sums) < 1.5 * min(sums)
    assert min(sums) > 0.8 * 255 * 28 / 105


# --- downloading -----------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()
        thread.join()


def serve(small: Small, url: str) -> None:
    for index, (name, content) in enumerate(small.content.items()):
        path = small.root / "served" / f"{name}.zip"
        write_zip(path, content)
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        small.archives[index] = replace(small.archives[index], md5=md5, url=f"{url}{name}.zip")


def test_download_once(small: Small, server: str) -> None:
    serve(small, server)
    heard: list[str] = []
    first = omniglot._load(None, small.cache, lambda done, total, what: heard.append(what), small.archives, SPLIT)
    assert heard[0] == "downloading images_background.zip"
    for path in (small.root / "served").iterdir():
        path.unlink()
    assert same(omniglot._load(None, small.cache, None, small.archives, SPLIT), first)
    small.zip()
    assert same(small.load(), first)


def test_damaged_download_is_fetched_again(small: Small, server: str) -> None:
    serve(small, server)
    first = omniglot._load(None, small.cache, None, small.archives, SPLIT)
    (small.cache / "omniglot" / "images_background.zip").write_bytes(b"damaged")
    assert same(omniglot._load(None, small.cache, None, small.archives, SPLIT), first)


@pytest.mark.parametrize("broken", ["unreachable", "missing", "other contents"])
def test_failed_download(small: Small, server: str, broken: str) -> None:
    serve(small, server)
    served = small.root / "served" / "images_background.zip"
    if broken == "unreachable":
        small.archives[0] = replace(small.archives[0], url=f"{UNREACHABLE}images_background.zip")
    elif broken == "missing":
        served.unlink()
    else:
        served.write_bytes(b"not it")
    with pytest.raises(MetagradError, match=r"cannot download http.*--data-dir") as caught:
        omniglot._load(None, small.cache, None, small.archives, SPLIT)
    assert "\n" not in str(caught.value)
    assert not (small.cache / "omniglot" / "images_background.zip").exists()


# --- the real thing --------------------------------------------------------------------------------------


def real_data() -> Path | None:
    named = os.environ.get("METAGRAD_DATA")
    try:
        return Path(named) if named and omniglot._find(Path(named), "images_background") else None
    except MetagradError:
        return None


@pytest.mark.slow
@pytest.mark.skipif(real_data() is None, reason="METAGRAD_DATA names no directory with Omniglot")
def test_real_archives(tmp_path: Path) -> None:
    first = omniglot.load(data_dir=real_data(), cache_dir=tmp_path)
    started = time.perf_counter()
    second = omniglot.load(data_dir=real_data(), cache_dir=tmp_path)
    assert time.perf_counter() - started < 1
    assert same(first, second)
    assert [len(split.images) for split in (first.train, first.val, first.test)] == [20560, 3440, 8460]
    # Ink covers a few percent of the page; paper and ink the wrong way round would be far above.
    assert 0.03 < first.train.images.float().mean() / 255 < 0.15
    assert first.train.images.flatten(1).amax(1).min() > 100
