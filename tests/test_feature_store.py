"""The store of features: what it gives is what the network gives, whatever happened to its files or processes."""

import errno
import hashlib
import multiprocessing
import os
import signal
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad import MetagradWarning
from metagrad.data import feature_records
from metagrad.data.feature_folders import clean, stores
from metagrad.data.feature_store import FeatureStore
from metagrad.errors import NotFiniteError

IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (40, 3, 6, 6), dtype=np.uint8))
KEYS = [hashlib.sha256(image.numpy().tobytes()).digest() for image in IMAGES]
WEIGHTS = torch.from_numpy(np.random.default_rng(1).normal(size=(108, 7)).astype(np.float32))


def network(batch):
    """Give seven numbers for each picture, each by itself: the digits of a product depend on what is beside it."""
    return torch.stack([image.float().flatten() @ WEIGHTS for image in batch])


TRUTH = network(IMAGES)


class Counted:
    """A network and its pictures, which note what they are asked for."""

    def __init__(self, chosen=range(40)):
        self.chosen = list(chosen)
        self.keys = [KEYS[n] for n in self.chosen]
        self.truth = TRUTH[self.chosen]
        self.loaded, self.batches = [], []

    def load(self, numbers):
        self.loaded += numbers
        return IMAGES[[self.chosen[n] for n in numbers]]

    def compute(self, batch):
        self.batches.append(len(batch))
        return network(batch)

    def features(self, store, **options):
        return store.features(self.keys, self.load, self.compute, **options)


def opened(folder, digest="a", **options):
    return FeatureStore.open(digest, shape=(7,), directory=folder, **options)


def file_of(folder, name):
    (found,) = folder.glob(f"v1-*/{name}")
    return found


# --- what it gives -------------------------------------------------------------------------------------------


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


# --- whatever happens to its files ---------------------------------------------------------------------------

DAMAGE = st.tuples(
    st.sampled_from(["keys", "rows", "store.json"]),
    st.sampled_from(["cut", "flip", "zero", "longer", "remove"]),
    st.integers(0, 10**6),
    st.integers(0, 7),
)


def hurt(path, how, where, bit):
    content = bytearray(path.read_bytes()) if path.exists() else bytearray()
    where %= len(content) or 1
    if how == "remove":
        path.unlink(missing_ok=True)
        return
    if how == "cut":
        del content[where:]
    elif how == "longer":
        content += bytes([bit]) * (where % 100)
    elif content:
        content[where : where + (1 if how == "flip" else 50)] = (
            [content[where] ^ 1 << bit] if how == "flip" else bytes(50)
        )
    path.write_bytes(content)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.lists(DAMAGE, max_size=3), st.lists(st.integers(0, 39), max_size=12)), max_size=5))
def test_whatever_is_cut_or_altered_the_rows_are_those_of_the_network(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("features")
    for damages, chosen in [([], range(0, 40, 3)), *steps, ([], range(40))]:
        for name, how, where, bit in damages:
            hurt(opened(folder).folder / name, how, where, bit)
        one = Counted(chosen)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MetagradWarning)
            assert torch.equal(one.features(opened(folder), batch=5), one.truth)
    last = Counted()
    last.features(opened(folder))
    assert not last.loaded


@pytest.mark.parametrize("lost", range(1, 36))
def test_a_row_that_was_cut_off_is_computed_again_without_a_word(tmp_path, lost):
    Counted().features(opened(tmp_path))
    path = file_of(tmp_path, "rows")
    os.truncate(path, path.stat().st_size - lost)
    one = Counted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(one.features(opened(tmp_path)), TRUTH)
    assert one.loaded == ([39] if lost <= 28 else [38, 39])
    assert path.stat().st_size == 40 * 28


def test_an_altered_row_is_said_once_and_computed_again(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_records, "_BLOCK", 100)
    Counted().features(opened(tmp_path))
    path = file_of(tmp_path, "rows")
    content = bytearray(path.read_bytes())
    content[28 * 17 + 3] ^= 1
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of those that nobody looks at nothing is read
        assert torch.equal(Counted(range(17)).features(opened(tmp_path)), TRUTH[:17])
    one, told, store = Counted(), [], opened(tmp_path)
    with pytest.warns(MetagradWarning, match=r"of 1 picture in .* are damaged: computing them again"):
        assert torch.equal(one.features(store, progress=lambda *args: told.append(args)), TRUTH)
    assert one.loaded == [17]
    assert (40, 40, "checking cached features") in told
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(one.features(store), TRUTH)
        assert torch.equal(one.features(opened(tmp_path)), TRUTH)
    assert one.loaded == [17]


def test_no_key_finds_the_row_of_another(tmp_path):
    Counted(range(2)).features(opened(tmp_path))
    path = file_of(tmp_path, "keys")
    first, second = path.read_bytes()[:40], path.read_bytes()[40:]
    path.write_bytes(second[:32] + first[32:] + second)  # the row of 0, under the key of 1
    os.truncate(file_of(tmp_path, "rows"), 28)
    one = Counted([1])
    with pytest.warns(MetagradWarning, match="damaged: computing them again"):
        assert torch.equal(one.features(opened(tmp_path)), TRUTH[[1]])


def test_who_reads_while_another_writes_finds_no_key_of_rows_that_were_lost(tmp_path, monkeypatch):
    Counted().features(opened(tmp_path))
    os.truncate(file_of(tmp_path, "rows"), 28 * 30)
    write, seen = os.pwrite, []

    def looked_at(file, data, offset):
        written = write(file, data, offset)
        other = opened(tmp_path)
        seen.append([key in other for key in KEYS].count(True))
        return written

    monkeypatch.setattr(os, "pwrite", looked_at)
    Counted(range(30, 36)).features(opened(tmp_path), batch=2)
    assert seen == [30, 32, 32, 34, 34, 36]


def test_a_row_that_the_disk_cannot_read_is_computed_again(tmp_path, monkeypatch):
    Counted().features(opened(tmp_path))
    read = os.pread

    def broken(file, size, offset):
        if offset == 0 and size == 40 * 28:
            raise OSError(errno.EIO, "Input/output error")
        return read(file, size, offset)

    monkeypatch.setattr(os, "pread", broken)
    one = Counted()
    with pytest.warns(MetagradWarning, match="damaged: computing them again"):
        assert torch.equal(one.features(opened(tmp_path)), TRUTH)
    assert len(one.loaded) == 40


# --- interrupted, killed, several at once --------------------------------------------------------------------


def test_what_was_computed_before_ctrl_c_is_kept(tmp_path):
    one = Counted()

    def compute(batch):
        if len(one.batches) == 3:
            raise KeyboardInterrupt
        return one.compute(batch)

    with pytest.raises(KeyboardInterrupt):
        opened(tmp_path).features(one.keys, one.load, compute, batch=8)
    again = Counted()
    assert torch.equal(again.features(opened(tmp_path)), TRUTH)
    assert again.loaded == list(range(24, 40))


def _slow(folder, started):
    def compute(batch):
        started.set()
        time.sleep(0.003)
        return network(batch)

    opened(folder).features(KEYS, lambda some: IMAGES[some], compute, batch=1)


def test_killed_processes_leave_what_they_computed(tmp_path):
    fork = multiprocessing.get_context("fork")
    done = []
    for _ in range(4):
        started = fork.Event()
        process = fork.Process(target=_slow, args=(tmp_path, started))
        process.start()
        started.wait(60)
        time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        store = opened(tmp_path)
        done.append(sum(key in store for key in KEYS))
    assert done == sorted(done)
    assert done[0] > 0
    one = Counted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(one.features(opened(tmp_path)), TRUTH)
    assert len(one.loaded) == 40 - done[-1]


def _some(folder, seed, results):
    order = np.random.default_rng(seed).permutation(40)[:30].tolist()
    one = Counted(order)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.put(torch.equal(one.features(opened(folder), batch=2), one.truth))


def test_processes_at_once_never_spoil_each_others_rows(tmp_path):
    fork = multiprocessing.get_context("fork")
    results = fork.Queue()
    processes = [fork.Process(target=_some, args=(tmp_path, seed, results)) for seed in range(6)]
    for process in processes:
        process.start()
    assert [results.get(timeout=120) for _ in processes] == [True] * 6
    for process in processes:
        process.join()
    one = Counted()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(one.features(opened(tmp_path)), TRUTH)
    assert file_of(tmp_path, "rows").stat().st_size == 40 * 28  # none is there twice


def test_two_stores_learn_of_each_others_rows(tmp_path):
    first, second = opened(tmp_path), opened(tmp_path)
    Counted(range(20)).features(first)
    one = Counted()
    assert torch.equal(one.features(second), TRUTH)
    assert one.loaded == list(range(20, 40))
    other = Counted()
    assert torch.equal(other.features(first), TRUTH)
    assert not other.loaded


# --- where nothing can be written ----------------------------------------------------------------------------


def test_a_full_disk_costs_time_and_nothing_else(tmp_path, monkeypatch):
    """Of the third batch there is room for a part."""
    write = os.pwrite

    def full(file, data, offset):
        room = 16 * 40 + 13 - offset  # sixteen keys are 640 bytes, sixteen rows 448
        if len(data) <= room:
            return write(file, data, offset)
        if room > 0:
            return write(file, data[:room], offset)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    one, store = Counted(), opened(tmp_path)
    with pytest.warns(
        MetagradWarning, match=r"computed but cannot be cached: .*No space left.*: free some space"
    ) as said:
        assert torch.equal(one.features(store, batch=8), TRUTH)
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(Counted([39, 0, 39]).features(store), TRUTH[[39, 0, 39]])
    monkeypatch.undo()
    again = Counted()
    assert torch.equal(again.features(opened(tmp_path)), TRUTH)
    assert again.loaded == list(range(16, 40))


@pytest.mark.parametrize("what", ["file", "link", "pipe", "hard link", "no permission", "nothing to make"])
def test_where_nothing_can_be_kept_features_are_computed_all_the_same(tmp_path, monkeypatch, what):
    folder = opened(tmp_path).folder
    if what == "file":
        clean(tmp_path)
        folder.write_text("somebody's")
    elif what == "link":
        clean(tmp_path)
        (tmp_path / "elsewhere").mkdir()
        folder.symlink_to(tmp_path / "elsewhere")
    elif what == "pipe":
        (folder / "rows").unlink()
        os.mkfifo(folder / "rows")
    elif what == "hard link":
        os.link(folder / "rows", tmp_path / "backup")
    elif what == "no permission":
        _forbid_writing(monkeypatch)
    else:
        clean(tmp_path)
        monkeypatch.setattr(Path, "mkdir", _refuse)
    one = Counted()
    with pytest.warns(MetagradWarning, match="computed but cannot be cached: cannot use the cache file") as said:
        assert torch.equal(one.features(opened(tmp_path), batch=8), TRUTH)
    assert len(said) == 1
    assert not list((tmp_path / "elsewhere").iterdir()) if what == "link" else True
    assert (tmp_path / "backup").read_bytes() == b"" if what == "hard link" else True


def _refuse(*args, **options):
    raise PermissionError(errno.EACCES, "Permission denied")


def _forbid_writing(monkeypatch):
    """Refuse what a folder that may only be read refuses; root may write all the same."""
    real = feature_records.open_own

    def reading(path, flags):
        if flags & os.O_RDWR:
            _refuse()
        return real(path, flags)

    monkeypatch.setattr(feature_records, "open_own", reading)


def test_a_store_that_may_only_be_read_is_read_without_a_word(tmp_path, monkeypatch):
    Counted(range(30)).features(opened(tmp_path))
    _forbid_writing(monkeypatch)
    one = Counted(range(30))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(one.features(opened(tmp_path)), TRUTH[:30])
    assert not one.loaded
    more = Counted()
    with pytest.warns(MetagradWarning, match="cannot be cached"):
        assert torch.equal(more.features(opened(tmp_path)), TRUTH)
    assert more.loaded == list(range(30, 40))


# --- how much of it there is ---------------------------------------------------------------------------------


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
