"""What is written is whole or absent, stays where it belongs, and touches nothing of anybody else's."""

from __future__ import annotations

import errno
import os
import stat

import pytest

from metagrad.cli.main import main
from metagrad.errors import MetagradError
from metagrad.files import append_line, is_leftover, remove_leftovers, truncate, write_atomically, write_text

ALIEN = (
    ".git-credentials",
    ".pre-commit-config.yaml",
    ".a-b",
    ".metagrad-notes.tmp",
    ".metagrad-0123.tmp",
    "thesis.tex",
)
OURS = ".metagrad-0123456789abcdef.tmp"


def refused(error: OSError) -> MetagradError:
    return MetagradError(str(error))


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def in_use(tmp_path):
    for name in ALIEN:
        (tmp_path / name).write_text(name)
    return tmp_path


def test_a_folder_in_use_is_refused_and_left_as_it_was(in_use, capsys):
    before = contents(in_use)
    assert main(["train", "glyphs", "--run", str(in_use)]) == 2
    assert "not empty" in capsys.readouterr().err
    assert contents(in_use) == before  # no .lock either


def test_a_folder_with_one_hidden_file_is_in_use(tmp_path):
    (tmp_path / ".git-credentials").write_text("token")
    assert main(["train", "glyphs", "--run", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == [".git-credentials"]


def test_only_our_own_leftovers_are_removed(in_use):
    (in_use / OURS).touch()
    (in_use / ".metagrad-00000000000000ff.tmp").symlink_to(in_use / "thesis.tex")
    remove_leftovers(in_use)
    left = {path.name for path in in_use.iterdir()}
    assert left == {*ALIEN, ".metagrad-00000000000000ff.tmp"}


def test_a_temporary_file_has_a_name_of_ours_and_goes(tmp_path):
    names = []
    write_atomically(tmp_path / "a", lambda part: names.append(part.name), refused=refused)
    assert is_leftover(names[0])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")

    def full(part):
        part.write_text("half")
        raise OSError(errno.ENOSPC, "full")

    with pytest.raises(MetagradError, match="full"):
        write_atomically(path, full, refused=refused)
    assert contents(tmp_path) == {path.relative_to(tmp_path): b"old"}


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, mode):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(mode)
    seen = []

    def write(part):
        seen.append(stat.S_IMODE(part.stat().st_mode) & ~mode)
        part.write_text("new")

    write_atomically(path, write, refused=refused)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert seen == [0]  # never more open than it will be, not even while it is written


def test_a_write_protected_file_is_not_replaced(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    path.chmod(0o444)
    with pytest.raises(MetagradError, match="write-protected"):
        write_text(path, "new", refused=refused)
    assert path.read_text() == "old"


def test_a_link_is_replaced_or_followed_as_asked(tmp_path):
    victim, link = tmp_path / "victim", tmp_path / "link"
    victim.write_text("precious")
    link.symlink_to(victim)
    write_text(link, "followed", refused=refused, follow=True)
    assert link.is_symlink()
    assert victim.read_text() == "followed"
    write_text(link, "own", refused=refused)
    assert not link.is_symlink()
    assert (link.read_text(), victim.read_text()) == ("own", "followed")


def test_appending_and_truncating_refuse_links_and_leave_other_names_alone(tmp_path):
    victim, link, other = tmp_path / "victim", tmp_path / "link", tmp_path / "other"
    victim.write_text("precious\n")
    link.symlink_to(victim)
    for change in (lambda: append_line(link, "x"), lambda: truncate(link, 0)):
        with pytest.raises(OSError, match="symbolic"):
            change()
    os.link(victim, other)
    append_line(other, "more")
    os.link(victim, tmp_path / "third")
    truncate(tmp_path / "third", 3)
    assert victim.read_text() == "precious\n"
    assert other.read_text() == "precious\nmore\n"
    assert (tmp_path / "third").read_text() == "pre"


def test_a_line_that_was_cut_off_does_not_swallow_the_next(tmp_path):
    path = tmp_path / "lines"
    append_line(path, "one")
    path.write_text('one\n{"cut": ')
    append_line(path, "two")
    assert path.read_text() == 'one\n{"cut": \ntwo\n'


def test_a_full_disk_leaves_no_half_of_a_line(tmp_path, monkeypatch):
    path = tmp_path / "lines"
    append_line(path, "one")
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:2]))
    with pytest.raises(OSError, match="space"):
        append_line(path, "two")
    assert path.read_text() == "one\n"
