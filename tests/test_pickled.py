"""Pickles of arrays: what people have is read, nothing is run, and nothing is made that the data is not there for."""

import collections
import os
import pickle
import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metagrad import MetagradError
from metagrad.data import pickled
from metagrad.data.pickled import read_arrays

VALUE = {
    "image_data": np.arange(120, dtype=np.uint8).reshape(2, 4, 5, 3),
    "class_dict": {"n01": [0, 1, -5, 2**40], "n02": (1.5, None, True, "text é", b"\xff\0")},
    "more": [np.float32(2), np.arange(6).reshape(2, 3).T, np.array(["a", "bc"]), np.arange(3, dtype=">i4")],
    "none": np.zeros((0, 4)),
}


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_is_read(protocol):
    content = pickle.dumps(VALUE, protocol=protocol)
    assert same(read_arrays(content, "x.pkl"), pickle.loads(content))
    ordered = collections.OrderedDict(VALUE["class_dict"])
    assert same(read_arrays(pickle.dumps(ordered, protocol=protocol), "x.pkl"), VALUE["class_dict"])
    twice = read_arrays(pickle.dumps([VALUE["image_data"]] * 2, protocol=protocol), "x.pkl")
    assert twice[0] is twice[1]
    assert same(twice[0], VALUE["image_data"])
    named = pickle.dumps(VALUE, protocol=protocol).replace(b"numpy._core", b"numpy.core")  # numpy 1
    if protocol < 4:  # names carry no length
        assert same(read_arrays(named, "x.pkl"), pickle.loads(content))


def python2(protocol):
    """Return what Python 2 and numpy 1 wrote of ``{"image_data": array, "n": [0, 1]}``."""
    raw = bytes(range(250, 256)) + b"'\n\\\0ab"
    if protocol == 0:
        text = b"'" + raw.decode("latin1").encode("unicode_escape").replace(b"'", b"\\'") + b"'"
        state = (
            b"(I1\n(I3\nI4\ntp5\ncnumpy\ndtype\np6\n(S'u1'\np7\nI0\nI1\ntp8\nRp9\n"
            b"(I3\nS'|'\np10\nNNNI-1\nI-1\nI0\ntp11\nbI00\nS" + text + b"\np12\ntp13\nb"
        )
        array = b"cnumpy.core.multiarray\n_reconstruct\np2\n(cnumpy\nndarray\np3\n(I0\ntS'b'\np4\ntRp20\n" + state
        return raw, b"(dp0\nS'image_data'\np1\n" + array + b"sS'n'\np14\n(lp15\nI0\naI1\nas."
    state = (
        b"(K\x01K\x03K\x04\x86q\x05cnumpy\ndtype\nq\x06(U\x02u1q\x07K\x00K\x01tq\x08Rq\t"
        b"(K\x03U\x01|q\nNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    )
    if protocol == 1:
        state = state.replace(b"K\x03K\x04\x86", b"(K\x03K\x04t").replace(b"\x89", b"I00\n")
    raw_word = b"T" + struct.pack("<i", len(raw)) + raw
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x02(cnumpy\nndarray\nq\x03(K\x00tU\x01bq\x04tRq\x14"
    return raw, (b"\x80\x02" if protocol == 2 else b"") + (
        b"}q\x00(U\nimage_dataq\x01" + array + state + raw_word + b"tbU\x01nq\x0e]q\x0f(K\x00K\x01eu."
    )


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_what_python_2_wrote_is_read(protocol):
    raw, content = python2(protocol)
    usual = pickle.loads(content, encoding="latin1")  # what this test wrote is a pickle
    found = read_arrays(content, "x.pkl")
    assert same(found, {"image_data": np.frombuffer(raw, np.uint8).reshape(3, 4), "n": [0, 1]})
    assert same(found, usual)


class Runs:
    def __reduce__(self):
        return os.system, ("echo ran > ran.txt",)


@pytest.mark.parametrize("content", [
    pickle.dumps(Runs()),
    pickle.dumps({"image_data": Runs()}),
    pickle.dumps(np.array([Runs()], dtype=object)),
    pickle.dumps({"a": complex}),
    pickle.dumps(eval),
    pickle.dumps(np.dtype("u1")),
    pickle.dumps({1, 2}),
    pickle.dumps(np.zeros(2, [("a", "i4"), ("b", "f4")])),
    pickle.dumps(np.zeros(2, "M8[s]")),
    b"cos\nsystem\n(S'echo ran > ran.txt'\ntR.",
    b"cnumpy\nndarray\n.",
    b"cnumpy\nndarray\n(I9\ntR.",
    b"\x80\x04broken",
    b"",
    b"N",
    b".",
    b"0.",
    b"t.",
    b"(l(I1\nd.",
    b"((I1\ntI2\nd.",
    b"NNb.",
    b"I1\n)R.",
    b"\x80\x02]]a\x85K\x01s.",
])  # fmt: skip
def test_what_is_no_plain_data_is_refused_and_runs_nothing(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MetagradError, match="is not a pickle of plain arrays") as caught:
        read_arrays(content, "x.pkl")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_objects_are_called_so(protocol):
    with pytest.raises(MetagradError, match="Python objects"):
        read_arrays(pickle.dumps(np.array([{}, 1], dtype=object), protocol=protocol), "x.pkl")


def test_a_pickle_that_holds_itself_ends():
    found = read_arrays(b"\x80\x02]q\x00h\x00a.", "here")
    assert found[0] is found


def reconstructed(shape, raw=b"", dtype=b"u1", first=b"K\x00t"):
    """Return a pickle of an array that says it has a shape."""
    return (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + first + b"U\x01btR(K\x01(" + shape
        + b"tcnumpy\ndtype\n(U" + bytes([len(dtype)]) + dtype + b"K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff"
        b"\xff\xffK\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tb."
    )  # fmt: skip


def long(number):
    return b"\x8a\x08" + struct.pack("<q", number)


BOMBS = {
    "shape": reconstructed(long(10**10)),
    "shapes": reconstructed(long(10**6) * 3),
    "wrapped shape": reconstructed(long(2**40) + long(2**40)),
    "negative shape": reconstructed(long(-(10**10)) + long(-1)),
    "dimensions": reconstructed(b"K\x01" * 60, b"x"),
    "text type": reconstructed(b"K\x01", dtype=b"U900000000"),
    "empty items": reconstructed(long(10**12), dtype=b"S0"),
    "ndarray": b"\x80\x02cnumpy\nndarray\n(" + long(10**10) + b"tR.",
    "new": b"\x80\x02cnumpy\nndarray\n(" + long(10**10) + b"t\x81.",
    "scalar": b"\x80\x02cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(U\x0aU900000000K\x00K\x01tRU\x01xtR.",
    "buffer": b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(C\x01xcnumpy\ndtype\n(U\x02u1K\x00K\x01tR" + long(2**33)
              + b"\x85U\x01CtR.",
    "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
    "memo in text": b"Np2000000000\n.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 10**10) + b"x.",
    "bytes": b"\x80\x04\x8e" + struct.pack("<Q", 10**10) + b"x.",
    "text": b"\x80\x04\x8d" + struct.pack("<Q", 10**10) + b"x.",
    "frame": b"\x80\x04\x95" + struct.pack("<Q", 10**10) + b"N.",
    "number": b"\x80\x02\x8b\xff\xff\xff\x7fx.",
    "twos": b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (n, n, n + 1) for n in range(100)) + b".",
}  # fmt: skip
HARMLESS = ("memo", "memo in text", "frame", "twos", "empty items")


def test_no_small_pickle_takes_memory(tmp_path):
    """Each in a process that may have 600 MB more than it has after its imports."""
    for name, content in BOMBS.items():
        (tmp_path / name).write_bytes(content)
        assert len(content) < 1300
    code = """
import os, resource, sys
from metagrad import MetagradError
from metagrad.data.pickled import read_arrays
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 600 * 2**20,) * 2)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name in sorted(os.listdir(sys.argv[1])):
    try:
        read_arrays(open(os.path.join(sys.argv[1], name), "rb").read(), "x.pkl")
        print(name, "read", sep=":")
    except MetagradError as error:
        print(name, "no memory" if "MemoryError" in str(error) else "refused", sep=":")
print("grew", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, sep=":")
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    found = dict(line.split(":") for line in done.stdout.splitlines())
    assert int(found.pop("grew")) < 20
    assert set(found) == set(BOMBS)
    assert "no memory" not in found.values()
    assert {name for name, what in found.items() if what == "read"} <= set(HARMLESS)


def test_nested_a_million_deep_is_refused_or_read_without_end_of_the_process():
    deep = b"\x80\x02N" + b"\x85" * 1_000_000
    read_arrays(deep + b".", "x.pkl")
    with pytest.raises(MetagradError, match="keys are not plain"):
        read_arrays(b"\x80\x02}" + deep[2:] + b"Ns.", "x.pkl")


def test_opcodes_without_end_are_refused(monkeypatch):
    monkeypatch.setattr(pickled, "_MOST_OPCODES", 1000)
    assert read_arrays(b"N" * 999 + b".", "x.pkl") is None
    with pytest.raises(MetagradError, match="more than 1,000 opcodes"):
        read_arrays(b"N" * 1000 + b".", "x.pkl")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 5), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_a_damaged_pickle_is_refused_or_read(protocol, changes):
    content = bytearray(pickle.dumps(VALUE, protocol=protocol))
    for where, byte in changes:
        content[where % len(content)] = byte
    said = ""
    try:
        read_arrays(bytes(content), "x.pkl")
    except MetagradError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 500


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_no_pickle_are_refused_or_read(content):
    for text in (content, content + b".", b"((((NNNNNN" + content + b"."):
        try:
            found = read_arrays(text, "x.pkl")
        except MetagradError:
            continue
        assert isinstance(found, dict | list | tuple | str | bytes | bytearray | int | float | np.ndarray | None)


def test_nothing_is_read_through_pythons_own_reader(monkeypatch):
    monkeypatch.setattr(pickle, "loads", None)
    monkeypatch.setattr(pickle, "Unpickler", None)
    assert same(read_arrays(pickle.dumps(VALUE["class_dict"]), "x.pkl"), VALUE["class_dict"])
