"""Features in place of pictures: the same tasks are drawn from them, and the same files are left out."""

import hashlib
import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from strokes import dataset
from torch.nn import functional

from metagrad import MetagradError
from metagrad.data import ImageClasses, cache, folder, folder_features
from metagrad.data.feature_folders import stores
from metagrad.data.features import (
    FeatureExtractor,
    array_keys,
    at_size,
    features_of_dataset,
    picture_keys,
)
from metagrad.data.folder_features import features_of_folder
from metagrad.fewshot import EpisodeSampler

SIZE = 12


class Extractor:
    """A network of one layer that counts its pictures."""

    def __init__(self, seed=0, shape=(6,)):
        self.weight = torch.randn(6, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        self.seen = 0
        self.value = FeatureExtractor(
            name=f"toy {seed}", digest=f"digest {seed}", shape=shape, image_size=SIZE, compute=self
        )

    def __call__(self, batch):
        assert batch.shape[1:] == (3, SIZE, SIZE)
        assert batch.dtype == torch.float32
        assert 0 <= batch.min() <= batch.max() <= 1
        self.seen += len(batch)
        return self.rows(batch)

    def rows(self, batch):
        found = functional.conv2d(batch, self.weight)
        return found.mean((2, 3)) if self.value.shape == (6,) else found


@pytest.fixture(autouse=True)
def place(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("METAGRAD_CACHE", str(folder))
    return folder


def picture(seed, form="PNG", size=(40, 30)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def fill(root, classes=8, each=5):
    for c in range(classes):
        (root / f"class {c}").mkdir(parents=True)
        for i in range(each):
            (root / f"class {c}" / f"{i}.png").write_bytes(picture(100 * c + i))
    return root


def tasks_of(classes, seed=3, **counts):
    return EpisodeSampler(classes=classes, **(counts or {"ways": 3, "shots": 1, "queries": 2}))(
        4, generator=torch.Generator().manual_seed(seed)
    )


# --- keys ----------------------------------------------------------------------------------------------------


def test_keys_are_digests_of_content(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path, content in zip(paths, (b"one", b"two", b"one"), strict=True):
        path.write_bytes(content)
    assert picture_keys(paths) == [hashlib.sha256(text).digest() for text in (b"one", b"two", b"one")]
    with pytest.raises(MetagradError, match="does not exist: name a picture"):
        picture_keys([*paths, tmp_path / "d"])
    assert picture_keys([]) == []


def test_keys_of_arrays_tell_rows_shapes_and_types_apart():
    rows = np.arange(48, dtype=np.uint8).reshape(4, 3, 2, 2)
    keys = array_keys(rows)
    assert len(set(keys)) == 4
    assert array_keys(torch.from_numpy(rows)) == keys
    assert array_keys(np.asfortranarray(rows)) == keys
    assert array_keys(rows[2:]) == keys[2:]
    assert not set(array_keys(rows.reshape(4, 2, 3, 2))) & set(keys)
    assert not set(array_keys(rows.view(np.int8))) & set(keys)


# --- of a data set of images ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6,), (6, 8, 8)])
def test_tasks_drawn_from_features_are_the_features_of_the_tasks(shape):
    images, extractor = dataset(), Extractor(shape=shape)
    features = features_of_dataset(images, extractor.value)
    assert extractor.seen == sum(len(part.data) for part in (images.train, images.val, images.test))
    for which in ("train", "val", "test"):
        part, of_images = getattr(features, which), getattr(images, which)
        assert part.names == of_images.names
        assert torch.equal(part.counts, of_images.counts)
        drawn, pixels = tasks_of(part), tasks_of(of_images)
        assert torch.equal(drawn.classes, pixels.classes)
        for side in ("support", "query"):
            x, y = getattr(drawn, side)
            seen = getattr(pixels, side)
            assert torch.equal(y, seen.y)
            shown = functional.interpolate(seen.x.flatten(0, 1), (SIZE, SIZE), mode="bicubic", antialias=True)
            truth = extractor.rows(shown.clamp(0, 1).expand(-1, 3, -1, -1)).unflatten(0, x.shape[:2])
            assert torch.allclose(x, truth, atol=1e-5)
            assert x.std() > 0.01
    assert features.pictures is images
    again = Extractor(shape=shape)
    second = features_of_dataset(images, again.value)
    assert again.seen == 0
    assert torch.equal(second.train.data, features.train.data)
    assert second.digest == features.digest
    assert features_of_dataset(images, Extractor(1, shape).value).digest != features.digest


def test_splits_that_share_an_array_in_another_order_have_their_own_rows():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (30, 3, SIZE, SIZE), dtype=np.uint8))
    whole = ImageClasses(images, torch.tensor([4, 6, 3, 7, 5, 5]), tuple("abcdef"))
    parted = dataset().__class__("toy", whole.subset("eb"), whole.subset("ad"), whole.subset("fc"), False, "p", "d")
    extractor = Extractor()
    truth = extractor.rows(images.float() / 255)
    for _ in range(2):
        features = features_of_dataset(parted, extractor.value)
        assert torch.allclose(features.train.data, truth[[*range(20, 25), *range(4, 10)]], atol=1e-6)
        assert torch.allclose(features.val.data, truth[[*range(4), *range(13, 20)]], atol=1e-6)
        assert torch.allclose(features.test.data, truth[[*range(25, 30), *range(10, 13)]], atol=1e-6)
    assert extractor.seen == 30


def test_the_features_of_a_data_set_that_was_computed_in_order_are_not_copied():
    features = features_of_dataset(dataset(), Extractor().value)
    pointers = {part.data.untyped_storage().data_ptr() for part in (features.train, features.val, features.test)}
    assert len(pointers) == 1


def test_images_of_two_channels_are_refused():
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        at_size(torch.zeros(1, 2, 4, 4, dtype=torch.uint8), 4)


# --- of folders ----------------------------------------------------------------------------------------------


def test_the_features_of_a_folder_are_those_of_its_decoded_pictures(tmp_path, place):
    source, extractor = fill(tmp_path / "set"), Extractor()
    images = folder.load(source, size=SIZE, cache_dir=tmp_path / "other")
    features = features_of_folder(source, extractor.value)
    assert extractor.seen == 40
    for which in ("train", "val", "test"):
        part, of_images = getattr(features, which), getattr(images, which)
        assert part.names == of_images.names
        assert torch.equal(part.counts, of_images.counts)
        drawn, pixels = tasks_of(part, ways=2, shots=1, queries=2), tasks_of(of_images, ways=2, shots=1, queries=2)
        truth = extractor.rows(pixels.query.x.flatten(0, 1)).unflatten(0, (4, 4))
        assert torch.allclose(drawn.query.x, truth, atol=1e-5)
    assert features.notes == images.notes
    assert not list(place.glob("pictures/*.npy"))  # no pixels are kept
    again = Extractor()
    assert features_of_folder(source, again.value).digest == features.digest
    assert again.seen == 0


def test_no_file_is_read_again_before_one_changes(tmp_path, monkeypatch):
    source = fill(tmp_path / "set")
    before = features_of_folder(source, Extractor().value)
    reads = []
    in_threads = folder_features.in_threads
    monkeypatch.setattr(folder_features, "in_threads", lambda *args: (reads.append(1), in_threads(*args))[1])
    features_of_folder(source, Extractor().value)
    assert not reads
    extractor = Extractor()
    features_of_folder(source, extractor.value, anew=True)
    assert reads == [1]
    assert extractor.seen == 0
    (source / "class 3" / "2.png").write_bytes(picture(7777))
    after = features_of_folder(source, extractor.value)
    assert extractor.seen == 1
    assert after.digest != before.digest
    # Of facts that a disk changed, the files are read again.
    for path in cache.cache_root().glob("pictures/keys-*.json"):
        path.write_text(path.read_text().replace("class 3", "class 9"))
    assert features_of_folder(source, extractor.value).digest == after.digest
    assert extractor.seen == 1


def test_the_same_is_said_of_files_that_are_left_out_as_where_pictures_are_decoded(tmp_path):
    source = fill(tmp_path / "set")
    (source / "class 0" / "empty.png").write_bytes(b"")
    (source / "class 0" / "text.jpg").write_text("no picture")
    (source / "class 1" / "cut.png").write_bytes(picture(5)[:500])
    (source / "class 1" / "same cut.png").write_bytes(picture(5)[:500])
    (source / "class 2" / "twice.png").write_bytes(picture(201))
    (source / "class 3" / "shared.png").write_bytes(picture(402))
    (source / "class 4" / "notes.txt").write_text("x")
    (source / "nothing").mkdir()
    (source / "nothing" / "bad.png").write_text("x")
    (source / "more.zip").write_bytes(b"x")
    images = folder.load(source, size=SIZE)
    for _ in range(2):
        extractor = Extractor()
        features = features_of_folder(source, extractor.value)
        assert features.notes == images.notes
        assert features.train.counts.tolist() == images.train.counts.tolist()
        assert features.test.names == images.test.names
    assert extractor.seen == 0
    with pytest.raises(MetagradError, match="cannot be read"):
        features_of_folder(source, extractor.value, strict=True)


def test_a_zip_and_a_split_are_read_as_ever(tmp_path):
    source, extractor = fill(tmp_path / "set"), Extractor()
    split = {"train": ["class 5", "class 0"], "val": ["class 7"], "test": ["class 2", "class 1"]}
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(source.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    one = features_of_folder(source, extractor.value, split=split)
    other = features_of_folder(tmp_path / "set.zip", extractor.value, split=split)
    assert extractor.seen == 40
    assert one.train.names == ("class 5", "class 0")
    assert one.digest == other.digest
    assert torch.equal(tasks_of(one.test, ways=2, shots=1, queries=1).support.x,
                       tasks_of(other.test, ways=2, shots=1, queries=1).support.x)  # fmt: skip
    assert one.digest != features_of_folder(source, extractor.value).digest
    with pytest.raises(MetagradError, match="has no class in val"):
        features_of_folder(source, extractor.value, split={**split, "val": []})
    with pytest.raises(MetagradError, match="does not exist"):
        features_of_folder(tmp_path / "nowhere", extractor.value)


def test_a_folder_of_nothing_that_can_be_read_is_refused(tmp_path):
    (tmp_path / "set" / "a").mkdir(parents=True)
    (tmp_path / "set" / "a" / "1.png").write_text("x")
    with pytest.raises(MetagradError, match="none of 1 file can be read"):
        features_of_folder(tmp_path / "set", Extractor().value)


def test_small_pictures_show_what_tasks_are_of(tmp_path):
    source = fill(tmp_path / "set")
    (source / "class 2" / "twice.png").write_bytes(picture(201))
    (source / "class 2" / "0 bad.png").write_text("x")
    images = folder.load(source, size=8, cache_dir=tmp_path / "other")
    for _ in range(2):
        features = features_of_folder(source, Extractor().value, thumbnails=8)
        for which in ("train", "val", "test"):
            small, full = (
                tasks_of(getattr(one, which), ways=2, shots=1, queries=2) for one in (features.pictures, images)
            )
            assert torch.equal(small.support.x, full.support.x)
    assert [one.name for one in stores()] == ["small pictures", "toy 0"]
    assert features_of_folder(source, Extractor().value).pictures is None


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, place, monkeypatch):
    source = fill(tmp_path / "set")
    truth = features_of_folder(source, Extractor().value)
    monkeypatch.setenv("METAGRAD_CACHE", str(source / "class 0" / "0.png"))
    for _ in range(2):
        extractor = Extractor()
        with pytest.warns(match="computed but cannot be cached"):
            features = features_of_folder(source, extractor.value)
        assert torch.equal(features.train.data, truth.train.data)
        assert features.digest == truth.digest
        assert extractor.seen == 40
