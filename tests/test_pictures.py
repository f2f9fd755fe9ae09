"""Pictures in class folders: what is read, what is left out, and how classes are parted."""

import io
import os
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from small_pictures import SIZE, fill, picture

from metagrad import MetagradError, MetagradWarning, data
from metagrad.data import folder, pictures
from metagrad.fewshot import EpisodeSampler


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("METAGRAD_CACHE", str(place))
    return place


def test_every_mode_and_format_becomes_the_same_square(tmp_path):
    fill(tmp_path / "set")
    odd = tmp_path / "set" / "дом 家"
    odd.mkdir()
    grey = picture(1, "L")
    forms = {
        "a.jpg": picture(1, form="JPEG"),
        "b.webp": picture(2, form="WEBP"),
        "c.png": grey,
        "d.png": picture(3, "P"),
        "e.png": picture(4, "LA"),
        "f.png": picture(5, "1"),
        "g.JPEG": picture(6, form="JPEG"),
        "h.gif": picture(7, "P", form="GIF"),
        "i.jpg": picture(8, "CMYK", form="JPEG"),
        "j.png": picture(9, size=(3, 200)),
    }
    for name, content in forms.items():
        (odd / name).write_bytes(content)
    found = pictures.load(tmp_path / "set", size=SIZE)
    assert found.counts["дом 家"] == len(forms)
    assert found.images.shape == (8 * 5 + len(forms), 3, SIZE, SIZE)
    assert not found.skipped
    first = sum(count for name, count in found.counts.items() if name < "дом 家")
    row = found.images[first + 2]
    assert torch.equal(row[0], row[1])  # grey
    expected = (
        Image.open(io.BytesIO(grey)).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(5, 0, 35, 30))
    )
    assert (row.float() - torch.from_numpy(np.asarray(expected).copy()).permute(2, 0, 1)).abs().max() <= 2


def test_sixteen_bits_transparency_and_orientation():
    deep = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    found = pictures.decode(file.getvalue(), 64)
    assert abs(int(found[0, 32, 32]) - int(deep[32, 32]) / 257) <= 1
    clear = io.BytesIO()
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(clear, "PNG")
    assert (pictures.decode(clear.getvalue(), 8) == 255).all()
    pixels = np.zeros((20, 20, 3), dtype=np.uint8)
    pixels[:10] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise
    turned = io.BytesIO()
    Image.fromarray(pixels).save(turned, "PNG", exif=exif)
    assert pictures.decode(turned.getvalue(), 20)[0, 10, 15] == 255


def bomb():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def test_what_cannot_be_read_is_skipped_and_counted_or_refused(tmp_path):
    root = fill(tmp_path / "set")
    (root / "class 0" / "empty.png").touch()
    (root / "class 0" / "text.jpg").write_text("no picture")
    (root / "class 1" / "cut.png").write_bytes(picture(1)[:200])
    (root / "class 1" / "bomb.png").write_bytes(bomb())
    (root / "class 2" / "more.zip").write_bytes(b"PK")
    (root / "class 3" / "notes.txt").write_text("not looked at")
    (root / "class 4" / "again.png").write_bytes((root / "class 4" / "0.png").read_bytes())
    (root / "class 5" / "0 of 4.png").write_bytes((root / "class 4" / "0.png").read_bytes())  # of another class: kept
    found = pictures.load(root, size=SIZE)
    assert set(found.skipped) == {"class 0/empty.png", "class 0/text.jpg", "class 1/cut.png", "class 1/bomb.png"}
    assert "it has 3,600,000,000 pixels, more than" in found.skipped["class 1/bomb.png"]
    assert found.twice == ["class 4/again.png"]
    assert [name.rpartition("/")[2] for name in found.archives] == ["more.zip"]
    assert found.counts["class 5"] == 6
    said = " ".join(found.notes())
    assert "skipped 4 files" in said
    assert "left out 1 file" in said
    assert "unpack" in said
    with pytest.raises(MetagradError, match=r"cannot be read .* and 3 more"):
        pictures.load(root, size=SIZE, strict=True)


def test_decoded_once_and_again_when_something_changes(tmp_path, monkeypatch, cache):
    root = fill(tmp_path / "set")
    first = pictures.load(root, size=SIZE)
    images = first.images.clone()  # the file they are in is cut below
    with monkeypatch.context() as patch:
        patch.setattr(pictures, "decode_member", None)
        again = pictures.load(root, size=SIZE)
    assert torch.equal(first.images, again.images)
    assert first.digest == again.digest
    (root / "class 0" / "0.png").write_bytes(picture(999))
    assert pictures.load(root, size=SIZE).digest != first.digest
    for rows in (cache / "pictures").glob("*.npy"):
        rows.write_bytes(rows.read_bytes()[:300])  # cut short
    with pytest.warns(MetagradWarning, match="is damaged"):
        assert torch.equal(pictures.load(tmp_path / "set", size=SIZE).images[1:], images[1:])
    assert not list((cache / "pictures").glob(".*"))


def test_a_zip_and_its_folder_are_the_same(tmp_path):
    root = fill(tmp_path / "set")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for path in sorted(root.rglob("*.png")):
            archive.write(path, path.relative_to(tmp_path))
    a, b = pictures.load(root, size=SIZE), pictures.load(tmp_path / "set.zip", size=SIZE)
    assert a.digest == b.digest
    assert a.counts == b.counts


def test_links_out_of_the_tree_are_refused(tmp_path):
    root = fill(tmp_path / "set")
    (tmp_path / "secret.png").write_bytes(picture(1))
    os.symlink(tmp_path / "secret.png", root / "class 0" / "link.png")
    with pytest.raises(MetagradError, match="symbolic link out"):
        pictures.load(root, size=SIZE)


def test_classes_with_too_few_pictures_are_named(tmp_path):
    root = fill(tmp_path / "set")
    (root / "class 3" / "4.png").unlink()
    split = {"train": ["class 0", "class 3"], "val": ["class 1"], "test": ["class 2"]}
    found = folder.load(root, size=SIZE, split=split)
    with pytest.raises(MetagradError, match="class class 3 has 4 images"):
        EpisodeSampler(classes=found.train, ways=2, shots=2, queries=3)


def test_episodes_come_from_their_own_classes(tmp_path):
    root = fill(tmp_path / "set")
    found = folder.load(root, size=SIZE)
    tasks = EpisodeSampler(classes=found.val, ways=2, shots=2, queries=3)(5, generator=torch.Generator().manual_seed(0))
    mine = set()
    for name in found.val.names:
        mine |= {pictures.decode(path.read_bytes(), SIZE).tobytes() for path in (root / name).glob("*.png")}
    drawn = {(image * 255).round().byte().numpy().tobytes() for image in tasks.query.x.flatten(0, 1)}
    assert drawn <= mine
    assert len(found.val.images) == 40  # the splits share one array


def test_through_the_one_interface(tmp_path):
    fill(tmp_path / "set")
    assert data.load("folder", data_dir=tmp_path / "set", image_size=SIZE).train.images.shape[-1] == SIZE
