"""CIFAR-100's splits, mini- and tiered-ImageNet, read from small stand-ins in the published layouts."""

import csv
import gzip
import hashlib
import io
import json
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from importlib import resources

import numpy as np
import pytest
import torch
from PIL import Image

from metagrad import MetagradError, MetagradWarning
from metagrad.data import cifar, imagenet


def official(name):
    return json.loads((resources.files("metagrad.data") / "splits" / f"{name}.json").read_text())


@pytest.mark.parametrize(("name", "sizes"), [
    ("cifar-fs", (64, 16, 20)), ("mini-imagenet", (64, 16, 20)), ("tiered-imagenet", (351, 97, 160)),
])  # fmt: skip
def test_published_splits_are_disjoint(name, sizes):
    split = official(name)
    parts = [set(split[which]) for which in ("train", "val", "test")]
    assert tuple(map(len, parts)) == sizes
    assert len(set.union(*parts)) == sum(sizes)


LABELS = [label for which in ("train", "val", "test") for label in official("cifar-fs")[which]]
GROUPS = sorted({label.split("/")[0] for label in LABELS})
CLASSES = sorted(LABELS, key=lambda label: label.split("/")[1])  # as CIFAR-100 numbers them
FEW = {"train.bin": 500, "test.bin": 100}


def records(seed=0):
    """Six images of each class, in the order of a seed."""
    g = np.random.default_rng(1)
    rows = np.empty((600, 3074), dtype=np.uint8)
    for row in range(600):
        group, _ = CLASSES[row % 100].split("/")
        rows[row, 0], rows[row, 1], rows[row, 2:] = GROUPS.index(group), row % 100, g.integers(0, 256, 3072)
    return rows[np.random.default_rng(seed).permutation(600)]


def binary(path, rows):
    files = {"train.bin": rows[:500].tobytes(), "test.bin": rows[500:].tobytes(), "fine_label_names.txt": b"apple\n"}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def small(monkeypatch):
    digest = hashlib.sha256(b"".join(sorted(hashlib.sha256(row.tobytes()).digest() for row in records()))).hexdigest()
    monkeypatch.setattr(cifar, "RECORDS", digest)
    monkeypatch.setattr(cifar, "_FILES", FEW)
    monkeypatch.setattr(cifar, "_PER_CLASS", 6)


def test_cifar_whatever_the_order_of_records(tmp_path, small):
    found = []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        binary(tmp_path / str(seed) / "cifar-100-binary.tar.gz", records(seed))
        found.append(cifar.load("cifar-fs", data_dir=tmp_path / str(seed), cache_dir=tmp_path / f"cache{seed}"))
    assert found[0].digest == found[1].digest
    assert torch.equal(found[0].train.images, found[1].train.images)
    label = found[0].test.names[3]
    first = int(found[0].test.first[3])
    mine = {row[2:].tobytes() for row in records() if row[1] == CLASSES.index(label)}
    assert {image.numpy().tobytes() for image in found[0].test.images[first : first + 6]} == mine


def test_fc100_splits_by_groups(tmp_path, small):
    binary(tmp_path / "cifar-100-binary.tar.gz", records())
    found = cifar.load("fc100", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert [len(part.names) for part in (found.train, found.val, found.test)] == [60, 20, 20]
    groups = [{name.split("/")[0] for name in part.names} for part in (found.train, found.val, found.test)]
    assert groups[0] == set(official("fc100")["train"])
    assert not groups[0] & groups[2]
    other = cifar.load("cifar-fs", data_dir=tmp_path, cache_dir=tmp_path / "cache")  # unpacked once for both
    assert other.digest != found.digest


def test_altered_cifar_is_refused(tmp_path, small):
    rows = records()
    rows[3, 100] ^= 1
    binary(tmp_path / "cifar-100-binary.tar.gz", rows)
    with pytest.raises(MetagradError, match="some are altered"):
        cifar.load("cifar-fs", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    binary(tmp_path / "cifar-100-binary.tar.gz", rows[:-1])
    with pytest.raises(MetagradError, match="missing or cut"):
        cifar.load("cifar-fs", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(b"no archive")
    with pytest.raises(MetagradError, match="cannot be read"):
        cifar.load("cifar-fs", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(MetagradError, match="CIFAR-100 is not in"):
        cifar.load("cifar-fs", data_dir=tmp_path / "nothing", cache_dir=tmp_path / "cache")


def colour(seed):
    return np.random.default_rng(seed).integers(0, 256, (90, 100, 3), dtype=np.uint8)


def test_mini_imagenet_in_its_three_forms(tmp_path):
    split = official("mini-imagenet")
    labels = [(which, label) for which in ("train", "val", "test") for label in split[which]]
    table, tree = tmp_path / "table", tmp_path / "tree" / "mini-imagenet"
    (table / "images").mkdir(parents=True)
    rows = {which: [] for which in split}
    for number, (which, label) in enumerate(labels):
        (tree / label).mkdir(parents=True)
        for i in range(2):
            name = f"{label}{i:08}.jpg"
            Image.fromarray(colour(2 * number + i)).save(table / "images" / name)
            Image.fromarray(colour(2 * number + i)).save(tree / label / name)
            rows[which].append((name, label))
    for which in ("train", "val", "test"):
        with (table / f"{which}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("filename", "label"), *rows[which]])
    by_table = imagenet.load("mini-imagenet", size=16, data_dir=table, cache_dir=tmp_path / "cache")
    by_folder = imagenet.load("mini-imagenet", size=16, data_dir=tmp_path / "tree", cache_dir=tmp_path / "cache")
    assert by_table.digest == by_folder.digest
    assert by_table.test.names == tuple(split["test"])
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    for which in ("train", "val", "test"):
        images = np.stack([np.full((84, 84, 3), number, dtype=np.uint8) for number in range(2 * len(split[which]))])
        classes = {label: [2 * number, 2 * number + 1] for number, label in enumerate(split[which])}
        (arrays / f"mini-imagenet-cache-{which}.pkl").write_bytes(
            pickle.dumps({"image_data": images, "class_dict": classes}, protocol=2)
        )
    for _ in range(2):
        pickled = imagenet.load("mini-imagenet", data_dir=arrays, cache_dir=tmp_path / "cache")
        assert pickled.val.images[int(pickled.val.first[3])].unique().tolist() == [6]
    small = imagenet.load("mini-imagenet", size=20, data_dir=arrays, cache_dir=tmp_path / "cache")
    assert small.train.images.shape[1:] == (3, 20, 20)


def test_tiered_imagenet_and_what_is_missing(tmp_path, monkeypatch):
    split = official("tiered-imagenet")
    for which in ("train", "val", "test"):
        for label in split[which]:
            (tmp_path / "tiered_imagenet" / which / label).mkdir(parents=True)
            Image.fromarray(colour(int(label[1:]))[:8, :8]).save(tmp_path / "tiered_imagenet" / which / label / "0.png")
    found = imagenet.load("tiered-imagenet", size=8, data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert len(found.train.names) == 351
    gone = tmp_path / "tiered_imagenet" / "val" / split["val"][0]
    (gone / "0.png").unlink()
    with pytest.raises(MetagradError, match=f"lacks 1 classes of tiered-imagenet .{gone.name}"):
        imagenet.load("tiered-imagenet", size=8, data_dir=tmp_path, cache_dir=tmp_path / "cache")
    monkeypatch.delenv("METAGRAD_DATA", raising=False)
    with pytest.raises(MetagradError, match="may not be redistributed"):
        imagenet.load("mini-imagenet")


def tar_of(path, members, mode="w:gz"):
    with tarfile.open(path, mode) as archive:
        for name, size in members:
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, Zeros(size))
    return path


class Zeros(io.RawIOBase):
    def __init__(self, size):
        self.left = size

    def read(self, size=-1):
        size = min(size, self.left)
        self.left -= size
        return bytes(size)


@pytest.mark.parametrize(("members", "says"), [
    ([("big", 500 * 2**20)], "more than 400 MB"),
    ([(str(number), 0) for number in range(2000)], "more than 1000 members"),
    ([("train.bin", 10**6)], "train.bin is missing or cut"),
])  # fmt: skip
def test_an_archive_that_unpacks_to_too_much_is_refused(tmp_path, small, members, says):
    tar_of(tmp_path / "cifar-100-binary.tar.gz", members)
    with pytest.raises(MetagradError, match=says):
        cifar.load("cifar-fs", data_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_a_header_of_a_tar_that_asks_for_memory_is_refused(tmp_path, small):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 8 * 2**30 - 512  # a header of 8 GB, which tarfile reads at once
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(10_000)))
    with pytest.raises(MetagradError, match="cannot be read"):
        cifar.load("cifar-fs", data_dir=tmp_path, cache_dir=tmp_path / "cache")


def test_cifar_whose_cache_was_altered_is_unpacked_again(tmp_path, small):
    binary(tmp_path / "cifar-100-binary.tar.gz", records())
    images = cifar.load("cifar-fs", data_dir=tmp_path, cache_dir=tmp_path / "cache").train.images.clone()
    (rows,) = (tmp_path / "cache").rglob("*.npy")
    content = bytearray(rows.read_bytes())
    content[5000:9000] = bytes(4000)
    rows.write_bytes(content)
    with pytest.warns(MetagradWarning, match=r"images-v1\.npy is damaged .*: writing it again"):
        again = cifar.load("cifar-fs", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    assert torch.equal(again.train.images, images)
    facts = tmp_path / "cache" / "cifar100" / "accepted.json"
    text = facts.read_text()
    facts.write_text(text.replace(cifar.RECORDS, "0" * 64))
    with pytest.warns(MetagradWarning, match=r"accepted\.json is damaged"):
        assert cifar.load("cifar-fs", data_dir=tmp_path, cache_dir=tmp_path / "cache").digest == again.digest
    assert facts.read_text() == text


def test_several_that_unpack_cifar_at_once_do_so_once(tmp_path, small, monkeypatch):
    binary(tmp_path / "cifar-100-binary.tar.gz", records())
    reads, read = [], cifar._read
    monkeypatch.setattr(cifar, "_read", lambda source: (reads.append(1), read(source))[1])
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(
            lambda name: cifar.load(name, data_dir=tmp_path, cache_dir=tmp_path / "cache").digest,
            ["cifar-fs", "fc100"] * 3,
        ))  # fmt: skip
    assert len(set(found)) == 2
    assert len(reads) == 1


@pytest.mark.parametrize("classes", [
    {"a": "text"}, {"a": [[0]]}, {"a": [10**30]}, {"a": [-1]}, {"a": [99]}, {"a": None}, {"a": np.zeros((2, 2), int)},
    {1: [0]}, [0],
])  # fmt: skip
def test_pickled_classes_that_name_no_images_are_refused(tmp_path, classes):
    value = {"image_data": np.zeros((3, 84, 84, 3), np.uint8), "class_dict": classes}
    for which in ("train", "val", "test"):
        (tmp_path / f"mini-imagenet-cache-{which}.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(MetagradError, match=r"images that are not in the file|has not .image_data."):
        imagenet.load("mini-imagenet", data_dir=tmp_path, cache_dir=tmp_path / "cache")
