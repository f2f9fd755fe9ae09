"""Rows of images in a file of the cache: what is read is what was written, or it is made anew."""

import os
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from metagrad.data import cache, memmap
from metagrad.data.cache import Damaged


def rows(count=30, shape=(3, 20, 20)):
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def save(folder, made):
    memmap.save_rows(folder, iter(made), made.shape[1:], name="rows")
    return folder / "rows.npy"


@pytest.fixture
def blocks(monkeypatch):
    """Make blocks so small that a test has many."""
    monkeypatch.setattr(memmap, "_BLOCK", 1000)


@pytest.mark.parametrize("count", [0, 1, 30])
def test_rows_are_what_was_written_and_numpy_reads_them_too(tmp_path, blocks, count):
    made = rows(count)
    path = save(tmp_path, made)
    found = memmap.open_rows(path, made.shape)
    assert np.array_equal(found.numpy(), made)
    assert np.array_equal(np.load(path), made)
    found += 1  # its own, not the file's
    assert np.array_equal(memmap.open_rows(path, made.shape).numpy(), made)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.npy", "rows.sha256.json"]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(where=st.integers(0, 10**9), bit=st.integers(0, 7), of_facts=st.booleans())
def test_no_lost_bit_goes_unnoticed(tmp_path, blocks, where, bit, of_facts):
    made = rows()
    path = save(tmp_path, made)
    file = tmp_path / "rows.sha256.json" if of_facts else path
    content, status = bytearray(file.read_bytes()), file.stat()
    content[where % len(content)] ^= 1 << bit
    file.write_bytes(content)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    try:
        found = memmap.open_rows(path, made.shape)
    except Damaged:
        return
    assert found is None or np.array_equal(found.numpy(), made)  # None: the name of the digest is another


@pytest.mark.parametrize("cut", [0, 100, 256, 1000, -1])
def test_a_cut_file_and_another_shape_are_damage(tmp_path, cut):
    made = rows()
    path = save(tmp_path, made)
    with pytest.raises(Damaged, match="another shape"):
        memmap.open_rows(path, (29, 3, 20, 20))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(Damaged, match="cut"):
        memmap.open_rows(path, made.shape)
    path.unlink()
    assert memmap.open_rows(path, made.shape) is None


def test_rows_of_version_0_1_are_read(tmp_path):
    """Their header has 256 bytes, numpy's own 128."""
    made = rows()
    path = save(tmp_path, made)
    text = str({"descr": "|u1", "fortran_order": False, "shape": made.shape})
    path.write_bytes(
        b"\x93NUMPY\x01\x00" + (246).to_bytes(2, "little") + text.ljust(245).encode() + b"\n" + made.tobytes()
    )
    assert np.array_equal(memmap.open_rows(path, made.shape).numpy(), made)


@pytest.mark.parametrize("made", [
    rows().astype(np.int8), np.asfortranarray(rows()), rows()[:29],
    np.array([None] * 30),
])  # fmt: skip
def test_another_array_in_the_place_of_rows_is_damage(tmp_path, made):
    path = save(tmp_path, rows())
    np.save(path, made)
    with pytest.raises(Damaged, match="cut"):
        memmap.open_rows(path, (30, 3, 20, 20))


def test_rows_that_are_replaced_while_they_are_opened_are_damage(tmp_path, monkeypatch):
    """Those that are checked and those that are mapped must be the same ones."""
    path = save(tmp_path, rows())
    mapping = np.lib.format.open_memmap

    def replaced(*args, **options):
        (tmp_path / "new").write_bytes(path.read_bytes()[:-1] + b"\0")
        (tmp_path / "new").replace(path)
        return mapping(*args, **options)

    monkeypatch.setattr(np.lib.format, "open_memmap", replaced)
    with pytest.raises(Damaged, match="replaced"):
        memmap.open_rows(path, (30, 3, 20, 20))


def test_a_large_file_is_checked_when_it_is_another_than_before_or_on_demand(tmp_path, blocks, monkeypatch):
    made = rows()
    path = save(tmp_path, made)
    monkeypatch.setattr(memmap, "_ALWAYS", 0)
    checks = []
    check = memmap._check
    monkeypatch.setattr(memmap, "_check", lambda *args: (checks.append(1), check(*args)))
    memmap.open_rows(path, made.shape)
    assert not checks
    memmap.open_rows(path, made.shape, full=True)
    assert len(checks) == 1
    copy = path.read_bytes()
    path.unlink()
    path.write_bytes(copy)  # moved to another disk, say
    memmap.open_rows(path, made.shape)
    memmap.open_rows(path, made.shape)
    assert len(checks) == 2  # and remembered
    path.write_bytes(copy[:-1] + bytes([copy[-1] ^ 1]))
    with pytest.raises(Damaged, match="bytes 35000 and following"):
        memmap.open_rows(path, made.shape)


@pytest.mark.parametrize("facts", [
    {}, {"shape": "x"}, {"shape": [30, 3, 20, 20]}, {"shape": [30, 3, 20, 20], "block": 4194304, "sha256s": None},
    {"shape": [30, 3, 20, 20], "block": 4194304, "sha256s": [1], "file": None},
    {"shape": [30, 3, 20, 20], "block": 4194304, "sha256s": ["x"] * 1000, "file": {}},
])  # fmt: skip
def test_facts_of_another_kind_are_damage(tmp_path, facts):
    path = save(tmp_path, rows())
    cache.write_facts(tmp_path / "rows.sha256.json", facts)
    with pytest.raises(Damaged):
        memmap.open_rows(path, (30, 3, 20, 20))


# --- made anew, and a warning --------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


def pickle_there(path):
    np.save(path, np.array([{}], dtype=object))


def other_type(path):
    np.save(path, np.arange(1000, dtype=np.int8).reshape(10, 100))


def other_shape(path):
    np.save(path, np.zeros((100, 10), dtype=np.uint8))


def other_numbers(path):
    inside = np.load(path)
    inside[7] += 1
    np.save(path, inside)


def other_facts(path):
    cache.write_facts(path.with_name("key.sha256.json"), {"shape": [10, 100]})


@pytest.mark.parametrize(
    "damage", [None, truncate, empty, flip_a_bit, pickle_there, other_type, other_shape, other_numbers, other_facts]
)
def test_cached_rows_are_made_again_when_they_are_damaged(tmp_path, damage):
    made, path = np.arange(1000).astype(np.uint8).reshape(10, 100), tmp_path / "new" / "key.npy"
    builds, messages = [], []
    for _ in range(3):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = memmap.cached_rows(path, made.shape, lambda: (builds.append(1), made)[1], what="numbers")
        assert np.array_equal(found.numpy(), made)
        messages += [str(one.message) for one in caught]
        if len(builds) == 1 and damage:
            damage(path)
    assert len(builds) == (2 if damage else 1)
    assert ["key.npy is damaged" in message for message in messages] == [True] * (len(builds) - 1)
    assert sorted(file.name for file in path.parent.iterdir()) == ["key.lock", "key.npy", "key.sha256.json"]


@pytest.mark.parametrize("made", [np.zeros((2, 3)), np.zeros((2, 4), np.uint8)])
def test_rows_of_another_kind_than_said_are_not_kept(tmp_path, made):
    with pytest.raises(ValueError, match="a row is"):
        memmap.cached_rows(tmp_path / "key.npy", (2, 3), lambda: made, what="it")
    assert [file.name for file in tmp_path.iterdir()] == ["key.lock"]
