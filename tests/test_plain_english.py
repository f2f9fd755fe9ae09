"""The prose of README and docs is easy to read: reading ease by Flesch's formula, and the length of sentences."""

import itertools
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
# Not docs/results.md: it includes RESULTS.md, which is mostly tables.
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "examples/README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if path.stem != "results"),
]
RIDDLES = re.compile(
    r"\b(is|are|was) (said|told|had) (of|at|with|in)\b|\bis had\b|\bbears\b|\bdear\b|\bparts the\b|what was asked", re.I
)


def prose(text):
    """Return a page's paragraphs and list items as plain text; code is one word, headings and tables are left out."""
    text = re.sub(r"^\$\$.*?\$\$$", "", text, flags=re.MULTILINE | re.DOTALL)
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    found = []
    for before, token in itertools.pairwise(tokens):
        if token.type != "inline" or before.type != "paragraph_open":
            continue
        part = "".join(
            "Code" if child.type == "code_inline" else " " if child.type == "softbreak" else child.content
            for child in token.children
            if child.type in ("text", "code_inline", "softbreak")
        )
        found.append(re.sub(r"\$[^$]*\$", "symbol", part).strip())
    return [part for part in found if part]


def sentences(paragraphs):
    ends = re.compile(r"(?<=[.!?:;])(?<!e\.g\.)(?<!i\.e\.)[\"”)]?\s+(?=[A-Z\"“(`*\d-]|$)")
    parts = (part for paragraph in paragraphs for part in ends.split(paragraph))
    return [words for part in parts if (words := re.findall(r"[A-Za-z][A-Za-z'’-]*", part))]


def syllables(word):
    word = re.sub(r"[^a-z]", "", word.lower())
    groups = len(re.findall(r"[aeiouy]+", word))
    silent = word.endswith("e") and not word.endswith(("le", "ee"))
    silent = silent or (word.endswith("ed") and word[-3:-2] not in "td")
    return max(1, groups - bool(silent))


def reading_ease(paragraphs):
    parts = sentences(paragraphs)
    words = [word for part in parts for word in part]
    return 206.835 - 1.015 * len(words) / len(parts) - 84.6 * sum(map(syllables, words)) / len(words)


def test_the_formula_tells_plain_from_heavy():
    plain = ["The cat sat on the mat. You can see it."]
    heavy = ["Notwithstanding considerable computational complexity, differentiability characterises optimisation."]
    assert reading_ease(plain) > 90
    assert reading_ease(heavy) < 0
    assert prose("# Title\n\nOne `x` and $y$.\n\n| a | b |\n|---|---|\n| c | d |\n") == ["One Code and symbol."]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_prose_is_easy_to_read(path):
    paragraphs = prose(path.read_text(encoding="utf-8"))
    if sum(map(len, sentences(paragraphs))) < 20:
        return  # a page of reference or a table
    assert reading_ease(paragraphs) >= 55
    long = [" ".join(words) for words in sentences(paragraphs) if len(words) > (25 if path.name == "README.md" else 30)]
    assert not long
    assert not [part for part in paragraphs if RIDDLES.search(part)]
