"""The command: one line and exit code 2 for what a person can put right."""

import csv
import itertools
import json
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from test_pictures import fill
from toyruns import experiment, rewritten, toy

from metagrad import data
from metagrad.cli.check import describe
from metagrad.cli.main import main
from metagrad.data import Dataset, ImageClasses
from metagrad.experiment.run import Run
from metagrad.fewshot import Batch, Conv4, Tasks
from metagrad.recipes import heads, memory_compute


def complaint(capsys, *words):
    assert main(words) == 2
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == 1, said.err
    return said.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train", "choose a data set"),
        ("train omniglo", "no data set is called 'omniglo' (did you mean omniglot?)"),
        ("train glyphs --waays 3", "--waays"),
        ("train glyphs --ways five", "--ways must be a whole number, got 'five'"),
        ("train glyphs --lam -1", "--lam must be a number, positive and finite"),
        ("train glyphs --inner-steps 0", "--inner-steps must be a whole number of at least 1"),
        ("train glyphs --method maml --lam 1", "--lam is for imaml"),
        ("train --resume nowhere", "nowhere is not a metagrad run"),
        ("train glyphs --resume nowhere", "leave out glyphs"),
        ("train --resume nowhere --ways 3", "leave out --ways"),
        ("train --resume nowhere --outer-lr 0.01", "leave out --outer-lr"),
        ("train folder", "--data-dir PICTURES"),
        ("train glyphs --split s.json", "--split is for folder"),
        ("train mini-imagenet", "may not be redistributed"),
        ("data info foo", "no data set is called 'foo'"),
        ("data verify", "needs a folder"),
        ("data verify nowhere", "nowhere does not exist"),
        ("reproduce figure", "the commands are meta-gradient-error, memory-compute"),
        ("reproduce meta-gradient-error --run r --kappa 5", "--kappa has no effect with --run"),
        ("reproduce memory-compute --steps 1 2", "three different numbers"),
        ("train omniglot --data-dir nowhere", "nowhere"),
        ("train glyphs --device warp", "no device 'warp'"),
        ("evaluate nowhere", "nowhere is not a metagrad run"),
        ("evaluate nowhere --tasks 1", "--tasks must be at least 2"),
        ("train glyphs --seed 99999999999999999999999", "--seed must be at most"),
        ("train glyphs --device meta", "cpu and cuda"),
        ("train glyphs --tasks 10000000000000000000000", "--tasks-per-step must be at most 1,000,000,000"),
        ("train glyphs --adapts zzz", "zzz"),
        ("train glyphs --outer-lr 1e300", "--outer-lr must be positive and finite"),
        ("evaluate", "metagrad evaluate needs RUN; see metagrad evaluate --help"),
        ("adapt", "metagrad adapt needs RUN, SUPPORT, --out MODEL (metagrad adapt RUN SUPPORT --out MODEL); see"),
        ("learn", "metagrad has no command 'learn': the commands are train, evaluate"),
        ("evaluat r", "metagrad has no command 'evaluat' (did you mean evaluate?)"),
        ("evaluate r --split tset", "--split is one of test, val, got 'tset' (did you mean test?)"),
        ("evaluate r --task 3", "there is no option --task (did you mean --tasks?)"),
    ],
)
def test_complaints_are_one_line(capsys, monkeypatch, tmp_path, words, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METAGRAD_DATA", raising=False)
    assert says in complaint(capsys, *words.split())
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize(
    "words",
    [
        "--help", "train --help", "evaluate --help", "data --help", "reproduce --help",
        "reproduce meta-gradient-error --help", "reproduce memory-compute --help",
        "reproduce memory-reduced --help", "reproduce convergence --help",
        "adapt --help", "predict --help", "export --help", "report --help", "check --help",
    ],
)  # fmt: skip
def test_help_explains_every_option(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "(default: None)" not in text
    for line, after in itertools.pairwise(text.splitlines()):
        word = re.match(r" {11,}([^\s-]+-?)", after)  # up to a hyphen, where a line may end
        if word and re.match(r" {11,}\S", line):
            assert len(line) + 1 + len(word[1]) > 78, f"there was room for another word:\n{line}\n{after}"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("metagrad 0.")


SMALL = [
    "--ways",
    "3",
    "--queries",
    "2",
    "--tasks",
    "2",
    "--filters",
    "2",
    "--inner-steps",
    "2",
    "--val-tasks",
    "4",
    "--test-tasks",
    "8",
    "--meta-steps",
    "12",
    "--no-calibrate",
]


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Serve a toy data set under the name of a real one, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "load", lambda name, **_: toy())
    return tmp_path


def test_train_evaluate_from_start_to_end(small, capsys):
    assert main(["train", "omniglot", *SMALL]) == 0
    (folder,) = (small / "runs").iterdir()
    assert folder.name.startswith("omniglot-imaml-3way-1shot-")
    said = capsys.readouterr().out
    assert "test accuracy" in said
    assert str(folder.name) in said.replace("\n", "")
    assert main(["evaluate", str(folder), "--tasks", "10", "--no-transductive"]) == 0
    assert "not transductive" in capsys.readouterr().out
    line = json.loads((folder / "evaluations.jsonl").read_text())
    assert line["command"][:2] == ["metagrad", "evaluate"]
    assert line["ci95"] > 0


@pytest.mark.parametrize("method", ["imaml", "fomaml"])
def test_check_says_how_good_the_gradient_is_and_why(small, capsys, method):
    # Weakly held, or after few meta-steps, ReLU leaves no solution to compare with.
    solvable = ["--lam", "2", "--meta-steps", "30"] if method == "imaml" else []
    assert main(["train", "omniglot", *SMALL, "--method", method, *solvable, "--run", "r"]) == 0
    capsys.readouterr()
    assert main(["check", "r", "--tasks", "2"]) == 0
    said = capsys.readouterr().out
    assert "cosine" in said
    assert ("linear solve " in said) == (method == "imaml")
    assert said.splitlines()[-1].split(":")[0] in ("Good", "Usual", "Worry", "Undecided")
    line = json.loads((small / "r" / "checks.jsonl").read_text())
    assert line["command"][:2] == ["metagrad", "check"]
    assert line["error"] > 0
    if method == "imaml":
        assert line["inner_lr"] == 0.4
        assert "oscillate" not in describe({**line, "stable_inner_lr": 0.5})[-1]
        assert "about 0.3" in describe({**line, "stable_inner_lr": 0.3})[-1]
    (small / "r" / "last.safetensors").unlink()  # as weights are handed on
    assert main(["check", "r", "--tasks", "1"]) == 0
    line = json.loads((small / "r" / "checks.jsonl").read_text().splitlines()[-1])
    assert line["step"] == Run.open("r").load("best").facts["best_step"]
    capsys.readouterr()
    for bad, word in ((["check", "nowhere"], "nowhere"), (["check", "r", "--tasks", "0"], "--tasks")):
        assert main(bad) == 2
        assert word in capsys.readouterr().err


def test_ctrl_c_saves_says_how_to_go_on_and_going_on_works(small, capsys, monkeypatch):
    from metagrad.cli import progress

    sent = []

    def interrupt(self, event):
        if not sent:  # a second one stops at once
            sent.append(event)
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(progress.TrainProgress, "__call__", interrupt)
        assert main(["train", "omniglot", *SMALL, "--run", "run"]) == 130
    assert "metagrad train --resume run" in capsys.readouterr().out
    assert 0 < Run.open(small / "run").load("last").facts["step"] < 12
    assert main(["train", "--resume", "run", "--meta-steps", "11"]) == 2
    assert "can only be raised" in capsys.readouterr().err
    assert main(["train", "--resume", "run", "--meta-steps", "16", "--no-calibrate"]) == 0
    assert json.loads((small / "run" / "result.json").read_text())["meta_steps"] == 16


def test_resuming_on_other_data_is_refused(small, capsys, monkeypatch):
    assert main(["train", "omniglot", *SMALL, "--run", "run"]) == 0
    monkeypatch.setattr(data, "load", lambda name, **_: toy(seed=1))
    capsys.readouterr()
    assert "data differ" in complaint(capsys, "train", "--resume", "run")


def test_an_existing_run_is_not_overwritten(small, capsys):
    assert main(["train", "omniglot", *SMALL, "--run", "run"]) == 0
    before = {path: path.read_bytes() for path in (small / "run").iterdir()}
    capsys.readouterr()
    assert "--resume run" in complaint(capsys, "train", "omniglot", *SMALL, "--run", "run")
    assert "30 ways" in complaint(capsys, "train", "omniglot", *SMALL, "--ways", "30", "--run", "other")
    assert not (small / "other").exists()
    assert {path: path.read_bytes() for path in (small / "run").iterdir()} == before


def test_too_few_classes_and_what_else_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAGRAD_CACHE", str(tmp_path / "cache"))
    fill(tmp_path / "zoo", classes=3, each=4)
    for number in range(5):
        (tmp_path / "zoo" / "class 0" / f"broken {number}.jpg").write_text("no picture")
    assert main(["data", "verify", "zoo", "--image-size", "16"]) == 2
    said = capsys.readouterr()
    assert "has 3 classes" in said.err
    assert "skipped 5 files" in said.out
    assert "broken 1.jpg: it is not a picture" in said.out
    assert "and 2 more" in said.out
    assert "BytesIO" not in said.out


def test_own_pictures_from_start_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METAGRAD_CACHE", str(tmp_path / "cache"))
    fill(tmp_path / "zoo", classes=10, each=4)
    (tmp_path / "zoo" / "class 0" / "broken.jpg").write_text("")
    assert main(["data", "verify", "zoo", "--image-size", "16"]) == 1
    assert "skipped 1 file" in capsys.readouterr().out
    words = ["train", "folder", "--data-dir", "zoo", "--image-size", "16", "--ways", "2", *SMALL[2:], "--run", "r"]
    assert main([*words, "--strict"]) == 2
    assert "broken.jpg cannot be read" in capsys.readouterr().err
    assert main(words) == 0
    said = capsys.readouterr()
    assert " zoo test" in said.out, "called by its own name"
    assert "skipped 1 file" in said.err
    split = json.loads((tmp_path / "r" / "config.json").read_text())["data"]["split"]
    assert [len(split[which]) for which in ("train", "val", "test")] == [6, 2, 2]
    assert main(["evaluate", "r", "--tasks", "4"]) == 0, "where the pictures are is remembered"
    assert main(["check", "r", "--tasks", "1"]) == 0
    (tmp_path / "zoo").rename(tmp_path / "moved")
    assert main(["evaluate", "r", "--tasks", "4"]) == 2
    assert main(["evaluate", "r", "--tasks", "4", "--data-dir", "moved"]) == 0
    (tmp_path / "moved" / "class 1" / "0.png").unlink()
    assert main(["train", "--resume", "r", "--data-dir", "moved"]) == 2
    assert "differ from those" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["memory-reduced", "anil", "protonet"])
def test_check_of_other_methods(small, capsys, method):
    less = SMALL[:8] + SMALL[10:]  # without --inner-steps
    options = less if method == "protonet" else SMALL
    assert main(["train", "omniglot", *options, "--method", method, "--run", "r"]) == 0
    capsys.readouterr()
    code = main(["check", "r", "--tasks", "2"])
    said = capsys.readouterr()
    assert code == (2 if method == "protonet" else 0)
    assert {"memory-reduced": "the exact solution", "anil": "same steps unrolled", "protonet": ""}[method] in said.out
    assert ("nothing to check" in said.err) == (method == "protonet")


def test_a_run_is_resumed_on_another_device_if_asked(small, capsys):
    assert main(["train", "omniglot", *SMALL, "--run", "r"]) == 0
    rewritten(small / "r" / "config.json", lambda record: record["experiment"]["compute"].update(device="cuda:7"))
    assert main(["train", "--resume", "r", "--meta-steps", "16"]) == 2
    assert main(["train", "--resume", "r", "--meta-steps", "16", "--device", "cpu"]) == 0


def test_memory_is_measured_and_drawn(tmp_path, capsys, monkeypatch):
    def tiny(protocol):
        def batch(each):
            return Batch(torch.rand(1, 3 * each, 1, 16, 16), torch.arange(3).repeat(1, each))

        return {"tiny": (Conv4(3, image_size=16, filters=8), Tasks(batch(5), batch(protocol.queries)))}

    monkeypatch.setattr(memory_compute, "networks", tiny)
    words = ["reproduce", "memory-compute", "--steps", "1", "2", "9", "--queries", "1", "--out", str(tmp_path)]
    assert main(words) == 0
    assert "memory-reduced" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "memory-compute.csv").open()))
    megabytes = {(row["method"], row["inner_steps"]): float(row["megabytes"]) for row in rows}
    assert len(megabytes) == 3 * len(memory_compute.methods())

    def growth(method):
        return megabytes[method, "9"] / megabytes[method, "1"]

    for flat in ("iMAML, descent", "iMAML, Hessian-free", "memory-reduced"):
        assert growth(flat) <= 1.05, flat
    assert growth("MAML") > 4
    assert 1.5 < growth("MAML, checkpoints") < 0.6 * growth("MAML")
    assert growth("ANIL") < 1.3 < growth("ANIL, recomputed")
    assert (tmp_path / "memory-compute.png").stat().st_size > 10_000


def test_head_methods_are_compared_and_go_on(tmp_path, capsys, monkeypatch):
    g = torch.Generator().manual_seed(0)

    def classes(name):
        images = torch.randint(0, 256, (40, 3, 16, 16), generator=g, dtype=torch.uint8)
        return ImageClasses(images, torch.full((5,), 8), tuple(f"{name}{i}" for i in range(5)))

    photographs = Dataset("cifar-fs", classes("a"), classes("b"), classes("c"), False, "toy", "digest0")
    monkeypatch.setattr(data, "load", lambda *args, **options: photographs)
    monkeypatch.setattr(heads, "_VALIDATE", 5)
    small = ["--shots", "2", "--queries", "1", "--tasks", "1", "--filters", "2", "--test-tasks", "4"]
    words = ["reproduce", "memory-reduced", *small, "--out", str(tmp_path), "--minutes", "0.0001"]
    assert main([*words, "--methods", "anil"]) == 0
    assert "maml" not in capsys.readouterr().out
    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.count("meta-step 5: validation") == 3, "what was trained already is not trained again"
    rows = {row["method"]: row for row in csv.DictReader((tmp_path / "cifar-fs.csv").open())}
    assert rows.keys() == {"maml", "anil", "itd-bio", "memory-reduced"}
    assert all(float(row["cpu_seconds"]) > 0.006 for row in rows.values())
    assert (tmp_path / "cifar-fs.png").stat().st_size > 10_000
    assert main([*words, "--filters", "3"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main([*words, "--methods"]) == 2


def test_tensorboard(small):
    pytest.importorskip("tensorboard")
    assert main(["train", "omniglot", *SMALL, "--run", "run", "--tensorboard"]) == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    written = EventAccumulator(str(small / "run" / "tensorboard"), size_guidance={"images": 0}).Reload()
    run = Run.open(small / "run")
    validated = [line["step"] for line in run.metrics() if "val_accuracy" in line]
    assert [one.step for one in written.Images("a validation task")] == validated
    assert written.Images("a validation task")[0].width > 300
    wanted = set().union(*run.metrics()) - {"step"}
    assert set(written.Tags()["scalars"]) == wanted
    assert (small / "run" / "report.html").stat().st_size > 20_000


def test_training_ends_by_saying_where_the_report_is(small, capsys):
    assert main(["train", "omniglot", *SMALL, "--run", "run"]) == 0
    assert "open run/report.html in a browser" in capsys.readouterr().out
    assert "<img" in (small / "run" / "report.html").read_text(encoding="utf-8")


def test_a_closed_pipe_does_not_end_the_training(small):
    script = (
        f"import sys; sys.path.insert(0, {os.path.dirname(__file__)!r}); from metagrad import data; "
        "from toyruns import rewritten, toy; data.load = lambda name, **_: toy(); "
        f"from metagrad.cli.main import main; sys.exit(main(['train', 'omniglot', *{SMALL!r}, '--run', 'run']))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as process:
        process.stdout.close()
    assert process.returncode == 0
    assert (small / "run" / "result.json").exists()


def test_two_runs_started_at_once_get_two_folders(small, monkeypatch):
    from metagrad.cli import train

    asked = experiment()
    folders = {train._default_folder(asked) for _ in range(5)}
    assert len(folders) == 5


def test_out_of_memory_is_one_line(small, capsys):
    assert "not enough memory" in complaint(capsys, "train", "omniglot", *SMALL, "--filters", "1000000000")
