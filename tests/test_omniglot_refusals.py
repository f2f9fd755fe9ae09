"""Omniglot that is not there, not whole or not official, and what happens when it is downloaded."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_omniglot import SPLIT, UNREACHABLE, Small, drawing, make, png, same, write_zip

from metagrad.data import omniglot
from metagrad.errors import MetagradError


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    return make(tmp_path, monkeypatch)


# --- refusals --------------------------------------------------------------------------------------------


def test_missing_directory(small: Small) -> None:
    small.data.rmdir()
    assert str(small.data) in small.refuses("does not exist; pass another with --data-dir")


def test_empty_directory(small: Small) -> None:
    message = small.refuses("images_background")
    assert str(small.data) in message
    for place in (".", "omniglot", "omniglot-py", "omniglot/python"):
        assert all(str(Path(place) / name) in message for name in ("images_background", "images_background.zip"))


def test_one_archive_of_two(small: Small) -> None:
    write_zip(small.data / "images_background.zip", small.content["images_background"])
    small.refuses("images_evaluation is not in")


def test_missing_images(small: Small) -> None:
    content = small.content["images_background"]
    name = sorted(content)[25]
    content.pop(name)
    small.zip()
    message = small.refuses(r"1 of 60 images are missing \(among them in images_background/Alpha/character02\)")
    assert str(small.data / "images_background.zip") in message
    assert "get images_background.zip again" in message


def test_missing_class_and_added_images(small: Small) -> None:
    content = small.content["images_evaluation"]
    for name in [name for name in content if "character02" in name]:
        content.pop(name)
    small.zip()
    small.refuses("20 of 40 images are missing")
    content.update({f"images_evaluation/Gamma/character03/{i:02}.png": drawing(i) for i in range(30)})
    small.zip()
    small.refuses("has 50 images, 10 more than the 40 expected")


def test_altered_contents(small: Small) -> None:
    content = small.content["images_background"]
    content[next(iter(content))] = drawing(999)
    small.zip()
    message = small.refuses("altered")
    assert str(small.data / "images_background.zip") in message


def test_renamed_image(small: Small) -> None:
    content = small.content["images_background"]
    name = next(iter(content))
    content[name.replace(".png", "x.png")] = content.pop(name)
    small.extract()
    assert str(small.data / "images_background") in small.refuses("altered")


def test_truncated_zip(small: Small) -> None:
    small.zip()
    path = small.data / "images_evaluation.zip"
    path.write_bytes(path.read_bytes()[:-100])
    assert str(path) in small.refuses("nor a whole zip file")


def test_zip_that_would_escape(small: Small) -> None:
    small.content["images_evaluation"]["../up.png"] = b"x"
    small.zip()
    small.refuses("refused")


def test_huge_member(small: Small) -> None:
    content = small.content["images_background"]
    content[next(iter(content))] = bytes(1_000_000)
    small.zip()
    small.refuses("over the limit")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"not a png", "not a picture"),
        (b"", "not a picture"),
        (drawing(1)[:60], "not a picture"),
        (drawing(1)[:16] + b"\xff" * 40, "not a picture"),
        (png(np.ones((28, 28), dtype=bool)), "28x28 pixels instead of 105x105"),
        (png(np.ones((10_000, 10_000), dtype=bool)), "10000x10000 pixels instead"),
    ],
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_undecodable_image(small: Small, data: bytes, match: str) -> None:
    content = small.content["images_background"]
    name = sorted(content)[3]
    content[name] = data
    small.redescribe()
    small.zip()
    message = small.refuses(match)
    assert name in message
    assert str(small.data / "images_background.zip") in message


def test_class_with_too_few_drawings(small: Small) -> None:
    content = small.content["images_background"]
    name = sorted(content)[3]
    content[name.replace("character01", "character09")] = content.pop(name)
    small.redescribe()
    small.zip()
    small.refuses("19 instead of 20 drawings of images_background/Alpha/character01")


def test_split_that_names_no_archive(small: Small) -> None:
    small.zip()
    split = {**SPLIT, "test": [*SPLIT["test"], "elsewhere/Delta/character01"]}
    with pytest.raises(ValueError, match="1 classes"):
        omniglot._load(small.data, small.cache, None, small.archives, split)


# --- downloading -----------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}/"
        running.shutdown()
        thread.join()


def serve(small: Small, url: str) -> None:
    for index, (name, content) in enumerate(small.content.items()):
        path = small.root / "served" / f"{name}.zip"
        write_zip(path, content)
        md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
        small.archives[index] = replace(small.archives[index], md5=md5, url=f"{url}{name}.zip")


def test_download_once(small: Small, server: str) -> None:
    serve(small, server)
    heard: list[str] = []
    first = omniglot._load(None, small.cache, lambda done, total, what: heard.append(what), small.archives, SPLIT)
    assert heard[0] == "downloading images_background.zip"
    for path in (small.root / "served").iterdir():
        path.unlink()
    assert same(omniglot._load(None, small.cache, None, small.archives, SPLIT), first)
    small.zip()
    assert same(small.load(), first)


def test_damaged_download_is_fetched_again(small: Small, server: str) -> None:
    serve(small, server)
    first = omniglot._load(None, small.cache, None, small.archives, SPLIT)
    (small.cache / "omniglot" / "images_background.zip").write_bytes(b"damaged")
    assert same(omniglot._load(None, small.cache, None, small.archives, SPLIT), first)


@pytest.mark.parametrize("broken", ["unreachable", "missing", "other contents"])
def test_failed_download(small: Small, server: str, broken: str) -> None:
    serve(small, server)
    served = small.root / "served" / "images_background.zip"
    if broken == "unreachable":
        small.archives[0] = replace(small.archives[0], url=f"{UNREACHABLE}images_background.zip")
    elif broken == "missing":
        served.unlink()
    else:
        served.write_bytes(b"not it")
    with pytest.raises(MetagradError, match=r"cannot download http.*--data-dir") as caught:
        omniglot._load(None, small.cache, None, small.archives, SPLIT)
    assert "\n" not in str(caught.value)
    assert not (small.cache / "omniglot" / "images_background.zip").exists()
