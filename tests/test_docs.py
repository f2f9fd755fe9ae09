"""The site: its programs and commands run as they stand, its notebooks too, and it builds without a complaint.

Of a page's blocks ``python`` is run, in one namespace a page (the pages of methods share one), and ``bash`` in the same
folder; of ``sh``, and of README and RESULTS, which take long or need data, every metagrad command is parsed by the
command line itself.
"""

import doctest
import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import forked
import pytest
import torch

from metagrad.cli import main as cli
from metagrad.errors import MetagradError

ROOT = Path(__file__).parents[1]
PAGES = ["start", "idea", "how-sure", *(f"howto/{path.stem}" for path in sorted((ROOT / "docs/howto").glob("*.md")))]
METHODS = re.findall(r"^(?!index)[a-z0-9-]+$", (ROOT / "docs/methods/index.md").read_text(), re.MULTILINE)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page):
    return FENCE.findall((ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8"))


def run(page, names):
    """Run a page's blocks in the working directory."""
    for number, (kind, text) in enumerate(blocks(page)):
        if kind == "python":
            exec(compile(text, f"docs/{page}.md, block {number}", "exec"), names)
        elif kind == "bash":
            for line in text.replace("\\\n", " ").splitlines():
                run_command(line)


def run_command(line):
    """Run one line of a shell: a metagrad command whose output may go to a file."""
    line, _, file = line.partition(" > ")
    name, *words = shlex.split(line)
    assert name == "metagrad"
    said, errors = Path(file or "said"), Path("errors")
    code, _ = forked.command(words, said, errors).ended()
    assert code == 0, f"{line}\n{said.read_text()[-2000:]}\n{errors.read_text()[-2000:]}"


@pytest.mark.filterwarnings("ignore:replaced .* \\(.*Norm")
@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(page, {})
    assert "nan" not in capsys.readouterr().out


def test_the_pages_of_methods_run(capsys):
    assert sorted(METHODS) == sorted(path.stem for path in (ROOT / "docs/methods").glob("*.md") if path.stem != "index")
    names = {}
    for page in ["index", *METHODS]:
        assert any(kind == "python" for kind, _ in blocks(f"methods/{page}"))
        run(f"methods/{page}", names)
    assert "nan" not in capsys.readouterr().out


def commands(path):
    """Return every metagrad command of a page, with its continuation lines joined."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(
        r"^(?: {4}|\t)?(?:python -m |.*(?:&& |torchrun .* -m ))?metagrad +([a-z].*)$", text, re.MULTILINE
    )
    return [line.split("`")[0].split("  #")[0].split(" # ")[0].split(" > ")[0].strip() for line in found]


DOCUMENTED = sorted({
    (path.relative_to(ROOT).as_posix(), line)
    for path in [ROOT / "README.md", ROOT / "RESULTS.md", *(ROOT / "docs").rglob("*.md")]
    for line in commands(path)
})  # fmt: skip


def test_commands_are_found():
    assert len(DOCUMENTED) > 50
    assert ("README.md", "train glyphs") in DOCUMENTED


@pytest.mark.parametrize(("page", "line"), DOCUMENTED, ids=lambda value: str(value)[:60])
def test_a_documented_command_is_one(page, line, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))  # a page's own module, rhythms, is one of the examples
    words = shlex.split(line)
    if words[-1] == "…" or "|" in words:
        words = words[: words.index("…" if words[-1] == "…" else "|")]
    try:
        command = cli.command_of(words)
    except SystemExit:  # of --help
        return
    except MetagradError as error:
        pytest.fail(f"{page}: metagrad {line}: {error}")
    if words[0] == "train" and command.dataset is not None:
        command.experiment()


@pytest.mark.parametrize("path", sorted((ROOT / "docs/notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_runs(path):
    """Its programs run in one namespace, without a kernel."""
    from matplotlib import pyplot, use

    before, cells = torch.get_default_dtype(), json.loads(path.read_text(encoding="utf-8"))["cells"]
    programs = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert len(programs) >= 4
    use("agg")
    names = {}
    try:
        for number, program in enumerate(programs):
            exec(compile(program, f"{path.name}, program {number}", "exec"), names)
    finally:
        pyplot.close("all")
        torch.set_default_dtype(before)  # one of them computes in float64


def test_the_site_builds(tmp_path):
    if sys.flags.optimize:
        pytest.skip("needs docstrings")
    # Without the pages of source code, a third of the time.
    without = ["-D", "nb_execution_mode=off", "-D", "extensions=myst_nb,sphinx.ext.autodoc,sphinx.ext.napoleon"]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", *without, "docs", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    built = (tmp_path / "site" / "methods" / "imaml.html").read_text(encoding="utf-8")
    assert "<math" in built
    assert "cdn" not in built


MODULES = [path for path in sorted((ROOT / "src").rglob("*.py")) if "\n    >>> " in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_examples_in_docstrings(path):
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried
    assert not failed
