"""Class folders: which folder is a class, and how classes are parted into splits."""

import json
import shutil
import unicodedata
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_pictures import SIZE, fill, picture

from metagrad import MetagradError, MetagradWarning, data
from metagrad.data import folder, pictures
from metagrad.data.archive import fingerprint
from metagrad.data.class_folders import candidates
from metagrad.experiment import Episodes


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("METAGRAD_CACHE", str(place))
    return place


def test_splits(tmp_path):
    parted = folder.load(fill(tmp_path / "a", classes=10), size=SIZE)
    assert [len(part.names) for part in (parted.train, parted.val, parted.test)] == [6, 2, 2]
    again = folder.load(tmp_path / "a", size=SIZE)
    assert again.test.names == parted.test.names
    assert parted.name == "a"

    for which, classes in (("train", 3), ("valid", 2), ("test", 2)):
        fill(tmp_path / "b" / which, classes=classes, prefix=f"{which} ")
    by_folder = folder.load(tmp_path / "b", size=SIZE)
    assert by_folder.val.names == ("valid class 0", "valid class 1")

    written = {"train": ["class 0", "class 1"], "val": ["class 2"], "test": ["class 3"]}
    (tmp_path / "a" / "split.json").write_text(json.dumps(written))
    assert folder.load(tmp_path / "a", size=SIZE).test.names == ("class 3",)
    other = {"train": ["class 4"], "val": ["class 2"], "test": ["class 3"]}
    assert folder.load(tmp_path / "a", size=SIZE, split=other).train.names == ("class 4",)


@pytest.mark.parametrize(("split", "says"), [
    ({"train": ["class 0"], "val": ["class 1"], "test": ["class 0"]}, "in train and in test"),
    ({"train": ["class 0"], "val": ["class 1"], "test": ["cat"]}, "'cat', of which there are no pictures"),
    ({"train": ["class 0"], "val": [], "test": ["class 1"]}, "no class in val"),
    ({"train": ["class 0"], "val": ["class 1"]}, "is not a split"),
    ([1], "is not a split"),
])  # fmt: skip
def test_splits_that_are_refused(tmp_path, split, says):
    fill(tmp_path / "a", classes=3)
    with pytest.raises(MetagradError, match=says):
        folder.load(tmp_path / "a", size=SIZE, split=split)


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(MetagradError, match="does not exist"):
        folder.load(tmp_path / "none", size=SIZE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(MetagradError, match="no pictures in class folders"):
        folder.load(tmp_path / "empty", size=SIZE)
    with pytest.raises(MetagradError, match="has 3 classes"):
        folder.load(fill(tmp_path / "few", classes=3), size=SIZE)
    for which in ("train", "val", "test"):
        fill(tmp_path / "same" / which, classes=1)
    with pytest.raises(MetagradError, match="classes must differ"):
        folder.load(tmp_path / "same", size=SIZE)


def classes_of(dataset):
    return {which: set(getattr(dataset, which).names) for which in ("train", "val", "test")}


def split_folders(root):
    for which, first in (("train", 0), ("validation", 3), ("test", 5)):
        for c in range(first, first + (3 if which == "train" else 2)):
            (root / which / f"k{c}").mkdir(parents=True)
            for i in range(3):
                (root / which / f"k{c}" / f"{i}.png").write_bytes(picture(100 * c + i))
    return root


def test_folders_of_a_split_are_kept_to_whatever_lies_beside(tmp_path):
    root = split_folders(tmp_path / "set")
    expected = {"train": {"k0", "k1", "k2"}, "val": {"k3", "k4"}, "test": {"k5", "k6"}}
    plain = folder.load(root, size=SIZE)
    assert classes_of(plain) == expected
    (root / "a docs").mkdir()
    (root / "a docs" / "figure.png").write_bytes(picture(999))
    (root / "train" / "loose.png").write_bytes(picture(998))
    beside = folder.load(root, size=SIZE)
    assert classes_of(beside) == expected
    assert "'a docs' beside train, val and test" in " ".join(beside.notes)
    for which in expected:  # each class has its own pictures still
        one, other = getattr(plain, which), getattr(beside, which)
        for a, b, n in zip(one.first.tolist(), other.first.tolist(), one.counts.tolist(), strict=True):
            assert torch.equal(one.images[a : a + n], other.images[b : b + n])


def test_a_picture_in_two_classes_is_said_and_refused_across_splits(tmp_path):
    root = split_folders(tmp_path / "set")
    (root / "test" / "k5" / "copy.png").write_bytes(picture(0))
    notes = " ".join(folder.load(root, size=SIZE).notes)
    assert "1 file in two classes at once (train/k0/0.png is test/k5/copy.png)" in notes
    with pytest.raises(MetagradError, match=r"same picture as .*, in train and test"):
        folder.load(root, size=SIZE, strict=True)


def test_what_is_no_picture_is_counted(tmp_path):
    root = fill(tmp_path / "set")
    (root / "class 0" / "readme.txt").write_text("hello")
    (root / "class 0" / "Thumbs.db").write_bytes(b"x")
    (root / "icons").mkdir()
    (root / "icons" / "a.ico").write_bytes(b"x")
    (root / ".hidden").mkdir()
    (root / ".hidden" / "link").symlink_to("/nowhere")
    notes = folder.load(root, size=SIZE).notes
    assert "left out 1 folder without a readable picture (icons)" in notes
    assert "left out 2 files of other kinds (class 0/readme.txt; icons/a.ico)" in notes
    with pytest.raises(MetagradError, match="folder icons has no picture"):
        folder.load(root, size=SIZE, strict=True)


def test_a_changed_cache_is_not_used(tmp_path, cache):
    root = fill(tmp_path / "set")
    before = folder.load(root, size=SIZE).train.images.clone()
    (rows,) = (cache / "pictures").glob("rows-*.npy")
    whole = rows.read_bytes()
    rows.write_bytes(whole[:-50] + bytes(50))
    with pytest.warns(MetagradWarning, match="are not what was written.: writing it again"):
        assert torch.equal(folder.load(root, size=SIZE).train.images, before)
    np.save(rows, np.zeros((40, 3, SIZE, SIZE)))
    with pytest.warns(MetagradWarning, match="another shape.: writing it again"):
        assert torch.equal(folder.load(root, size=SIZE).train.images, before)


def test_read_anew_whatever_the_system_says_of_the_file(tmp_path, monkeypatch):
    root = fill(tmp_path / "set")
    folder.load(root, size=SIZE)
    path = root / "class 0" / "0.png"
    content = path.read_bytes()
    seen = fingerprint(root)
    path.write_bytes(content[:-60] + bytes(60))
    monkeypatch.setattr(pictures, "fingerprint", lambda source: seen)  # a disk that lost bits says nothing
    assert not folder.load(root, size=SIZE).notes
    assert "class 0/0.png" in folder.load(root, size=SIZE, anew=True).notes[0]


def test_classes_of_too_few_images_are_left_out_of_training(tmp_path):
    root = fill(tmp_path / "set", classes=16)
    for which in ("3", "4"):
        (root / "class 0" / f"{which}.png").unlink()
    dataset = data.load("folder", data_dir=str(root), image_size=SIZE)
    held = next(which for which in ("train", "val", "test") if "class 0" in getattr(dataset, which).names)
    wanted = Episodes("folder", ways=2, shots=2, queries=2)
    assert "1 class with fewer than 2 + 2 images (class 0)" in wanted.of(dataset).notes[-1]
    assert not Episodes("folder", ways=2, shots=1, queries=2).of(dataset).notes
    assert "class 0" not in wanted.sampler(dataset, held).classes.names
    many = Episodes("folder", ways=14, shots=2, queries=2)
    with pytest.raises(MetagradError, match=r"14 ways is more than the \d+ classes for .*fewer than 2 \+ 2"):
        many.sampler(dataset, held)


def test_archives_that_hide_their_pictures_are_called_so(tmp_path):
    fill(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as outer:
        outer.writestr("inner/inner.zip", b"PK")
    with pytest.raises(MetagradError, match=r"holds archives .*unpack"):
        folder.load(tmp_path / "outer.zip", size=SIZE)
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as broken:
        for name in ("a/1.png", "b/1.png"):
            broken.writestr(name, b"not a picture")
    with pytest.raises(MetagradError, match="none of 2 files can be read"):
        folder.load(tmp_path / "none.zip", size=SIZE)


def place(root, name, seed):
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture(seed))


def deep(root, names="abcdef", days=("2019", "2020/may")):
    for c, name in enumerate(names):
        for d, day in enumerate(days):
            for i in range(3):
                place(root, f"{name}/{day}/{i}.png", 100 * c + 10 * d + i)
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_folders_in_a_class_folder_are_part_of_the_class_and_that_is_said(tmp_path, packed):
    root = deep(tmp_path / "set")
    place(root, "a/loose.png", 999)
    (root / "a" / "2019" / "readme.txt").write_text("no picture, and no empty folder")
    if packed:
        shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "set")
        root = tmp_path / "packed.zip"
    found = folder.load(root, size=SIZE)
    names = [name for which in classes_of(found).values() for name in which]
    assert sorted(names) == list("abcdef")
    assert found.train.counts.sum() + found.val.counts.sum() + found.test.counts.sum() == 37
    (said,) = [note for note in found.notes if "part of the class" in note]
    assert "'a/2019' is of 'a', as in 5 more" in said
    assert not [note for note in found.notes if "no pictures" in note]
    assert folder.load(root, size=SIZE).notes == found.notes, "also when it was decoded before"


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.lists(st.sampled_from(["2019", "2020", "x"]), max_size=3)),
        min_size=1,
        max_size=30,
    )
)
def test_however_deep_files_lie_a_class_is_one_folder(places):
    names = sorted({"/".join(["set", "top", label, *days, "1.png"]) for label, days in places})
    tops = {name.split("/")[2] for name in names}
    for source in (Path("set.zip"), Path(__file__).parent):
        own = "" if source.suffix else f"{source.name}/"
        found = candidates(SimpleNamespace(source=source, names=tuple(own + name for name in names)))
        if len(tops) > 1:  # one alone may be the folder of all class folders
            assert {one.label for one in found.pictures.values()} == tops
            assert all(one.shown.startswith(f"{one.label}/") for one in found.pictures.values())


def test_a_split_that_names_folders_in_folders_makes_them_classes(tmp_path):
    root = deep(tmp_path / "set", "abc", ("1", "2"))
    split = {"train": ["a/1", "a/2", "b/1"], "val": ["b/2"], "test": ["c/1", "c/2"]}
    found = folder.load(root, size=SIZE, split=split)
    assert classes_of(found) == {which: set(names) for which, names in split.items()}
    assert not found.notes
    (root / "split.json").write_text(json.dumps(split))
    assert folder.load(root, size=SIZE).digest == found.digest


def test_folders_of_a_split_hold_class_folders_that_may_be_deep(tmp_path):
    root = split_folders(tmp_path / "set")
    place(root, "train/k0/2020/more.png", 901)
    place(root, "test/k5/2020/copy.png", 0)
    found = folder.load(root, size=SIZE)
    assert classes_of(found) == {"train": {"k0", "k1", "k2"}, "val": {"k3", "k4"}, "test": {"k5", "k6"}}
    assert found.train.counts.tolist() == [4, 3, 3]
    with pytest.raises(MetagradError, match=r"same picture as .*, in t.* and t"):
        folder.load(root, size=SIZE, strict=True)


def test_a_folder_around_the_class_folders_is_no_class(tmp_path):
    plain = folder.load(fill(tmp_path / "plain"), size=SIZE)
    around = folder.load(fill(tmp_path / "set" / "images").parent, size=SIZE)
    assert classes_of(around) == classes_of(plain)
    split = {"train": ["images/class 0"], "val": ["images/class 1"], "test": ["images/class 2"]}
    before = folder.load(tmp_path / "set", size=SIZE, split=split)  # as a run from before remembers its classes
    assert before.test.names == ("images/class 2",)


def test_accents_written_in_two_ways_are_one_class(tmp_path):
    root = fill(tmp_path / "set", classes=6)
    one, other = (unicodedata.normalize(form, "é") for form in ("NFC", "NFD"))
    place(root, f"{one}/1.png", 801)
    place(root, f"{other}/2.png", 802)
    if len(list(root.iterdir())) < 8:
        pytest.skip("this file system takes both for one name")
    found = pictures.load(root, size=SIZE)
    assert found.counts[one] == 2
    assert other not in found.counts
    assert any("two folders are one class, 'é'" in note for note in found.notes())
    split = {"train": [other, "class 0"], "val": ["class 1"], "test": ["class 2"]}
    assert folder.load(root, size=SIZE, split=split).train.names == (one, "class 0")
