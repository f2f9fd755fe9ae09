"""Imports run one way: no circle among modules, and no room asks one above it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "src"
# From the ground up; a room may ask those before it. What is not named here is ground.
ROOMS = ("implicit", "data", "fewshot", "experiment", "classifier", "recipes", "report", "cli")


def modules():
    found = {}
    for path in (ROOT / "metagrad").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def imports(path, known):
    """Return the modules of metagrad that a module imports at its top, not counting those for types alone."""

    def visit(nodes):
        for node in nodes:
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
                yield from visit(node.orelse)
            elif isinstance(node, ast.ImportFrom) and node.module:
                for name in node.names:
                    full = f"{node.module}.{name.name}"
                    yield full if full in known else node.module
            elif isinstance(node, ast.Import):
                yield from (name.name for name in node.names)
            elif isinstance(node, ast.Try | ast.With | ast.ClassDef):
                yield from visit(node.body)

    return {name for name in visit(ast.parse(path.read_text(encoding="utf-8")).body) if name in known}


@pytest.fixture(scope="module")
def graph():
    known = modules()
    return {name: imports(path, known) - {name} for name, path in known.items()}


def test_no_module_asks_one_that_asks_it(graph):
    done, above = set(), []

    def visit(name):
        assert name not in above, " -> ".join([*above, name])
        if name not in done:
            above.append(name)
            for other in sorted(graph[name]):
                visit(other)
            above.pop()
            done.add(name)

    for name in sorted(graph):
        visit(name)


def test_no_room_asks_one_above_it(graph):
    def floor(name):
        room = name.split(".")[1] if "." in name else ""
        return ROOMS.index(room) + 1 if room in ROOMS else 0

    wrong = {(name, other) for name, asked in graph.items() for other in asked if floor(other) > floor(name)}
    assert not {(name, other) for name, other in wrong if name.count(".") > 0 and name != "metagrad.__main__"}
