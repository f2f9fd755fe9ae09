"""The uniform view of a zip file or an extracted folder."""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
from pathlib import Path

import pytest
from archives import CONTENT, make_folder, make_zip, read_all, refused
from hypothesis import given
from hypothesis import strategies as st

from metagrad.data import zips
from metagrad.data.archive import contents_digest, fingerprint, open_members
from metagrad.errors import MetagradError


def test_zip_and_folder_look_the_same(tmp_path: Path) -> None:
    views = [make_zip(tmp_path / "any.zip", CONTENT), make_folder(tmp_path / "pics", CONTENT)]
    digests = set()
    for view in views:
        with open_members(view) as members:
            assert members.names == tuple(sorted(CONTENT))
            assert {name: members.read(name) for name in members.names} == CONTENT
            digests.add(contents_digest(members))
    expected = hashlib.sha256()
    for name in sorted(CONTENT):
        expected.update(name.encode() + b"\0" + hashlib.sha256(CONTENT[name]).digest())
    assert digests == {expected.hexdigest()}


def test_nothing_is_extracted(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "any.zip", CONTENT)
    with open_members(source) as members:
        contents_digest(members)
    assert os.listdir(tmp_path) == ["any.zip"]


def test_folder_entries_of_a_zip_are_not_members(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "any.zip", {"pics/": b"", **CONTENT})
    with open_members(source) as members:
        assert members.names == tuple(sorted(CONTENT))


def test_keep_chooses_members(tmp_path: Path) -> None:
    sources = (make_zip(tmp_path / "any.zip", CONTENT), make_folder(tmp_path / "pics", CONTENT))
    for source in sources:
        with open_members(source, keep=lambda name: name.endswith(".txt")) as members:
            assert members.names == ("pics/a/notes.txt",)
            with pytest.raises(KeyError):
                members.read("pics/b/2.png")


@given(
    st.dictionaries(st.text("abé", min_size=1, max_size=3).map(lambda name: f"top/{name}.png"), st.binary(max_size=20)),
    st.randoms(use_true_random=False),
)
def test_digest_does_not_depend_on_packing(tmp_path_factory: pytest.TempPathFactory, content, random) -> None:
    folder = tmp_path_factory.mktemp("digest")
    shuffled = list(content.items())
    random.shuffle(shuffled)
    sources = (
        make_zip(folder / "first.zip", content),
        make_zip(folder / "second.zip", dict(shuffled), zipfile.ZIP_STORED),
    )
    digests = []
    for source in sources:
        with open_members(source) as members:
            digests.append(contents_digest(members))
    assert digests[0] == digests[1]


def test_digest_tells_names_and_bytes_apart(tmp_path: Path) -> None:
    contents = [{"a": b"1", "b": b"2"}, {"a": b"2", "b": b"1"}, {"a": b"1", "c": b"2"}, {"a": b"1"}]
    digests = set()
    for index, content in enumerate(contents):
        with open_members(make_zip(tmp_path / f"{index}.zip", content)) as members:
            digests.add(contents_digest(members))
    assert len(digests) == len(contents)


def test_digest_reports_progress(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with open_members(make_zip(tmp_path / "any.zip", {f"{i:03}": b"" for i in range(300)})) as members:
        contents_digest(members, lambda done, total: seen.append((done, total)))
    assert seen == [(256, 300), (300, 300)]


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../up.png",
        "pics/../../up.png",
        "pics\\up.png",
        "C:/up.png",
        "c:up.png",
        "./a",
        "a//b",
        "..",
    ],
)
def test_escaping_names_are_refused(tmp_path: Path, name: str) -> None:
    source = make_zip(tmp_path / "any.zip", {"pics/good.png": b"", name: b""})
    refused(source, "refused, since its member")
    # Even if it is not one of the members asked for.
    with pytest.raises(MetagradError, match="refused"):
        open_members(source, keep=lambda name: name == "pics/good.png")


def test_zero_byte_in_a_name_is_refused(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "any.zip", {"pics/a#.png": b""})
    source.write_bytes(source.read_bytes().replace(b"a#.png", b"a\0.png"))
    refused(source, "zero byte")


def test_symlink_entry_of_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("pics/link.png")
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "any.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "any.zip", "symbolic link")


def test_repeated_entry_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "any.zip", "w") as archive:
        archive.writestr("a.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("a.png", b"2")
    refused(tmp_path / "any.zip", "twice")


@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, -1])
def test_truncated_zip(tmp_path: Path, keep: float) -> None:
    source = make_zip(tmp_path / "any.zip", CONTENT)
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    refused(source, "nor a whole zip file")


def test_not_a_zip(tmp_path: Path) -> None:
    source = tmp_path / "any.zip"
    source.write_bytes(b"<html>404</html>" * 100)
    refused(source, "nor a whole zip file")


def test_damaged_member(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "any.zip", {"a.png": b"some bytes"}, zipfile.ZIP_STORED)
    source.write_bytes(source.read_bytes().replace(b"some bytes", b"same bytes"))
    refused(source, "member 'a.png'")


def test_encrypted_member(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "any.zip", {"a.png": b"some bytes"})
    data = bytearray(source.read_bytes())
    data[6] |= 1  # the flags in the member's own header and in the directory at the end
    data[data.index(b"PK\1\2") + 8] |= 1
    source.write_bytes(data)
    refused(source, "is encrypted: unpack it")


def test_unusual_compression(tmp_path: Path) -> None:
    refused(make_zip(tmp_path / "any.zip", {"a.png": bytes(100)}, zipfile.ZIP_BZIP2), "unusual compression")


def test_large_member(tmp_path: Path) -> None:
    content = {"pics/big.png": bytes(1001)}
    for source in (make_zip(tmp_path / "any.zip", content), make_folder(tmp_path / "pics", content)):
        with open_members(source, max_member_bytes=1001) as members:
            assert members.read("pics/big.png") == bytes(1001)
        with (
            open_members(source, max_member_bytes=1000) as members,
            pytest.raises(MetagradError, match=r"'pics/big.png' has 1001 bytes or more, over the limit of 1000"),
        ):
            members.read("pics/big.png")


def test_member_larger_than_it_declares(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "any.zip", {"a.png": bytes(10_000_000)})
    size = (10_000_000).to_bytes(4, "little")
    data = source.read_bytes()
    assert data.count(size) == 2
    source.write_bytes(data.replace(size, (10).to_bytes(4, "little")))
    refused(source, "member 'a.png'")


def test_missing_source(tmp_path: Path) -> None:
    refused(tmp_path / "nothing.zip", "does not exist")


def test_fingerprint_notices_changes(tmp_path: Path) -> None:
    zipped = make_zip(tmp_path / "any.zip", CONTENT)
    folder = make_folder(tmp_path / "pics", CONTENT)

    def changed(source: Path, file: Path) -> bool:
        before = fingerprint(source)
        assert fingerprint(source) == before
        status = file.stat()
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))
        return fingerprint(source) != before

    assert changed(zipped, zipped)
    assert changed(folder, folder / "a" / "1.png")
    before = fingerprint(folder, keep=lambda name: name.endswith(".png"))
    (folder / "a" / ".DS_Store").write_bytes(b"x")
    assert fingerprint(folder, keep=lambda name: name.endswith(".png")) == before
    (folder / "a" / "3.png").write_bytes(b"x")
    assert fingerprint(folder, keep=lambda name: name.endswith(".png")) != before
    with pytest.raises(MetagradError, match="cannot be read"):
        fingerprint(tmp_path / "nothing.zip")


# --- bombs -----------------------------------------------------------------------------------------------


def test_what_unpacks_to_far_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_zip(tmp_path / "any.zip", {f"a/{i}.bmp": bytes(100_000) for i in range(20)})
    monkeypatch.setattr(zips, "_UNPACKED_BYTES", 2_000_000)
    with open_members(source) as members:
        assert len(members.read("a/3.bmp")) == 100_000
    monkeypatch.setattr(zips, "_UNPACKED_BYTES", 1_999_999)
    refused(source, "would unpack to .* unpack it and name the folder")
    with open_members(source, keep=lambda name: name == "a/3.bmp") as members:  # the others are not unpacked
        assert members.names == ("a/3.bmp",)
    stored = make_zip(tmp_path / "stored.zip", {f"a/{i}.bmp": bytes(100_000) for i in range(20)}, zipfile.ZIP_STORED)
    read_all(stored)


def test_members_that_share_bytes_are_refused(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "any.zip", {"a": bytes(1000), "b": bytes(1000), "c": b"x"}, zipfile.ZIP_STORED)
    data = bytearray(source.read_bytes())
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)  # of b in the directory
    data[second + 42 : second + 46] = bytes(4)  # it lies where a does
    source.write_bytes(data)
    refused(source, "overlaps another one")


def test_a_member_that_reaches_into_the_next_is_refused(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "any.zip", {"a": bytes(1000), "b": bytes(1000)}, zipfile.ZIP_STORED)
    data = bytearray(source.read_bytes())
    for name in (b"PK\1\2", b"PK\3\4"):
        at = data.index(name) + (20 if name == b"PK\1\2" else 18)
        data[at : at + 8] = (1500).to_bytes(4, "little") * 2
    source.write_bytes(data)
    refused(source, "overlaps another one")


def test_the_number_of_members_is_bounded_before_they_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_zip(tmp_path / "any.zip", {f"{i}": b"" for i in range(30)})
    monkeypatch.setattr(zips, "_MOST_MEMBERS", 30)
    read_all(source)
    made = []
    info = zipfile.ZipInfo
    monkeypatch.setattr(zipfile, "ZipInfo", lambda *args: made.append(1) or info(*args))
    monkeypatch.setattr(zips, "_MOST_MEMBERS", 29)
    refused(source, "more than 29 members")
    monkeypatch.setattr(zips, "_MOST_DIRECTORY_BYTES", 1000)
    refused(source, "its directory has 1,")
    assert not made


def test_a_name_of_thousands_of_characters_is_said_in_short(tmp_path: Path) -> None:
    source = make_zip(tmp_path / "any.zip", {"a/" * 20_000 + "/x.png": b""})
    with pytest.raises(MetagradError, match="empty part") as caught:
        open_members(source)
    assert len(str(caught.value)) < 600
