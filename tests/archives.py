"""Zip files and folders of small members, for tests."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from metagrad.data.archive import open_members
from metagrad.errors import MetagradError

CONTENT = {
    "pics/b/2.png": b"two",
    "pics/a/1.png": b"one" * 1000,
    "pics/a/notes.txt": b"",
    "pics/é.png": b"\0\1",
}


def make_zip(path: Path, content: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def make_folder(path: Path, content: dict[str, bytes]) -> Path:
    for name, data in content.items():
        target = path.parent / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return path


def read_all(source: Path) -> None:
    with open_members(source) as members:
        for name in members.names:
            members.read(name)


def refused(source: Path, match: str) -> None:
    with pytest.raises(MetagradError, match=match) as caught:
        read_all(source)
    message = str(caught.value)
    assert "\n" not in message
    assert str(source) in message
