"""The report: one self-contained HTML file."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from metagrad.classifier.calibration import Calibration
from metagrad.report.episodes import Judged
from metagrad.report.figures import described, legend, panels, svg
from metagrad.report.quantities import chance_of, metric_of, metric_of_result, number, protocol_text, with_interval

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


def published(dataset: str, ways: int, shots: int) -> dict[str, str]:
    """Return the iMAML paper's accuracies in per cent, by method; empty if it has none for this size."""
    return _PUBLISHED.get(dataset, {}).get((ways, shots), {})


@dataclass(frozen=True)
class RunView:
    """A run as the page shows it.

    Attributes
    ----------
    label:
        its name on the page.
    about:
        its options, flat: name and value.
    record, lines, result, calibration:
        ``config.json``, ``metrics.jsonl``, ``result.json`` (may be empty), ``calibration.json`` if any.
    judged:
        result of :func:`metagrad.report.episodes.judge_tasks`; ``None`` if the data are not available.
    best_step:
        meta-step of the weights with the best validation, which the page shows; ``None`` before the first validation.
    """

    label: str
    about: dict[str, Any]
    record: dict[str, Any]
    lines: list[dict[str, Any]]
    result: dict[str, Any]
    calibration: Calibration | None
    judged: Judged | None
    best_step: int | None = None


def page(runs: Sequence[RunView]) -> str:
    """Return the whole page."""
    pages = Environment(
        loader=PackageLoader("metagrad.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    pages.filters["short"] = _short
    drawn = [(panel, described(panel), svg(panel)) for panel in panels([(run.label, run.lines) for run in runs])]
    metric, values = _values(runs)
    return pages.get_template("page.html").render(
        title="metagrad: " + ", ".join(run.label for run in runs),
        runs=runs,
        metric=metric,
        values=values,
        facts=_facts(runs),
        published=_published(runs),
        panels=[one for one in drawn if not one[0].more],
        more=[one for one in drawn if one[0].more],
        legend=legend,
        options=_options(runs),
        commands=[_command(run) for run in runs],
    )


def _values(runs: Sequence[RunView]) -> tuple[str, list[tuple[str, str]]]:
    """Return the metric of the results, and each run's value and interval."""
    metrics = dict.fromkeys(metric_of_result(run.result) for run in runs if run.result)
    values = []
    for run in runs:
        if not run.result:
            values.append(("not finished", ""))
            continue
        metric = metric_of_result(run.result)
        rest = f"± {number(metric, run.result['ci95'], 2)}" + (f", {metric}" if len(metrics) > 1 else "")
        values.append((number(metric, run.result["value"], 4), rest))
    return next(iter(metrics)) if len(metrics) == 1 else "result", values


def _facts(runs: Sequence[RunView]) -> list[tuple[str, list[str]]]:
    """Return the other rows of the results' table: those for which some run has an entry."""
    names = (
        "chance",
        "without a network",
        "without meta-training (nearest class mean of the frozen features)",
        "measured on",
        "weights",
        "validation accuracy, each image by itself",
        "calibration error",
        "training",
        "peak memory",
    )
    columns = []
    for run in runs:
        result, calibration = run.result, run.calibration
        last = next((line for line in reversed(run.lines) if "seconds" in line), None)
        chance = chance_of(metric_of_result(result), result["protocol"]) if result else None
        columns.append([
            "–" if chance is None else f"{100 * chance:.3g} %",
            _pixels(run.judged) if run.judged else "–",
            _gain(result["class_mean"]) if "class_mean" in result else "–",
            protocol_text(result["protocol"]) if result else str(run.about.get("dataset", run.about["tasks"])),
            _weights(run),
            number("accuracy", calibration.own.accuracy) if calibration else "–",
            _calibrated(calibration) if calibration else "–",
            f"{_duration(last['seconds'])}, {last['step']} meta-steps" if last else "–",
            f"{result['peak_memory_mb']:.0f} MB" if "peak_memory_mb" in result else "–",
        ])  # fmt: skip
    rows = [(name, list(cells)) for name, *cells in zip(names, *columns, strict=True)]
    return [(name, cells) for name, cells in rows if set(cells) != {"–"}]


def _gain(found: dict[str, Any]) -> str:
    gain = f"{100 * found['gain']:+.1f} ± {100 * found['gain_ci95']:.1f} points"
    return f"{number('accuracy', found['value'])}; meta-training changes it by {gain} on the same tasks"


def _pixels(judged: Judged) -> str:
    by, network = number("accuracy", judged.pixels), number("accuracy", judged.accuracy)
    same = f"the same {judged.tasks} validation tasks"
    return f"{by}, by the nearest class mean of the pixels; the network has {network} on {same}"


def _calibrated(calibration: Calibration) -> str:
    own = calibration.own
    return f"{number('accuracy', own.ece)} ({number('accuracy', own.ece_before)} before temperature scaling)"


def _weights(run: RunView) -> str:
    """Return the meta-step of the weights that the page shows, and how validation went on after it."""
    validated = [line for line in run.lines if "val_ci95" in line]
    best = next((line for line in validated if line["step"] == run.best_step), None)
    if best is None:
        return "–"

    def score(line: dict[str, Any]) -> str:
        metric = metric_of(line)
        return f"{metric.replace('_', ' ')} {with_interval(metric, line[f'val_{metric}'], line['val_ci95'])}"

    text, last = f"meta-step {best['step']}, the best validation ({score(best)})", validated[-1]
    return text if last["step"] == best["step"] else f"{text}; at meta-step {last['step']} {score(last)}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _published(runs: Sequence[RunView]) -> list[tuple[str, int, int, dict[str, str]]]:
    tables = []
    for about in (run.about for run in runs):
        name, ways, shots = str(about.get("dataset")), about.get("ways", 0), about.get("shots", 0)
        numbers = published(name, ways, shots)
        if numbers and (name, ways, shots, numbers) not in tables:
            tables.append((name, ways, shots, numbers))
    return tables


def _short(name: str) -> str:
    """Return a class's name with its last folder; a character's name without its code point.

    Examples
    --------
    >>> _short("images_evaluation/Atlantean/character01"), _short("Armenian/U+0533 ARMENIAN CAPITAL LETTER GIM")
    ('Atlantean/character01', 'Armenian capital letter gim')
    """
    character = re.search(r"(?:^|/)U\+[0-9A-F]{4,6} ([^/]+)$", name)
    return character[1].capitalize() if character else "/".join(name.split("/")[-2:])


def _options(runs: Sequence[RunView]) -> list[tuple[str, list[str], bool]]:
    """Return rows of options: the name, its value in each run, and whether the values differ."""
    facts = [{**run.about, **run.record["versions"]} for run in runs]
    rows = []
    for name in dict.fromkeys(key for fact in facts for key in fact):
        values = [fact.get(name) for fact in facts]
        if any(value is not None for value in values):
            rows.append((name, [str(value) for value in values], any(value != values[0] for value in values)))
    return rows


def _command(run: RunView) -> str:
    """Return how to repeat a run: its command, or a program if it was started from Python."""
    if run.record["command"]:
        return shlex.join(run.record["command"])
    experiment = run.record["experiment"]
    if isinstance(experiment["network"], dict) and "module" in experiment["network"]:
        return f"# {run.label!r} was started from Python, with a module as its network: run that program again"
    named = set(re.findall(r'"([^\W\d][\w.]*:[^\W\d][\w.]*)"', json.dumps(experiment, ensure_ascii=False)))
    code = sorted(name for name in named if not name.startswith(("metagrad:", "metagrad.", "torch.nn")))
    return (
        f"# {run.label!r} was started from Python\nfrom metagrad import Run, train\n"
        f"train(Run.open({run.label!r}{f', code={code!r}' if code else ''}).experiment, {f'{run.label}-again'!r})"
    )
