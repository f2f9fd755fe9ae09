"""Classes: rows grouped by their labels, whatever arrays, nests or data sets they come from."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from metagrad import data
from metagrad.data import Classes, ImageClasses


def of(classes, name):
    """Return the rows of a class."""
    place = classes.names.index(name)
    first, count = int(classes.first[place]), int(classes.counts[place])
    return classes.data[first : first + count]


class Rows(Dataset):
    """A data set of given rows."""

    def __init__(self, rows, **facts):
        self.rows = rows
        vars(self).update(facts)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, number):
        return self.rows[number]


class Stream(IterableDataset):
    def __init__(self, rows, length=None):
        self.rows, self.length = rows, length

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        if self.length is None:
            raise TypeError("no length")
        return self.length


Y = [3, 1, 3, 2, 1, 3]
X = np.arange(12.0).reshape(6, 2)


@pytest.mark.parametrize(
    "x", [X, torch.from_numpy(X), X.astype(">f8"), X[::-1][::-1]], ids=["numpy", "torch", "big", "view"]
)
@pytest.mark.parametrize(
    "y", [Y, np.array(Y), torch.tensor(Y), np.array(Y, object), np.array(Y, np.uint8)], ids=lambda y: type(y).__name__
)
def test_rows_are_grouped_by_class_and_keep_their_order(x, y):
    found = Classes.from_arrays(x, y)
    assert found.names == ("1", "2", "3")
    assert found.counts.tolist() == [2, 1, 3]
    assert found.first.tolist() == [0, 2, 3]
    assert found.data.tolist() == [X[row].tolist() for row in (1, 4, 3, 0, 2, 5)]
    assert found.data.dtype == torch.float64


def test_labels_may_be_strings_and_labels_may_have_names():
    kinds = ["dog", "cat", "dog", "ant", "cat", "dog"]
    for y in (kinds, np.array(kinds), np.array(kinds, object)):
        found = Classes.from_arrays(X, y)
        assert found.names == ("ant", "cat", "dog")
        assert of(found, "cat").tolist() == X[[1, 4]].tolist()
    found = Classes.from_arrays(X, Y, names=["none", "cat", "ant", "dog"])
    assert found.names == ("cat", "ant", "dog")
    assert of(found, "cat").tolist() == X[[1, 4]].tolist()
    assert Classes.from_arrays(X, list(range(8, 14))).names == ("8", "9", "10", "11", "12", "13"), "numbers, not text"


def test_types_are_kept_and_what_is_sorted_is_not_copied():
    for kind in (np.uint8, np.int64, np.float16, np.float32, bool):
        assert Classes.from_arrays(X.astype(kind), Y).data.numpy().dtype == kind
    x = torch.randn(6, 2, requires_grad=True)
    found = Classes.from_arrays(x, sorted(Y)).data
    assert found.data_ptr() == x.data_ptr()
    assert not found.requires_grad, "an array has no history"


def test_a_mapped_file_is_read_in_place(tmp_path, recwarn):
    np.save(tmp_path / "x.npy", X)
    Classes.from_arrays(np.load(tmp_path / "x.npy", mmap_mode="r"), sorted(Y))
    assert not recwarn


def test_a_nest_is_grouped_part_by_part():
    mask = torch.arange(6)[:, None] % 2 == 0
    found = Classes.from_arrays({"ids": np.arange(6), "more": (mask, X)}, Y)
    assert found.data["ids"].tolist() == [1, 4, 3, 0, 2, 5]
    assert torch.equal(found.data["more"][0], mask[found.data["ids"]])
    assert torch.equal(found.data["more"][1], torch.from_numpy(X)[found.data["ids"]])


@pytest.mark.parametrize(
    ("x", "y", "names", "says"),
    [
        (X, Y[:5], None, "x has 6 rows and y 5 labels"),
        (X, np.eye(6), None, r"got \(6, 6\): pass y.argmax\(1\)"),
        (X, np.array(Y)[:, None], None, r"got \(6, 1\): pass y.reshape\(-1\)"),
        (X, np.array(Y) / 2, None, "whole numbers or strings, got float64"),
        (X, torch.tensor(Y) / 2, None, "whole numbers or strings, got float32"),
        (X, [1, "a", 1, 1, 1, 1], None, "all whole numbers or all strings"),
        (X, ["a", None, "a", "b", "b", "a"], None, "all whole numbers or all strings"),
        (X, [1, None, 1, 2, 2, 1], None, "all whole numbers or all strings"),
        (X, Y, ["a", "b"], "names has no entry 2"),
        (X, [-1, 0, 0, 0, 0, 0], ["a", "b"], "names has no entry -1"),
        (X, Y, ["a", "b", "b", "c"], "names must be unique"),
        (list(X), Y, None, "x is a list: stack its rows"),
        (np.array(["a"] * 6), Y, None, "encode it as numbers first"),
        ({"a": X, "b": X[:5]}, Y, None, r"the same number of rows, got \[5, 6\]"),
        ({"a": X, "b": 3}, Y, None, "it holds int64"),
        ({}, Y, None, "no tensor"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x, y, names, says):
    with pytest.raises(ValueError, match=says) as error:
        Classes.from_arrays(x, y, names)
    assert "\n" not in str(error.value)


def test_some_classes_of_many_share_the_array():
    everything = Classes.from_arrays(X, Y)
    some = everything.subset(["3", "1"])
    assert some.data is everything.data
    assert some.names == ("3", "1")
    assert of(some, "1").tolist() == X[[1, 4]].tolist()
    assert of(some, "3").tolist() == X[[0, 2, 5]].tolist()
    assert everything.with_at_least(2).names == ("1", "3")
    assert everything.with_at_least(1) is everything
    with pytest.raises(ValueError, match="no class is called '4'"):
        everything.subset(["1", "4"])


def test_another_device_gets_the_classes_own_rows_of_every_part(monkeypatch):
    some = Classes.from_arrays({"x": X, "row": np.arange(6)}, Y).subset(["3", "1"])
    assert some.to("cpu") is some
    monkeypatch.setattr(Classes, "device", property(lambda self: torch.device("cuda")))
    moved = some.to("cpu")
    assert moved.data["row"].tolist() == [0, 2, 5, 1, 4]
    assert moved.data["x"].tolist() == X[[0, 2, 5, 1, 4]].tolist()
    assert (moved.names, moved.counts.tolist(), moved.first.tolist()) == (("3", "1"), [3, 2], [0, 3])


def test_images_are_a_case_of_classes_and_a_data_set_asks_for_them():
    images = np.zeros((6, 1, 4, 4), np.uint8)
    parts = [ImageClasses.from_arrays(images, [f"{part}{label}" for label in Y]) for part in "abc"]
    assert data.Dataset("mine", *parts, rotations=False, preprocessing="none", digest="1").train.images is parts[0].data
    for bad in (X, images[:, 0], images.astype(float), {"x": images}):
        with pytest.raises(ValueError, match=r"images must be uint8 \(N, C, H, W\), got"):
            ImageClasses.from_arrays(bad, Y)
    with pytest.raises(ValueError, match=r"ImageClasses.from_arrays"):
        data.Dataset("mine", *(Classes.from_arrays(images, Y) for _ in range(3)), False, "none", "1")


def test_counts_that_are_none_are_refused():
    for counts in (torch.ones(6), torch.ones(2, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"counts must be int64 \(classes,\)"):
            Classes(torch.zeros(6, 2), counts, tuple("abcdef"))
    for wrong in (torch.zeros(()), "text", {"x": torch.zeros(6), "y": None}):
        with pytest.raises(ValueError, match=r"data must be a tensor"):
            Classes(wrong, torch.ones(6, dtype=torch.int64), tuple("abcdef"))


@pytest.mark.parametrize("kind", ["tensors", "pairs", "numpy", "targets", "stream", "subset"])
def test_a_data_set_gives_what_its_arrays_give(kind):
    x, y = torch.from_numpy(X), torch.tensor(Y)
    dataset = {
        "tensors": lambda: TensorDataset(x, y),
        "pairs": lambda: Rows([[row, label] for row, label in zip(x, Y, strict=True)]),
        "numpy": lambda: Rows([(row, np.int32(label)) for row, label in zip(X, Y, strict=True)]),
        "targets": lambda: Rows(list(x), targets=Y),
        "stream": lambda: Stream(list(zip(x, Y, strict=True)), 6),
        "subset": lambda: Subset(TensorDataset(torch.cat([x, x]), torch.cat([y, y])), range(6, 12)),
    }[kind]()
    found, expected = Classes.from_dataset(dataset), Classes.from_arrays(x, y)
    assert torch.equal(found.data, expected.data)
    assert (found.names, found.counts.tolist()) == (expected.names, expected.counts.tolist())


def test_rows_of_a_data_set_may_be_nests_and_labels_strings():
    rows = [({"ids": torch.tensor([n, n]), "length": n}, "ab"[n % 2]) for n in range(5)]
    found = Classes.from_dataset(Rows(rows))
    assert found.names == ("a", "b")
    assert found.data["length"].tolist() == [0, 2, 4, 1, 3]
    assert found.data["ids"][:, 1].tolist() == [0, 2, 4, 1, 3]
    both = Classes.from_dataset(
        Rows([(torch.ones(2), torch.full((3,), float(n))) for n in range(4)], targets=[1, 0, 1, 0])
    )
    assert both.data[1][:, 0].tolist() == [1, 3, 0, 2], "a pair of inputs, where the labels stand apart"


def test_names_of_classes_are_those_that_the_data_set_keeps():
    rows = list(zip(X, Y, strict=True))
    names = ["zero", "one", "two", "three"]
    assert Classes.from_dataset(Rows(rows, classes=names)).names == ("one", "two", "three")
    assert Classes.from_dataset(Rows(rows, classes=names), names="abcd").names == ("b", "c", "d")
    assert Classes.from_dataset(Rows(rows, classes=names[:2])).names == ("1", "2", "3"), "too few: of something else"
    moved = Rows(rows, classes=names, target_transform=lambda label: label)
    assert Classes.from_dataset(moved).names == ("1", "2", "3"), "labels that were changed may have other names"


PAIRS = [(torch.zeros(3), 0), (torch.zeros(3), 1)]


@pytest.mark.parametrize(
    ("dataset", "says"),
    [
        (Stream(PAIRS), "Stream has no length: collect its rows into arrays"),
        (Stream(PAIRS, 3), "gave 2 rows, its length is 3"),
        (Stream(PAIRS, 1), "more rows than its length, 1"),
        (Rows([]), "has no rows"),
        (DataLoader(Rows(PAIRS)), "pass a Dataset"),
        (Rows([*PAIRS, (torch.zeros(4), 0)]), r"row 2 is torch.float32 \(4,\), row 0 torch.float32 \(3,\)"),
        (Rows([*PAIRS, (torch.zeros(3).double(), 0)]), r"row 2 is torch.float64 \(3,\), row 0 torch.float32"),
        (Rows([*PAIRS, ({"x": torch.zeros(3)}, 0)]), "row 2 is another nest"),
        (Rows([torch.zeros(3)]), "row 0 must be .x, label. .* got a Tensor"),
        (Rows([(torch.zeros(3), 0.5)]), r"got a tuple of \(Tensor, float\)"),
        (Rows([(torch.zeros(3), torch.zeros(2))]), r"got a tuple of \(Tensor, Tensor\)"),
        (Rows([{"image": torch.zeros(3), "label": 1}]), "got a dict: wrap the data set"),
        (Rows([("a picture", 1)]), "row 0 holds a str, not a tensor"),
        (Rows([*PAIRS, (torch.zeros(3), "b")]), "all whole numbers or all strings"),
    ],
)
def test_data_sets_that_cannot_be_read_are_refused(dataset, says):
    with pytest.raises(ValueError, match=says) as error:
        Classes.from_dataset(dataset)
    assert "\n" not in str(error.value)


def test_reading_tells_how_far_it_is(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("metagrad.data.rows.time.monotonic", lambda: next(clock) / 4)
    told = []
    Classes.from_dataset(
        TensorDataset(torch.zeros(20, 2), torch.zeros(20).long()), progress=lambda *said: told.append(said)
    )
    assert told[-1] == (20, 20, "reading the data set")
    assert 3 < len(told) < 10, "about twice a second"
    assert [done for done, *_ in told] == sorted(done for done, *_ in told)


def test_torchs_default_device_and_dtype_do_not_reach_the_rows():
    expected = Classes.from_arrays(X, Y), Classes.from_dataset(Rows(list(zip(X, Y, strict=True))))
    with torch.device("meta"):
        found = Classes.from_arrays(X, Y), Classes.from_dataset(Rows(list(zip(X, Y, strict=True))))
        assert found[0].subset(["2"]).first.device.type == "cpu"
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.data, other.data)
        assert torch.equal(one.counts, other.counts)
