"""The command: one line and exit code 2 for what a person can put right."""

import pytest

from metagrad.cli.main import main


def complaint(capsys, *words):
    assert main(words) == 2
    said = capsys.readouterr()
    assert len(said.err.strip().splitlines()) == 1, said.err
    return said.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("train", "name a data set"),
        ("train omniglo", "invalid choice 'omniglo'"),
        ("train glyphs --waays 3", "--waays"),
        ("train glyphs --ways five", "invalid literal for int"),
        ("train glyphs --lam -1", "--lam must be positive"),
        ("train glyphs --inner-steps 0", "--inner-steps must be at least 1"),
        ("train glyphs --method maml --lam 1", "--lam is for imaml"),
        ("train --resume nowhere", "nowhere is not a metagrad run"),
        ("train glyphs --resume nowhere", "leave out glyphs"),
        ("train --resume nowhere --ways 3", "leave out --ways"),
        ("train omniglot --data-dir nowhere", "nowhere"),
        ("train glyphs --device warp", "no device 'warp'"),
        ("evaluate nowhere", "nowhere is not a metagrad run"),
        ("evaluate nowhere --tasks 1", "--tasks must be at least 2"),
        ("evaluate", "RUN"),
        ("learn", "learn"),
    ],
)
def test_complaints_are_one_line(capsys, monkeypatch, tmp_path, words, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("METAGRAD_DATA", raising=False)
    assert says in complaint(capsys, *words.split())
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("words", ["--help", "train --help", "evaluate --help"])
def test_help_explains_every_option(capsys, words):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 0
    assert "(default: None)" not in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("metagrad 0.")
