"""The store of features gives what the network gives, whatever happened to its files, and where none can be written."""

import errno
import os
import warnings
from pathlib import Path

import pytest
import torch
from feature_rows import KEYS, TRUTH, Counted, file_of, opened
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad import MetagradWarning
from metagrad.data import feature_records
from metagrad.data.feature_folders import clean

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
