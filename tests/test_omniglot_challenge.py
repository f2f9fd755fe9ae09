"""Omniglot by alphabets, and one-shot classification within one of them."""

from dataclasses import replace

import pytest
import torch

from metagrad import data
from metagrad.cli.main import main
from metagrad.data import Dataset, ImageClasses
from metagrad.data.omniglot_alphabets import VALIDATION, alphabet, by_alphabets
from metagrad.data.reading import Reading
from metagrad.errors import MetagradError
from metagrad.recipes.omniglot_challenge import drawn


def part(names, seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (20 * len(names), 1, 28, 28), dtype=torch.uint8, generator=generator)
    for number in range(len(images)):
        images[number, 0, 0, 0], images[number, 0, 0, 1] = number // 20, number % 20  # the class, and who drew it
    return ImageClasses(images, torch.full((len(names),), 20), tuple(names))


def omniglot():
    """Give a data set of Omniglot's form, whose split mixes alphabets, as Vinyals' does."""
    learned = [
        f"images_background/{name}/character{n:02}" for name in ("Greek", "Latin", *VALIDATION) for n in range(8)
    ]
    asked = [f"images_evaluation/{name}/character{n:02}" for name in ("Tibetan", "Keble") for n in range(22)]
    mixed = [*learned[::2], *asked[::2]], [*learned[1::2]], [*asked[1::2]]
    return Dataset("omniglot", *(part(names, seed) for seed, names in enumerate(mixed)), True, "toy", "digest")


def test_no_alphabet_is_in_two_splits():
    whole = omniglot()
    found = by_alphabets(whole)
    parts = [
        {alphabet(name).rpartition("/")[2] for name in getattr(found, which).names}
        for which in ("train", "val", "test")
    ]
    assert parts == [{"Greek", "Latin"}, set(VALIDATION), {"Tibetan", "Keble"}]
    assert sum(len(getattr(found, which).names) for which in ("train", "val", "test")) == 56 + 44
    before = {
        name: getattr(whole, which).subset([name])
        for which in ("train", "val", "test")
        for name in getattr(whole, which).names
    }
    for name in found.test.names[::7]:
        own, was = found.test.subset([name]), before[name]
        assert torch.equal(own.images[own.first[0] : own.first[0] + 20], was.images[was.first[0] : was.first[0] + 20])
    assert found.digest != whole.digest


def test_drawings_have_the_size_at_which_pictures_are_read(monkeypatch):
    asked = {}
    monkeypatch.setattr("metagrad.data.omniglot.load", lambda **options: asked.update(options) or omniglot())
    assert data.load("omniglot-alphabets").name == "omniglot-alphabets"
    assert asked["fill"] == Reading.of("omniglot-alphabets", None).fill == 0.85


def test_a_run_has_twenty_characters_of_one_alphabet_by_two_people():
    classes = by_alphabets(omniglot()).test
    tasks = drawn(classes, runs=3, generator=torch.Generator().manual_seed(0))
    assert [name.rpartition("/")[2] for name in tasks] == ["Keble", "Tibetan"]
    for some in tasks.values():
        assert some.support.x.shape == some.query.x.shape == (3, 20, 1, 28, 28)
        support, query = ((batch.x[..., 0, 0, :2] * 255).round().long() for batch in (some.support, some.query))
        assert torch.equal(support[..., 0], query[..., 0]), "the same character"
        assert all(len(run.unique()) == 20 for run in support[..., 0])
        people = support[..., 1], query[..., 1]
        assert all(len(run.unique()) == 1 for who in people for run in who)
        assert (people[0] != people[1]).all()
    with pytest.raises(MetagradError, match="has 19 characters, and a run asks for 20"):
        drawn(classes.subset(classes.names[:19]), runs=1, generator=torch.Generator())


def test_the_command_trains_goes_on_and_tests(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda *args, **options: by_alphabets(omniglot()))
    words = [
        "--meta-steps",
        "4",
        "--train-ways",
        "6",
        "--filters",
        "4",
        "--runs",
        "2",
        "--val-tasks",
        "2",
        "--views",
        "2",
        "--out",
        str(tmp_path / "out"),
    ]
    for _ in range(2):
        assert main(["reproduce", "omniglot-challenge", *words]) == 0
    said = capsys.readouterr().out
    assert "published: people" in said
    assert "Tibetan" in (tmp_path / "out" / "omniglot-challenge.csv").read_text()
    assert main(["reproduce", "omniglot-challenge", *words, "--seed", "5"]) == 2
    assert "holds a run of other settings" in capsys.readouterr().err
    measured = ["--run", str(tmp_path / "out" / "run"), "--runs", "2", "--views", "2", "--out", str(tmp_path / "again")]
    assert main(["reproduce", "omniglot-challenge", *measured]) == 0
    header, line, *_ = (tmp_path / "again" / "omniglot-challenge.csv").read_text().splitlines()
    assert header == "alphabet,runs,error,error_transductive,run,views,seed", "what the run was trained with is in it"
    assert line.split(",")[4].endswith("out/run")
    assert main(["reproduce", "omniglot-challenge", *measured, "--filters", "5"]) == 2
    assert "--filters is for training, but --run tests a trained run" in capsys.readouterr().err
    monkeypatch.setattr(data, "load", lambda *args, **options: replace(omniglot(), name="omniglot"))
    short = [
        "--ways",
        "3",
        "--tasks",
        "1",
        "--filters",
        "2",
        "--meta-steps",
        "1",
        "--val-tasks",
        "2",
        "--test-tasks",
        "0",
    ]
    assert main(["train", "omniglot", *short, "--no-calibrate", "--run", str(tmp_path / "other")]) == 0
    assert main(["reproduce", "omniglot-challenge", "--run", str(tmp_path / "other"), "--out", str(tmp_path)]) == 2
    assert "train on omniglot-alphabets" in capsys.readouterr().err
