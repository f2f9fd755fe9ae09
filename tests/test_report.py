"""The report: everything in one file, nothing of a run's names taken for code, and what differs is marked."""

import json
import re
import shutil
import subprocess

import pytest
from html_page import Seen
from strokes import dataset
from toyruns import rewritten

from metagrad import data
from metagrad.cli.main import main
from metagrad.report.figures import Curve, Panel, described, legend, panels, svg


@pytest.fixture
def runs(learned, tmp_path, monkeypatch):
    """Copy the run twice, one by a name that is code; change an option and lengthen the second's metrics."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda *args, **options: dataset())
    for name in ("one", "<script>alert(1)</script>".replace("/", "⁄")):
        shutil.copytree(learned, tmp_path / name)
    return "one", "<script>alert(1)<⁄script>"


def test_one_page_of_one_run(runs, tmp_path, capsys):
    assert main(["report", "one", "--out", "r.html"]) == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    seen = Seen(text)
    tags = [tag for tag, _ in seen.elements]
    assert {"h1", "h2", "svg", "table", "img", "details", "main"} <= set(tags)
    assert "script" not in tags
    for tag, attrs in seen.elements:  # nothing is fetched from anywhere
        for key in ("src", "href", "xlink:href"):
            assert attrs.get(key, "#")[:5] in ("data:", "#") or attrs[key][0] == "#", (tag, attrs)
        if tag == "img":
            assert "alt" in attrs
    assert not re.search(r"url\((?!#)|@import", text)
    pictures = [attrs for tag, attrs in seen.elements if attrs.get("role") == "img"]
    assert len(pictures) >= 5
    assert all("meta-step" in attrs["aria-label"] for attrs in pictures)
    said = " ".join(seen.text)
    assert "metagrad train omniglot" in said
    assert "Tasks of validation classes" in said
    assert re.search(
        r"without a network [\d.]+ %, by the nearest class mean of the pixels; the network has [\d.]+ %", said
    )
    assert "differs" not in text.split("</style>")[1]


def test_runs_beside_each_other(runs, tmp_path):
    one, odd = runs
    folder = tmp_path / odd
    rewritten(folder / "config.json", lambda record: record["experiment"]["outer"].update(lr=0.5))
    for name in ("best", "last"):  # the weights know the options they came of
        (folder / f"{name}.safetensors").unlink()
    line = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(10, 20_001, 10):
            file.write(json.dumps({**line, "step": step}) + "\n")
    assert main(["report", one, odd, "--out", "r.html"]) == 0
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert (tmp_path / "r.html").stat().st_size < 3_000_000
    seen = Seen(text)
    assert "script" not in [tag for tag, _ in seen.elements]
    framed = [attrs for tag, attrs in seen.elements if attrs.get("class") == "differs"]
    assert len(framed) == 2
    assert odd in " ".join(seen.text)


def test_without_data_there_are_no_pictures(runs, tmp_path, capsys, monkeypatch):
    def gone(*args, **options):
        from metagrad.errors import MetagradError

        raise MetagradError("the data are elsewhere")

    monkeypatch.setattr(data, "load", gone)
    assert main(["report", "one"]) == 0
    assert "no pictures of one: the data are elsewhere" in capsys.readouterr().out
    assert "Tasks of validation classes" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    for bad in (["report"], ["report", "nowhere"], ["report", "one", "--out", "one"]):
        assert main(bad) == 2


@pytest.mark.parametrize("line", ["garbage", "3", "null", "[]", '{"loss": 1}', '{"step": 1, "loss": "x"}', "\xff\xfe"])
def test_damaged_metrics_are_named(runs, tmp_path, capsys, line):
    path = tmp_path / "one" / "metrics.jsonl"
    path.write_bytes(line.encode("latin-1") + b"\n" + path.read_bytes())
    assert main(["report", "one"]) == 2
    err = capsys.readouterr().err
    assert "metrics.jsonl is damaged in line 1" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("end", ['{"step": 40, "lo', '{"step": 41, "loss": 1e308}\n{"step": 42, "loss": NaN}\n'])
def test_metrics_may_end_in_half_a_line_or_in_numbers_that_went_astray(runs, tmp_path, end):
    with (tmp_path / "one" / "metrics.jsonl").open("a") as file:
        file.write(end)
    assert main(["report", "one"]) == 0


@pytest.mark.parametrize("text", ["", "null", "3", '{"value": 1}', '{"value": "<b>", "ci95": 1, "protocol": {}}'])
def test_a_damaged_result_is_named(runs, tmp_path, capsys, text):
    (tmp_path / "one" / "result.json").write_text(text)
    assert main(["report", "one"]) == 2
    err = capsys.readouterr().err
    assert "result.json is damaged" in err
    assert len(err.splitlines()) == 1


def test_figures_take_the_page_s_colours_and_say_what_they_show():
    lines = [{"step": s, "loss": 1 / s, "val_accuracy": 0.5, "val_ci95": 0.1, "grad_norm": 0.1} for s in range(1, 2001)]
    found = {panel.title: panel for panel in panels([("a", lines), ("b", lines[:5])])}
    loss = found["Query loss on training tasks"]
    assert len(loss.curves[0].steps) <= 600
    drawn = svg(loss)
    assert drawn.startswith("<svg")
    assert "currentColor" in drawn
    assert "#000000" not in drawn
    ids = re.findall(r'id="([^"]+)"', drawn)
    assert all(one.startswith("fquerylossontrainingtask") for one in ids)
    assert "b: from 1 nats at meta-step 1 to 0.2 nats at 5; minimum 0.2 nats, maximum 1 nats" in described(loss)
    assert "<svg" in svg(Panel("t", "", [Curve("one point", [1.0], [0.0])], log=True))


def test_a_run_looks_the_same_in_every_figure_and_like_no_other():
    lines = [{"step": step, "loss": 1.0 + step, "grad_norm": step} for step in range(4)]
    runs = [(f"run {number}", lines) for number in range(12)]
    runs[0] = ("no inner problem", [{**line, "grad_norm": 0.0} for line in lines])
    loss, norm = panels(runs)
    assert [curve.run for curve in loss.curves] == list(range(12))
    assert [curve.run for curve in norm.curves] == list(range(1, 12))
    assert len({legend(number) for number in range(25)}) == 25
    assert "run 3" not in svg(loss), "names stand on the page: long ones and other scripts are no matter for a figure"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def test_ticks_are_whole_steps_and_nothing_to_solve_is_no_curve():
    lines = [{"step": step, "grad_norm": 0.2 + step / 100, "residual": 0.0} for step in range(4)]
    none = [{**line, "grad_norm": 0.0} for line in lines]
    found = panels([("imaml", lines), ("protonet", none)])
    assert [panel.title.split(":")[0] for panel in found] == ["Inner gradient norm"]
    assert [curve.label for curve in found[0].curves] == ["imaml"]
    texts = re.findall(r"<text[^>]*>([^<]*)</text>", svg(found[0]))
    assert {"0", "1", "2", "3"} <= set(texts), texts
    assert not any("." in text for text in texts[: texts.index("meta-step")])
    assert "×" not in "".join(texts), "0.2 to 0.23 needs no powers of ten"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_has_nothing_to_say(runs, tmp_path):
    assert main(["report", *runs, "--out", "r.html"]) == 0
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
               "--disable-background-networking", "--disable-component-update", f"--user-data-dir={tmp_path / 'u'}",
               "--enable-logging=stderr", "--v=0", "--dump-dom", (tmp_path / "r.html").as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    assert done.stdout.count("<svg") == (tmp_path / "r.html").read_text(encoding="utf-8").count("<svg")
