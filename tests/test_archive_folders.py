"""Folders of members: names, links, pipes and nesting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from archives import CONTENT, make_folder, refused

from metagrad.classifier.support import listed
from metagrad.data.archive import fingerprint, open_members
from metagrad.errors import MetagradError


def test_folder_takes_the_name_it_is_called_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "pics", CONTENT)
    (tmp_path / "images").symlink_to(folder, target_is_directory=True)
    with open_members(tmp_path / "images") as members:
        assert all(name.startswith("images/") for name in members.names)
    monkeypatch.chdir(folder)
    with open_members(Path(".")) as members:
        assert members.names == tuple(sorted(CONTENT))


def test_link_out_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    folder = make_folder(tmp_path / "pics", CONTENT)
    (folder / "link.png").symlink_to(tmp_path / "secret")
    refused(folder, "link out of the folder")
    with pytest.raises(MetagradError, match="link out of the folder"):
        fingerprint(folder)


def test_links_to_nothing_in_circles_and_to_folders(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pics", CONTENT)
    link = folder / "link.png"
    for target, match in (("missing", "to nothing"), ("link.png", "to nothing"), ("a", "to a folder")):
        link.symlink_to(folder / target)
        refused(folder, match)
        link.unlink()
    (folder / "outside").symlink_to(tmp_path)
    refused(folder, "out of the folder")


def test_link_within_a_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pics", CONTENT)
    (folder / "link.png").symlink_to(folder / "b" / "2.png")
    with open_members(folder) as members:
        assert members.read("pics/link.png") == b"two"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pics", CONTENT)
    os.mkfifo(folder / "pipe.png")
    refused(folder, "not a plain file")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_unsafe_names_in_a_folder(tmp_path: Path) -> None:
    for name, match in ((b"back\\slash", "backslash"), (b"not-utf8-\xff", "not utf-8")):
        folder = make_folder(tmp_path / "pics", CONTENT)
        path = os.path.join(os.fsencode(folder), name)
        try:
            open(path, "wb").close()
        except OSError:
            continue  # a file system that refuses such names
        refused(folder, match)
        os.unlink(path)


def test_file_gone_after_opening(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pics", CONTENT)
    with open_members(folder) as members:
        (folder / "b" / "2.png").unlink()
        with pytest.raises(MetagradError, match="cannot be read"):
            members.read("pics/b/2.png")


def test_renamed_files_of_one_size_and_time_are_noticed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "pics", {"pics/a": b"one", "pics/b": b"two"})
    for name in ("a", "b"):
        os.utime(folder / name, (1e9, 1e9))
    before = fingerprint(folder)
    (folder / "a").rename(folder / "c")
    (folder / "b").rename(folder / "a")
    (folder / "c").rename(folder / "b")
    assert fingerprint(folder) != before


def test_folders_nested_a_thousand_deep_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder(tmp_path / "pics", {"pics/a/1.png": b"flat"})
    monkeypatch.chdir(folder)
    for _ in range(1100):
        os.mkdir("d")
        os.chdir("d")
    Path("x.png").write_bytes(b"deep")
    try:
        with open_members(folder) as members:
            assert [members.read(name) for name in members.names] == [b"flat", b"deep"]
        assert fingerprint(folder)
        assert [path.name for path in listed([str(folder)], [])] == ["1.png", "x.png"]
    finally:  # what tidies up after the tests would recurse
        Path("x.png").unlink()
        for _ in range(1100):
            os.chdir("..")
            os.rmdir("d")
