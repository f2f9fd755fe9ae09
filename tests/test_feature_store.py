"""The store of features: what it gives is what the network gives, and how much of it is kept."""

import os
import threading
import time

import pytest
import torch
from feature_rows import IMAGES, KEYS, TRUTH, Counted, network, opened

from metagrad import MetagradWarning
from metagrad.data.feature_folders import clean, stores
from metagrad.data.feature_store import FeatureStore
from metagrad.errors import NotFiniteError


def test_features_are_computed_once_and_are_those_of_the_network(tmp_path):
    one, told = Counted(), []
    rows = one.features(opened(tmp_path), batch=16, progress=lambda *args: told.append(args))
    assert torch.equal(rows, TRUTH)
    assert rows.dtype == torch.float32
    assert one.batches == [16, 16, 8]
    assert told == [(done, 40, "computing features") for done in (16, 32, 40)]
    again = Counted([5, 3, 3, 39])
    assert torch.equal(again.features(opened(tmp_path)), TRUTH[[5, 3, 3, 39]])
    assert not again.loaded


def test_the_same_picture_twice_is_computed_once(tmp_path):
    one = Counted([4, 4, 1, 4, 1])
    assert torch.equal(one.features(opened(tmp_path)), TRUTH[[4, 4, 1, 4, 1]])
    assert one.loaded == [0, 2]


def test_rows_in_order_stay_in_the_file_and_others_are_found_by_their_index(tmp_path):
    store = opened(tmp_path)
    Counted().features(store)
    found = store.find(KEYS[10:20], None, None)
    assert found.rows.shape == (40, 7)
    assert torch.equal(found.rows[found.index], TRUTH[10:20])
    assert found.gather().untyped_storage().data_ptr() == found.rows.untyped_storage().data_ptr()
    assert torch.equal(found.gather(slice(3, 5)), TRUTH[13:15])
    mixed = store.find([KEYS[7], KEYS[2]], None, None)
    assert torch.equal(mixed.gather(), TRUTH[[7, 2]])
    found.gather().zero_()  # the caller's own
    assert torch.equal(Counted().features(opened(tmp_path)), TRUTH)


def test_nothing_to_find_is_no_row(tmp_path):
    assert opened(tmp_path).features([], None, None).shape == (0, 7)


@pytest.mark.parametrize("shape", [(), (1,), (3, 2, 2)])
def test_rows_have_any_shape(tmp_path, shape):
    def compute(batch):
        return batch.float().mean((1, 2, 3)).reshape(-1, *[1] * len(shape)).expand(-1, *shape)

    for _ in range(2):
        store = FeatureStore.open("a", shape=shape, directory=tmp_path)
        rows = store.features(KEYS, lambda some: IMAGES[some], compute)
        assert torch.equal(rows, compute(IMAGES))


def test_small_pictures_may_be_rows(tmp_path):
    for _ in range(2):
        store = FeatureStore.open("a", shape=(3, 6, 6), directory=tmp_path, dtype=torch.uint8)
        assert torch.equal(store.features(KEYS, lambda some: IMAGES[some], lambda batch: batch), IMAGES)


def test_another_network_shape_type_or_preprocessing_is_another_store(tmp_path):
    Counted().features(opened(tmp_path))
    for other in (
        opened(tmp_path, "b"),
        opened(tmp_path, preprocessing="224 pixels"),
        FeatureStore.open("a", shape=(7, 1), directory=tmp_path),
        FeatureStore.open("a", shape=(7,), directory=tmp_path, dtype=torch.uint8),
    ):
        one = Counted([0])
        one.features(other, batch=1) if other.shape == (7,) else None
        assert KEYS[1] not in other
    assert len(stores(tmp_path)) == 5
    # Nor if somebody puts the files of one in the place of another.
    Counted().features(opened(tmp_path, "b"))
    a, b = opened(tmp_path).folder, opened(tmp_path, "b").folder
    for name in ("keys", "rows"):
        (b / name).write_bytes((a / name).read_bytes())
    one = Counted()
    with pytest.warns(MetagradWarning, match="of 40 pictures .* are damaged: computing them again"):
        one.features(opened(tmp_path, "b"))
    assert len(one.loaded) == 40


def test_a_picture_that_cannot_be_read_has_no_row_and_is_asked_for_again(tmp_path):
    def load(numbers):
        return [None if n in (2, 5) else IMAGES[n].numpy() for n in numbers]

    for _ in range(2):
        found = opened(tmp_path).find(KEYS[:8], load, network, batch=3)
        assert found.index.tolist() == [0, 1, -1, 2, 3, -1, 4, 5]
        assert torch.equal(found.gather(torch.tensor([0, 3, 7])), TRUTH[[0, 3, 7]])
        with pytest.raises(ValueError, match="could not be read"):
            found.gather()
    nothing = opened(tmp_path).find(KEYS[30:32], lambda some: [None] * len(some), network)
    assert nothing.index.tolist() == [-1, -1]


def test_what_is_wrong_with_load_or_compute_is_said(tmp_path):
    store, load = opened(tmp_path), lambda some: IMAGES[some]
    with pytest.raises(ValueError, match=r"compute must return features \(2, 7\) of 2 pictures, got \(2, 3\)"):
        store.find(KEYS[:2], load, lambda batch: torch.zeros(2, 3))
    with pytest.raises(ValueError, match="got list"):
        store.find(KEYS[:2], load, lambda batch: [1, 2])
    with pytest.raises(ValueError, match="load must return 2 pictures, got 40"):
        store.find(KEYS[:2], lambda some: IMAGES, network)
    with pytest.raises(NotFiniteError, match="check its weights"):
        store.find(KEYS[:2], load, lambda batch: torch.full((2, 7), torch.nan))
    with pytest.raises(ValueError, match="32 bytes each, one has 3"):
        store.find([b"abc"], load, network)
    with pytest.raises(ValueError, match="above 0"):
        FeatureStore.open("a", shape=(0,), directory=tmp_path)
    with pytest.raises(ValueError, match="float32 or uint8"):
        FeatureStore.open("a", shape=(1,), directory=tmp_path, dtype=torch.float64)
    assert torch.equal(Counted().features(store), TRUTH)  # nothing of it was kept


def test_what_is_set_for_all_of_torch_does_not_reach_the_features(tmp_path):
    layer = torch.nn.Linear(108, 7)

    def compute(batch):
        return layer(batch.float().flatten(1))

    with torch.no_grad():
        truth = compute(IMAGES)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rows = opened(tmp_path).features(KEYS, lambda some: IMAGES[some], compute, batch=40)
    assert torch.equal(rows, truth)
    assert not rows.requires_grad
    assert not rows.is_inference()


def test_few_pictures_are_in_memory_at_a_time_and_they_are_loaded_ahead(tmp_path):
    """Between what is loaded and what is computed lie three batches at most; loading is another thread's."""
    loaded, computed, most, threads = 0, 0, 0, set()

    def load(numbers):
        nonlocal loaded, most
        threads.add(threading.get_ident())
        loaded += len(numbers)
        most = max(most, loaded - computed)
        return IMAGES[numbers]

    def compute(batch):
        nonlocal computed
        deadline = time.monotonic() + 10
        while loaded < min(40, computed + 4) and time.monotonic() < deadline:  # the next batch comes meanwhile
            time.sleep(0.001)
        assert loaded >= min(40, computed + 4)
        computed += len(batch)
        return network(batch)

    assert torch.equal(opened(tmp_path).features(KEYS, load, compute, batch=2), TRUTH)
    assert most <= 2 * 4
    assert threads.isdisjoint({threading.get_ident()})


def used(folder, digest, seconds):
    (one,) = [one for one in stores(folder) if one.digest == digest]
    os.utime(one.folder / "store.json", (seconds, seconds))
    for name in ("keys", "rows"):
        os.utime(one.folder / name, (seconds, seconds))


def test_the_store_that_nobody_used_for_longest_is_removed_first(tmp_path):
    for number, digest in enumerate("abc"):
        Counted().features(opened(tmp_path, digest, name=f"network {digest}"))
        used(tmp_path, digest, 1.7e9 + number)
    opened(tmp_path, "a")  # is used again
    assert [one.digest for one in stores(tmp_path)] == ["a", "c", "b"]
    assert stores(tmp_path)[0].shape == (7,)
    size = sum(one.size for one in stores(tmp_path))
    with pytest.warns(MetagradWarning, match=r"removed .* of network b \(0\.0 MiB\), the least recently used"):
        assert torch.equal(Counted().features(opened(tmp_path, "d", most_bytes=size + 600)), TRUTH)
    assert sorted(one.digest for one in stores(tmp_path)) == ["a", "c", "d"]
    assert sum(one.size for one in stores(tmp_path)) <= size + 600


def test_rows_that_nobody_wants_now_make_room_for_those_of_the_same_network(tmp_path):
    Counted(range(20)).features(opened(tmp_path))
    size = stores(tmp_path)[0].size
    one = Counted(range(10, 30))
    before = opened(tmp_path).find(KEYS[:20], None, None).gather()
    with pytest.warns(MetagradWarning, match="removed the cached features of other pictures"):
        assert torch.equal(one.features(opened(tmp_path, most_bytes=size)), one.truth)
    assert one.loaded == list(range(10, 20))
    assert stores(tmp_path)[0].size <= size
    assert torch.equal(before, TRUTH[:20])  # who has them still has
    last = Counted(range(10, 30))
    last.features(opened(tmp_path))
    assert not last.loaded


def test_more_than_may_be_kept_is_kept_for_now_and_said(tmp_path):
    with pytest.warns(MetagradWarning, match="removed when other features need space"):
        assert torch.equal(Counted().features(opened(tmp_path, most_bytes=1000)), TRUTH)
    one = Counted()
    one.features(opened(tmp_path, most_bytes=1000))
    assert not one.loaded


def test_cleaning_removes_stores_and_nothing_else(tmp_path):
    store = opened(tmp_path)
    Counted(range(20)).features(store)
    Counted().features(opened(tmp_path, "b"))
    (store.folder / "mine.txt").write_text("x")
    (tmp_path / "other").mkdir()
    assert clean(tmp_path) > 60 * 68
    assert (store.folder / "mine.txt").exists()
    assert (tmp_path / "other").exists()
    assert not list(tmp_path.rglob("rows"))
    one = Counted()
    assert torch.equal(one.features(store), TRUTH)  # who uses it goes on
    assert one.loaded == list(range(20, 40))
    assert stores(tmp_path / "nowhere") == []


def test_the_default_place_is_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METAGRAD_CACHE", str(tmp_path))
    Counted().features(FeatureStore.open("a", shape=(7,)))
    assert [one.folder.parent for one in stores()] == [tmp_path / "features"]
    assert clean() > 0
    assert stores() == []
