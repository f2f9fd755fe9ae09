"""Omniglot from small archives made here, and once from the real ones."""

from __future__ import annotations

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_omniglot import SPLIT, Small, drawing, make, png, same, write_folder, write_zip

from metagrad.data import class_splits, omniglot
from metagrad.errors import MetagradError, MetagradWarning


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    return make(tmp_path, monkeypatch)


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


def test_drawings_of_one_size_are_kept_apart_from_the_pages_as_they_are(small: Small) -> None:
    small.zip()
    whole, one_size = small.load(), small.load(fill=0.85)
    file = min(small.content["images_background"])
    expected = omniglot._decode("here", small.content["images_background"][file], 0.85)
    assert np.array_equal(one_size.train.images[0, 0].numpy(), expected)
    assert not torch.equal(one_size.train.images, whole.train.images)
    assert one_size.digest != whole.digest
    assert "longer side 0.85" in one_size.preprocessing
    assert same(small.load(fill=0.85), one_size)
    assert same(small.load(), whole)


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
