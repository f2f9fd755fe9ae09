"""The cache: what it holds is what was written, it is made once by whoever comes first, and it leads nowhere else."""

import errno
import json
import os
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from small_pictures import SIZE, folder_of_pictures

from metagrad import MetagradError, MetagradWarning
from metagrad.data import cache, folder, memmap, pictures, sources
from metagrad.data.cache import Damaged


def test_cache_root_prefers_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("METAGRAD_CACHE", str(tmp_path))
    assert cache.cache_root() == tmp_path
    monkeypatch.delenv("METAGRAD_CACHE")
    assert "metagrad" in str(cache.cache_root())


def test_atomic_save_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "kept.bin"
    path.write_bytes(b"old")

    def full(target):
        target.write_bytes(b"ne")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(MetagradError, match="free some space") as caught:
        cache.atomic_save(path, full)
    assert "\n" not in str(caught.value)

    def broken(target):
        target.write_bytes(b"ne")
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        cache.atomic_save(path, broken)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
    cache.atomic_save(path, lambda target: target.write_bytes(b"new") and None)
    assert path.read_bytes() == b"new"


def test_unusable_cache_folder_is_reported_in_one_line(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(MetagradError, match="METAGRAD_CACHE") as caught:
        memmap.cached_rows(tmp_path / "file" / "key.npy", (1, 1), lambda: np.zeros((1, 1), np.uint8), what="a")
    assert "\n" not in str(caught.value)


# --- facts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 5000, b'{"a": 1, "a": 1}', b'{"sha256": NaN}',
                                     b'{"a": NaN, "sha256": ""}', b'{"sha256": "x"}'])  # fmt: skip
def test_facts_that_cannot_be_read_are_damage(tmp_path, content):
    (tmp_path / "facts.json").write_bytes(content)
    with pytest.raises(Damaged):
        cache.read_facts(tmp_path / "facts.json")


def test_facts_of_an_older_version_count_as_none(tmp_path):
    (tmp_path / "facts.json").write_text(json.dumps({"bytes": 3}))
    assert cache.read_facts(tmp_path / "facts.json") is None
    assert cache.read_facts(tmp_path / "none.json") is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_the_cache_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "rows.sha256.json")
    with pytest.raises(MetagradError, match="not a plain file"):
        memmap.open_rows(tmp_path / "rows.npy", (1, 1, 1, 1))
    (tmp_path / "rows.sha256.json").unlink()
    cache.write_facts(tmp_path / "rows.sha256.json", {})
    os.mkfifo(tmp_path / "rows.npy")
    with pytest.raises(MetagradError, match="not a plain file"):
        memmap.open_rows(tmp_path / "rows.npy", (1, 1, 1, 1))


# --- made anew, and said -------------------------------------------------------------------------------------


def test_damaged_pictures_are_decoded_again_and_it_is_said_once(tmp_path, monkeypatch):
    monkeypatch.setenv("METAGRAD_CACHE", str(tmp_path / "cache"))
    root = folder_of_pictures(tmp_path / "set")
    before = pictures.load(root, size=SIZE).images.clone()
    (path,) = (tmp_path / "cache" / "pictures").glob("rows-*.npy")
    content, status = bytearray(path.read_bytes()), path.stat()
    content[5000:9000] = bytes(4000)
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            assert torch.equal(pictures.load(root, size=SIZE).images, before)
    assert [one.category for one in said] == [MetagradWarning]
    assert path.name in str(said[0].message)


def test_reading_anew_checks_what_is_trusted_otherwise(tmp_path, monkeypatch):
    root = folder_of_pictures(tmp_path / "set")
    before = pictures.load(root, size=SIZE, cache_dir=tmp_path).images.clone()
    (path,) = (tmp_path / "pictures").glob("rows-*.npy")
    monkeypatch.setattr(memmap, "_ALWAYS", 0)  # as if it were large
    state = memmap._identity(path.stat())
    monkeypatch.setattr(memmap, "_identity", lambda status: state)  # and the disk, not a program, changed it
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    assert not torch.equal(pictures.load(root, size=SIZE, cache_dir=tmp_path).images, before)
    with pytest.warns(MetagradWarning, match=r"npy is damaged .*: writing it again"):
        assert torch.equal(pictures.load(root, size=SIZE, cache_dir=tmp_path, anew=True).images, before)
    assert torch.equal(pictures.load(root, size=SIZE, cache_dir=tmp_path).images, before)


def test_counts_that_a_disk_changed_are_noticed(tmp_path):
    root = folder_of_pictures(tmp_path / "set")
    before = pictures.load(root, size=SIZE, cache_dir=tmp_path)
    (facts,) = (tmp_path / "pictures").glob("seen-*[0-9a-f].json")
    text = facts.read_text()
    facts.write_text(text.replace('"class 0": 3', '"class 0": 2').replace('"class 1": 3', '"class 1": 4'))
    assert facts.read_text() != text
    with pytest.warns(MetagradWarning, match=r"seen-.*json is damaged"):
        assert pictures.load(root, size=SIZE, cache_dir=tmp_path).counts == before.counts


def test_a_label_put_right_is_noticed_whatever_size_and_time(tmp_path):
    root = folder_of_pictures(tmp_path / "set")
    before = pictures.load(root, size=SIZE, cache_dir=tmp_path / "cache").digest
    one, other = root / "class 0" / "0.bmp", root / "class 1" / "0.bmp"
    assert one.stat().st_size == other.stat().st_size
    one.rename(root / "x")
    other.rename(one)
    (root / "x").rename(other)
    after = pictures.load(root, size=SIZE, cache_dir=tmp_path / "cache").digest
    assert after == pictures.load(root, size=SIZE, cache_dir=tmp_path / "new").digest
    assert after != before


def test_a_disk_that_loses_what_it_writes_is_an_error_not_a_loop(tmp_path):
    def build():
        (tmp_path / "rows.sha256.json").write_text("{")

    with pytest.raises(MetagradError, match=r"damaged .* just after it was written"):
        cache.prepared(
            tmp_path / "entry", lambda: memmap.open_rows(tmp_path / "rows.npy", (1, 1, 1, 1)), build, what="it"
        )


def test_a_complete_cache_is_read_without_permission_to_write(tmp_path, monkeypatch):
    root = folder_of_pictures(tmp_path / "set")
    before = pictures.load(root, size=SIZE, cache_dir=tmp_path).digest
    memmap.cached_rows(tmp_path / "key.npy", (3, 1), lambda: np.ones((3, 1), np.uint8), what="a")

    def refuse(*args, **options):
        raise AssertionError("written to")

    for name in ("write_text", "write_atomically", "locked"):
        monkeypatch.setattr(cache, name, refuse)
    assert pictures.load(root, size=SIZE, cache_dir=tmp_path).digest == before
    assert memmap.cached_rows(tmp_path / "key.npy", (3, 1), refuse, what="a").tolist() == [[1]] * 3
    # Nor where the files were copied there, which makes them others than the remembered ones.
    monkeypatch.setattr(memmap, "_identity", lambda status: [0, 0, 0, 0])
    monkeypatch.setattr(memmap, "write_facts", lambda path, facts: cache.atomic_save(path, print))
    monkeypatch.setattr(cache, "write_atomically", lambda *args, refused, **options: (_ for _ in ()).throw(
        refused(PermissionError(13, "Permission denied"))))  # fmt: skip
    assert pictures.load(root, size=SIZE, cache_dir=tmp_path).digest == before


def test_a_folder_that_cannot_be_named_is_said_in_a_line(tmp_path, monkeypatch):
    for variable, ask in (
        ("METAGRAD_CACHE", cache.cache_root),
        ("METAGRAD_DATA", lambda: sources.data_directory(None)),
    ):
        monkeypatch.setenv(variable, "~nobody that I know/x")
        with pytest.raises(MetagradError, match=f"{variable} is ~nobody"):
            ask()


# --- links ---------------------------------------------------------------------------------------------------


def test_links_in_the_cache_are_replaced_not_written_through(tmp_path):
    root, place = folder_of_pictures(tmp_path / "set"), tmp_path / "cache" / "pictures"
    pictures.load(root, size=SIZE, cache_dir=tmp_path / "cache")
    names = [path.name for path in place.iterdir()]
    for path in place.iterdir():
        path.unlink()
    for name in names:
        (tmp_path / f"precious {name}").write_text("precious")
        (place / name).symlink_to(tmp_path / f"precious {name}")
    with pytest.warns(MetagradWarning, match="is damaged"):
        pictures.load(root, size=SIZE, cache_dir=tmp_path / "cache")
    assert {path.read_text() for path in tmp_path.glob("precious *")} == {"precious"}
    assert not any(path.is_symlink() for path in place.iterdir())


def test_a_cache_on_another_disk_may_be_a_link(tmp_path):
    root = folder_of_pictures(tmp_path / "set")
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    pictures.load(root, size=SIZE, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "disk" / "pictures").glob("rows-*.npy"))


def test_a_download_replaces_a_link_and_is_fetched_once(tmp_path, monkeypatch):
    import pooch

    fetched = []

    def retrieve(url, known_hash, fname, path):
        assert not (path / fname).exists()
        fetched.append(url)
        time.sleep(0.2)
        (path / fname).write_bytes(b"content")

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "file").symlink_to(tmp_path / "precious")
    md5 = "9a0364b9e99bb480dd25e1f0284c8555"
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(lambda _: sources.download("u", tmp_path / "file", md5=md5, progress=None), range(3)))
    assert done == [tmp_path / "file"] * 3
    assert fetched == ["u"]
    assert (tmp_path / "precious").read_text() == "precious"


# --- whatever the process has set ----------------------------------------------------------------------------


def test_default_device_and_dtype_change_nothing(tmp_path):
    root = folder_of_pictures(tmp_path / "set")
    plain = folder.load(root, size=SIZE, cache_dir=tmp_path / "a")
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            other = folder.load(root, size=SIZE, cache_dir=tmp_path / "b")
    finally:
        torch.set_default_dtype(torch.float32)
    assert other.digest == plain.digest
    for which in ("train", "val", "test"):
        one, two = getattr(plain, which), getattr(other, which)
        for name in ("images", "counts", "first"):
            assert torch.equal(getattr(one, name), getattr(two, name))
            assert getattr(one, name).dtype == getattr(two, name).dtype
