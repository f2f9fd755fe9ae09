"""The report: one HTML file that asks for nothing from anywhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from metagrad.classifier.calibration import Calibration
from metagrad.report.episodes import TASKS, Confusion, Row
from metagrad.report.figures import described, legend, panels, svg

# Published accuracies, per cent with 95 % intervals: of the iMAML paper, table 2, and of the papers it cites there.
_OMNIGLOT = {
    (5, 1): {"MAML": "98.7 ± 0.4", "first-order MAML": "98.3 ± 0.5", "Reptile": "97.68 ± 0.04",
             "iMAML, descent": "99.16 ± 0.35", "iMAML, Hessian-free": "99.50 ± 0.26"},
    (5, 5): {"MAML": "99.9 ± 0.1", "first-order MAML": "99.2 ± 0.2", "Reptile": "99.48 ± 0.06",
             "iMAML, descent": "99.67 ± 0.12", "iMAML, Hessian-free": "99.74 ± 0.11"},
    (20, 1): {"MAML": "95.8 ± 0.3", "first-order MAML": "89.4 ± 0.5", "Reptile": "89.43 ± 0.14",
              "iMAML, descent": "94.46 ± 0.42", "iMAML, Hessian-free": "96.18 ± 0.36"},
    (20, 5): {"MAML": "98.9 ± 0.2", "first-order MAML": "97.9 ± 0.1", "Reptile": "97.12 ± 0.32",
              "iMAML, descent": "98.69 ± 0.1", "iMAML, Hessian-free": "99.14 ± 0.1"},
}  # fmt: skip
_MINI = {(5, 1): {"MAML": "48.70 ± 1.84", "first-order MAML": "48.07 ± 1.75", "Reptile": "49.97 ± 0.32",
                  "iMAML, descent": "48.96 ± 1.84", "iMAML, Hessian-free": "49.30 ± 1.88"}}  # fmt: skip
_PUBLISHED = {"omniglot": _OMNIGLOT, "mini-imagenet": _MINI}

_CSS = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
* { box-sizing: border-box; }
body { font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; } h1, h2, h3, figcaption { break-after: avoid; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figcaption { font-size: .9rem; } svg { max-width: 100%; height: auto; display: block; }
table { border-collapse: collapse; } th, td { padding: .25rem .6rem; text-align: left; vertical-align: middle; }
th { font-weight: 600; overflow-wrap: break-word; hyphens: auto; }
tr + tr > * { border-top: 1px solid var(--line); }
.wide { overflow-x: auto; } code, pre { font: .85rem/1.4 ui-monospace, monospace; }
pre { overflow-x: auto; padding: .6rem; border: 1px solid var(--line); border-radius: .3rem; white-space: pre-wrap; }
.differs { font-weight: 700; outline: 2px solid #c8553d; outline-offset: -2px; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; list-style: none; padding: 0; overflow-wrap: anywhere; }
.line { display: inline; vertical-align: middle; }
thead th { overflow-wrap: anywhere; min-width: 5rem; max-width: 16rem; vertical-align: bottom; }
.guesses { display: flex; flex-wrap: wrap; gap: .3rem; align-items: start; }
.guess { text-align: center; font-size: .7rem; line-height: 1.25; width: 4.4rem;
  overflow-wrap: anywhere; border: 2px solid #5f9e4a; border-radius: .3rem; padding: .15rem; }
@media (min-width: 48rem) { .said { min-width: 25rem; } }
.guess.wrong { border: 2px dashed #c8553d; } img { image-rendering: pixelated; width: 3.5rem; height: 3.5rem; }
.number { font-size: 2rem; font-weight: 700; } small, .quiet { font-size: .85rem; opacity: .8; }
a:focus-visible, summary:focus-visible, [tabindex]:focus-visible { outline: 3px solid #2f86a6; outline-offset: 2px; }
@page { margin: 14mm; }
@media print { html { font-size: 62.5%; } body { padding: 0; max-width: none; } details { display: none; }
  .wide { overflow: visible; } .figures { grid-template-columns: 1fr 1fr; } tr, figure, pre { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class Shown:
    """A run as the page shows it.

    Attributes
    ----------
    label:
        what it is called here.
    about:
        what was asked, flat: option and value.
    record, lines, result, calibration:
        ``config.json``, ``metrics.jsonl``, ``result.json`` (may be empty), ``calibration.json`` if any.
    grids, hardest:
        what :func:`metagrad.report.episodes.looked_at` found; empty where the data are not at hand.
    """

    label: str
    about: dict[str, Any]
    record: dict[str, Any]
    lines: list[dict[str, Any]]
    result: dict[str, Any]
    calibration: Calibration | None
    grids: list[list[Row]]
    hardest: list[Confusion]


def page(runs: Sequence[Shown]) -> str:
    """Return the whole page."""
    title = "metagrad: " + ", ".join(run.label for run in runs)
    parts = [_results(runs), _published(runs), _curves(runs)]
    parts += [part for run in runs for part in (_episodes(run, len(runs) > 1), _confusion(run, len(runs) > 1))]
    parts += [_options(runs), _commands(runs)]
    body = "\n".join(f"<section>{part}</section>" for part in parts if part)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<link rel="icon" href="data:,"><title>{escape(title)}</title><style>{_CSS}</style></head>\n'
        f"<body><main><h1>{escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], name: str) -> str:
    """Return a table; cells are HTML, a row's first one is its heading."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(cell if cell[:3] == "<td" else f"<td>{cell}</td>"
                                                       for cell in row[1:]) + "</tr>"
        for row in rows
    )  # fmt: skip
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(name)}"><table><thead><tr>{top}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def _results(runs: Sequence[Shown]) -> str:
    columns = []
    for run in runs:
        result, calibration = run.result, run.calibration
        protocol = result.get("protocol", {})
        value = (
            f'<span class="number">{result["value"]:.1%}</span> ± {result["ci95"]:.1%}' if result else "not finished"
        )
        asked = asked_of(protocol) if protocol else str(run.about.get("dataset", run.about["tasks"]))
        alone = f"{calibration.own.accuracy:.1%}" if calibration else "–"
        trust = f"{calibration.own.ece:.1%}" if calibration else "–"
        last: dict[str, Any] = next((line for line in reversed(run.lines) if "seconds" in line), {})
        spent = f"{_duration(last['seconds'])}, {last['step']} meta-steps" if last else "–"
        memory = f"{result['peak_memory_mb']:.0f} MB" if "peak_memory_mb" in result else "–"
        columns.append([_named(run.label), value, escape(asked), alone, trust, spent, memory])
    names = ["", "accuracy", "on", "validation, each image by itself", "probabilities off by", "training",
             "peak memory"]  # fmt: skip
    head, *rows = ([name, *cells] for name, *cells in zip(names, *columns, strict=True))
    return "<h2>What came of it</h2>" + _table(head, rows, "results")


def asked_of(protocol: dict[str, Any]) -> str:
    """Say how the tasks of a result were drawn."""
    size = (
        f"{protocol['ways']}-way {protocol['shots']}-shot, {protocol['queries']} queries a class, "
        if "ways" in protocol
        else ""
    )
    way = "transductive" if protocol["transductive"] else "not transductive"
    return f"{protocol['dataset']} {protocol['split']}, {size}{protocol['tasks']} tasks, {way}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _published(runs: Sequence[Shown]) -> str:
    found = []
    for dataset, ways, shots in dict.fromkeys(
        tuple(run.about.get(name) for name in ("dataset", "ways", "shots")) for run in runs
    ):
        numbers = _PUBLISHED.get(str(dataset), {}).get((ways or 0, shots or 0))
        if numbers:
            rows = [[escape(name), f"{value} %"] for name, value in numbers.items()]
            found.append(
                f"<h3>{escape(str(dataset))}, {ways}-way {shots}-shot</h3>"
                + _table(["method", "accuracy"], rows, f"published numbers on {dataset}")
            )
    note = '<p class="quiet">As the papers report them: 64 filters (mini-ImageNet 32), 20,000 and more meta-steps.</p>'
    return f"<h2>What papers report</h2>{note}{''.join(found)}" if found else ""


def _curves(runs: Sequence[Shown]) -> str:
    found = []
    for panel in panels([(run.label, run.lines) for run in runs]):
        says = escape(described(panel))
        found.append(
            f'<figure><figcaption><strong>{escape(panel.title)}</strong></figcaption><div role="img" '
            f'aria-label="{escape(panel.title)}. {says}">{svg(panel)}</div>'
            f"<details><summary>in words</summary><p>{says}</p></details></figure>"
        )
    names = "".join(f"<li>{legend(number)} {escape(run.label)}</li>" for number, run in enumerate(runs))
    lines = f'<ul class="legend">{names}</ul>' if len(runs) > 1 else ""
    return f'<h2>How it went</h2>{lines}<div class="figures">{"".join(found)}</div>' if found else ""


def _episodes(run: Shown, several: bool) -> str:
    if not run.grids:
        return ""
    tables = []
    for number, grid in enumerate(run.grids, start=1):
        rows = []
        for row in grid:
            support = "".join(f'<img src="{uri}" alt="an example of {escape(row.name)}"> ' for uri in row.support)
            guesses = "".join(
                f'<span class="guess{"" if g.right else " wrong"}"><img src="{g.picture}" '
                f'alt="a picture of {escape(row.name)}"><br>'
                f"{'✓' if g.right else f'✗ {escape(_short(g.said))}'} {g.probability:.0%}</span>"
                for g in row.query
            )
            said = f'<td class="said"><div class="guesses">{guesses}</div></td>'
            rows.append([escape(_short(row.name)), f'<div class="guesses">{support}</div>', said])
        table = _table(["class", "learned from", "said of others"], rows, f"task {number}")
        tables.append(f"<h3>Task {number}</h3>{table}")
    name = f" by {escape(run.label)}" if several else ""
    return (
        f"<h2>Tasks of validation classes{name}</h2><p>Each picture is judged by itself; a solid frame and ✓ is right, "
        f"a dashed one and ✗ is wrong.</p>{''.join(tables)}"
    )


def _named(label: str) -> str:
    """Return a run's name for a column; the middle of a long one is left out."""
    short = label if len(label) <= 40 else f"{label[:24]}…{label[-12:]}"
    return f'<span title="{escape(label)}">{escape(short)}</span>' if short != label else escape(label)


def _short(name: str) -> str:
    """Return a class's name with the last folder it lies in."""
    return "/".join(name.split("/")[-2:])


def _confusion(run: Shown, several: bool) -> str:
    if not run.hardest:
        return ""
    rows = [
        [
            f'<img src="{one.pictures[0]}" alt=""> {escape(_short(one.one))}',
            f'<img src="{one.pictures[1]}" alt=""> {escape(_short(one.other))}',
            f"{one.percent:.0f} % ({one.times} pictures)",
        ]
        for one in run.hardest
    ]
    name = f" by {escape(run.label)}" if several else ""
    note = f"<p>Among {TASKS} tasks of validation classes, each picture judged by itself.</p>"
    return f"<h2>Classes most often mistaken{name}</h2>{note}" + _table(
        ["a picture of", "was taken for", "when both were in a task"], rows, "classes most often mistaken"
    )


def _options(runs: Sequence[Shown]) -> str:
    facts = [{**run.about, **run.record["versions"]} for run in runs]
    rows = []
    for name in dict.fromkeys(key for fact in facts for key in fact):
        values = [fact.get(name) for fact in facts]
        if all(value is None for value in values):
            continue
        mark = ' class="differs"' if any(value != values[0] for value in values) else ""
        rows.append([escape(name), *(f"<td{mark}>{escape(str(value))}</td>" for value in values)])
    note = "<p>Framed: what differs between the runs.</p>" if len(runs) > 1 else ""
    return f"<h2>Options and versions</h2>{note}" + _table(
        ["", *(_named(run.label) for run in runs)], rows, "options and versions"
    )


def _commands(runs: Sequence[Shown]) -> str:
    lines = "\n".join(escape(shlex.join(run.record["command"])) for run in runs)
    return f"<h2>To repeat it</h2><pre><code>{lines}</code></pre>"
