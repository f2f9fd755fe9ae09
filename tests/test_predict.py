"""``metagrad predict``: whatever is named, in whatever form."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import forked
import pytest
from commands import adapt, rows_of
from PIL import Image
from strokes import drawings

from metagrad.cli.main import main


def test_formats_and_ways_to_name_pictures(learned, pictures, capsys, monkeypatch):
    adapt(learned)
    rows = rows_of(capsys, "my.model", "new")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(row["picture"] for row in rows) + "\n\n"))
    assert rows_of(capsys, "my.model", "-") == rows
    assert rows_of(capsys, "my.model", *(row["picture"] for row in rows)) == rows
    assert main(["predict", "my.model", "new", "--format", "jsonl"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["class"] for line in lines] == [row["class"] for row in rows]
    assert main(["predict", "my.model", "new"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 16


def test_a_label_does_not_depend_on_the_neighbours(learned, pictures, capsys):
    adapt(learned)
    together = rows_of(capsys, "my.model", "new")
    for row in together[::3]:
        (alone,) = rows_of(capsys, "my.model", row["picture"])
        assert float(alone["probability"]) == pytest.approx(float(row["probability"]), rel=1e-5)
        assert alone["class"] == row["class"]


def test_reject_is_for_what_is_far(learned, pictures, capsys):
    adapt(learned)
    for number, one in enumerate(drawings(12, 1, 99)[:, 0]):
        (pictures / "strange").mkdir(exist_ok=True)
        Image.fromarray(one).save(pictures / "strange" / f"{number}.png")
    known, unknown = (rows_of(capsys, "my.model", place, "--reject") for place in ("new", "strange"))
    rejected = [sum(row["class"] == "unknown" for row in rows) / len(rows) for rows in (known, unknown)]
    assert rejected[0] < rejected[1]


def test_odd_files_do_not_stop_the_rest(learned, pictures, capsys):
    adapt(learned)
    os.mkfifo(pictures / "new" / "pipe.png")
    Image.new("L", (2000, 4)).save(pictures / "new" / "long.png")
    (pictures / "new" / "bad\udcff.png").write_bytes((pictures / "new/kind 0 ё/2.png").read_bytes())
    for form in ("table", "csv", "jsonl"):
        capsys.readouterr()
        words = ["predict", "my.model", "new", "--format", form]
        assert forked.command(words, Path("said"), Path("errors")).ended()[0] == 0
        errors = Path("errors").read_bytes()
        assert b"not a plain file" in errors
        assert b"too long for a drawing" in errors
        assert b"Traceback" not in errors
        assert len(Path("said").read_bytes().splitlines()) == 17 + (form == "csv")
    (pictures / "list").write_bytes(b"\xef\xbb\xbfnew/bad\xff.png\n\xff\xfe\n")
    quiet = f"{sys.executable} -m metagrad predict my.model - --format csv < list | true"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-o", "pipefail", "-c", quiet], capture_output=True, env=environment)
    assert b"BrokenPipe" not in done.stderr
    assert b"Traceback" not in done.stderr
    assert done.returncode == 0


def test_progress_goes_where_the_labels_do_not(learned, pictures, capsys, monkeypatch):
    adapt(learned)
    monkeypatch.setattr("metagrad.cli.progress._LOG_SECONDS", -1.0)
    monkeypatch.setattr("metagrad.classifier.support._AT_ONCE", 8)
    capsys.readouterr()
    assert main(["predict", "my.model", "new"]) == 0
    said = capsys.readouterr()
    assert re.findall(r"labelling pictures: (\d+) % done, 0:00:\d\d left", said.err) == ["50", "100"]
    assert len(said.out.splitlines()) == 16
    assert main(["predict", "my.model", "new", "nowhere"]) == 2
    assert not capsys.readouterr().out, "found out before the first is labelled"


def test_a_class_called_unknown_and_an_output_that_is_closed(learned, pictures, capsys):
    (pictures / "known" / "kind 0 ё").rename(pictures / "known" / "unknown")
    adapt(learned)
    for form, says in (("csv", True), ("jsonl", False)):
        capsys.readouterr()
        assert main(["predict", "my.model", "new", "--reject", "--format", form]) == 0
        assert ("named unknown" in capsys.readouterr().err) == says
    closed = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m metagrad predict my.model new >&-"], capture_output=True, text=True
    )
    assert closed.returncode == 2
    assert "standard output is closed" in closed.stderr
    assert len(closed.stderr.splitlines()) == 1


def test_what_is_no_plain_file_is_neither_read_nor_replaced(learned, pictures, capsys):
    adapt(learned)
    for name in ("pipe", "pipe.zip"):
        os.mkfifo(name)
    for words in (
        ["predict", "pipe", "new"], ["data", "verify", "pipe.zip"],
        ["adapt", str(learned), "pipe.zip", "--out", "a.model"],
        ["adapt", str(learned), "known", "--out", "pipe"], ["export", "my.model", "--format", "pt2", "--out", "pipe"],
        ["report", str(learned), "--out", "pipe"], ["adapt", str(learned), "/dev/zero", "--out", "a.model"],
    ):  # fmt: skip
        capsys.readouterr()
        assert main(words) == 2, words
        assert "not a plain file" in capsys.readouterr().err, words
    assert Path("pipe").is_fifo()
    Path("large.png").touch()
    os.truncate("large.png", 100 * 2**20)
    assert main(["predict", "my.model", "large.png"]) == 2
    assert "it has 100 MB, more than 64" in capsys.readouterr().err


def test_any_encoding_of_the_output_will_do(learned, pictures, capsys):
    adapt(learned)

    def said(encoding, form):
        words = ["predict", "my.model", "new", "--format", form]
        code, text = forked.command(words, Path("said"), encoding=encoding).ended()
        assert code == 0, text
        return text.splitlines()

    assert "kind 0 ё" in said("utf-8", "table")[0]
    assert "kind 0 \\u0451" in said("ascii", "table")[0]
    lines = [[json.loads(line) for line in said(encoding, "jsonl")] for encoding in ("ascii", "utf-8")]
    assert lines[0] == lines[1]


def test_a_list_that_is_empty_and_one_that_is_stopped(learned, pictures, capsys, monkeypatch):
    adapt(learned)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["predict", "my.model", "-"]) == 2
    assert "names no picture" in capsys.readouterr().err
    waiting = subprocess.Popen(
        [sys.executable, "-u", "-m", "metagrad", "predict", "my.model", "-"],
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONVERBOSE": "1"},
    )  # fmt: skip
    for line in waiting.stderr:
        if line.startswith(b"import 'metagrad.cli.progress'"):  # the last that is imported
            break
    time.sleep(0.5)
    waiting.terminate()
    assert b"metagrad: interrupted" in waiting.stderr.read()  # the list stays open: it has not ended
    assert waiting.wait() == 130
    waiting.stdin.close()
    waiting.stderr.close()


def test_folders_of_any_name(learned, pictures, capsys, monkeypatch):
    for name in (".known", "__MACOSX of mine", "a:b"):
        shutil.copytree("known", name)
        assert adapt(learned, known=name) == 0, name
        assert "4 classes, 2 pictures each" in capsys.readouterr().out
    monkeypatch.chdir("known/kind 0 ё")
    assert adapt(learned, known="..", out="../../up.model") == 0
    monkeypatch.setattr("metagrad.classifier.learner._MOST", 5)
    assert adapt(learned, known="..", out="../../up.model") == 2
    assert "has 8 pictures, more than 5" in capsys.readouterr().err


def test_what_a_folder_holds_beside_pictures_is_said(learned, pictures, capsys):
    adapt(learned)
    asked = pictures / "asked"
    shutil.copytree(pictures / "new", asked)
    for name in ("IMG_1.HEIC", "notes.txt", "Thumbs.db", ".hidden"):
        (asked / name).write_bytes(b"x")
    capsys.readouterr()
    assert main(["predict", "my.model", "asked"]) == 0
    said = capsys.readouterr().err
    assert "left out 2 files of other kinds (asked/IMG_1.HEIC; asked/notes.txt); save HEIC and AVIF pictures" in said
    (pictures / "phone").mkdir()
    (pictures / "phone" / "1.HEIC").write_bytes(b"x")
    assert main(["predict", "my.model", "phone"]) == 2
    assert "has no pictures (.jpg, .jpeg, .png, .webp, ...); save HEIC" in capsys.readouterr().err


def test_words_in_the_wrong_order_are_told_apart(learned, pictures, capsys):
    adapt(learned)
    (pictures / "a.png").write_bytes(b"not a model")
    (pictures / "a.zip").write_bytes(b"PK")
    for words, says in (
        ("predict new my.model", "new is a folder: give the model first"),
        ("adapt known glyphs --out b.model", "give the model first, then the pictures: metagrad adapt glyphs known"),
        ("adapt Glyph known --out b.model", "no run or model called Glyph: did you mean glyphs?"),
        ("adapt glyphs known --out a.png", "a.png exists and is no model of metagrad adapt"),
        ("predict my.model a.zip", "a.zip is an archive: unpack it, then give the folder"),
        ("report my.model", "it is a file, and a run is a folder"),
    ):
        assert main(words.split()) == 2
        assert says in capsys.readouterr().err
    assert (pictures / "a.png").read_bytes() == b"not a model"
    assert adapt(learned) == 0  # a model is replaced
