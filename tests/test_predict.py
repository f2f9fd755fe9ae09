"""``metagrad predict``: whatever is named, in whatever form."""

import io
import json
import os
import re
import subprocess
import sys

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
    known, strange = (rows_of(capsys, "my.model", place, "--reject") for place in ("new", "strange"))
    rejected = [sum(row["class"] == "unknown" for row in rows) / len(rows) for rows in (known, strange)]
    assert rejected[0] < rejected[1]


def test_odd_files_do_not_stop_the_rest(learned, pictures, capsys):
    adapt(learned)
    os.mkfifo(pictures / "new" / "pipe.png")
    Image.new("L", (2000, 4)).save(pictures / "new" / "long.png")
    (pictures / "new" / "bad\udcff.png").write_bytes((pictures / "new/kind 0 ё/2.png").read_bytes())
    for form in ("table", "csv", "jsonl"):
        capsys.readouterr()
        done = subprocess.run([sys.executable, "-m", "metagrad", "predict", "my.model", "new", "--format", form],
                              capture_output=True)  # fmt: skip
        assert done.returncode == 0
        assert b"not a plain file" in done.stderr
        assert b"too long for a drawing" in done.stderr
        assert b"Traceback" not in done.stderr
        assert len(done.stdout.splitlines()) == 17 + (form == "csv")
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
    assert re.findall(r"labelling pictures: (\d+)%, 0:00:\d\d left", said.err) == ["50", "100"]
    assert len(said.out.splitlines()) == 16
    assert main(["predict", "my.model", "new", "nowhere"]) == 2
    assert not capsys.readouterr().out, "found out before the first is labelled"


def test_a_class_called_unknown_and_an_output_that_is_closed(learned, pictures, capsys):
    (pictures / "known" / "kind 0 ё").rename(pictures / "known" / "unknown")
    adapt(learned)
    for form, says in (("csv", True), ("jsonl", False)):
        capsys.readouterr()
        assert main(["predict", "my.model", "new", "--reject", "--format", form]) == 0
        assert ("called unknown too" in capsys.readouterr().err) == says
    closed = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m metagrad predict my.model new >&-"], capture_output=True, text=True
    )
    assert closed.returncode == 2
    assert "standard output is closed" in closed.stderr
    assert len(closed.stderr.splitlines()) == 1
