"""Curves of runs as SVG in the page's colours; a task as a figure."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

from metagrad.report.quantities import Quantity, metric_of, quantities

if TYPE_CHECKING:
    from metagrad.report.episodes import Row

# Readable on white and on black; dashes tell runs apart where colour does not.
_COLOURS = ("#2f86a6", "#c8553d", "#5f9e4a", "#a0709c", "#8a8a8a")
_DASHES: Sequence[tuple[float, ...]] = ((), (4, 2), (1, 1), (6, 2, 1, 2), (8, 1))
_INK = "#010203"  # used by nothing else; replaced by the page's text colour
_NONE = 1e30  # larger values cannot be drawn
_POINTS = 600  # of a curve: more than a screen resolves, and the page stays small


@dataclass(frozen=True)
class Curve:
    """One run's line: meta-steps, values, and half widths of their 95 % intervals where there are any.

    ``run`` is the index of the run on the page; a run has the same colour and dashes in every figure.
    """

    label: str
    steps: list[float]
    values: list[float]
    ci95: list[float] | None = None
    run: int = 0


@dataclass(frozen=True)
class Panel:
    """What a figure shows; ``more``: the page folds it in."""

    title: str
    unit: str
    curves: list[Curve]
    log: bool = False
    more: bool = False


def panels(runs: Sequence[tuple[str, list[dict[str, Any]]]]) -> list[Panel]:
    """Return the figures that the runs' metrics make, ``(label, lines)`` each: one for each key that has numbers."""
    drawn = [_panel(one, runs) for one in quantities([line for _, lines in runs for line in lines])]
    return [panel for panel in drawn if any(value != 0 for curve in panel.curves for value in curve.values)]


def _panel(quantity: Quantity, runs: Sequence[tuple[str, list[dict[str, Any]]]]) -> Panel:
    key, scale, curves = quantity.key, quantity.scale, []
    for number, (label, lines) in enumerate(runs):
        points = [(line["step"], line[key] * scale, line) for line in lines if abs(line.get(key, _NONE)) < _NONE]
        if not points or (quantity.log and not any(value for _, value, _ in points)):  # a method without this solve
            continue
        ci = [line.get("val_ci95", 0.0) * scale for *_, line in points if key == f"val_{metric_of(line)}"]
        steps, values = [step for step, *_ in points], [value for _, value, _ in points]
        curves.append(_thinned(Curve(label, steps, values, ci if len(ci) == len(points) else None, number)))
    return Panel(quantity.title, quantity.unit, curves, quantity.log, quantity.more)


def _thinned(curve: Curve) -> Curve:
    """Average neighbours so that few enough points are left."""
    size = -(-len(curve.steps) // _POINTS)
    if size == 1 or curve.ci95 is not None:
        return curve

    def means(values: list[float]) -> list[float]:
        parts = [values[first : first + size] for first in range(0, len(values), size)]
        return [sum(part) / len(part) for part in parts]

    return Curve(curve.label, means(curve.steps), means(curve.values), run=curve.run)


def svg(panel: Panel) -> str:
    """Draw a panel; the text is text, and black is ``currentColor``."""
    figure = Figure(figsize=(6.2, 3.0))
    axes = figure.add_axes((0.17, 0.17, 0.81, 0.8))  # a layout engine would draw everything twice
    for curve in panel.curves:
        color, dashes = _style(curve.run)
        marker, line = "o" if len(curve.steps) == 1 else "", (0, dashes) if dashes else "-"
        axes.plot(curve.steps, curve.values, linewidth=1.6, marker=marker, color=color, linestyle=line)
        if curve.ci95 is not None:
            low, high = (
                [value + sign * ci for value, ci in zip(curve.values, curve.ci95, strict=True)] for sign in (-1, 1)
            )
            alpha = 0.2 / len(panel.curves) ** 0.5  # where many lie over each other the lines are still seen
            axes.fill_between(curve.steps, low, high, color=color, alpha=alpha, linewidth=0)
    values = [value for curve in panel.curves for value in curve.values]
    if panel.log and min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
    axes.set_xlabel("meta-step", color=_INK)
    axes.set_ylabel(panel.unit, color=_INK)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK, which="both")
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "metagrad"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _embedded(text.getvalue(), panel.title)


def _style(run: int) -> tuple[str, tuple[float, ...]]:
    """Return a colour and dashes; 25 runs have different ones."""
    return _COLOURS[run % len(_COLOURS)], _DASHES[(run + run // len(_COLOURS)) % len(_DASHES)]


def legend(run: int) -> str:
    """Return a piece of a run's line as SVG."""
    color, dashes = _style(run)
    spaced = " ".join(f"{1.6 * length:g}" for length in dashes)
    return (
        '<svg class="line" width="40" height="8" aria-hidden="true"><line x1="0" y1="4" x2="40" y2="4" '
        f'stroke="{color}" stroke-width="2.4" stroke-dasharray="{spaced}"/></svg>'
    )


def _embedded(text: str, title: str) -> str:
    """Return the ``<svg>`` element alone, its names its own, as wide as the page lets it be."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S).replace(_INK, "currentColor")
    prefix = "f" + "".join(char if char.isalnum() else f"{ord(char):x}" for char in title.lower() if char != " ")
    body = re.sub(r'id="([^"]+)"', rf'id="{prefix}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", body)
    body = re.sub(r'xlink:href="#([^"]+)"', rf'xlink:href="#{prefix}-\1"', body)
    body = re.sub(r"font: ([0-9.]+px) [^;\"]+", r"font: \1 system-ui, sans-serif", body)
    body = re.sub(r'(<svg [^>]*?)height="[^"]*" ?', r"\1", body, count=1)
    return re.sub(r'(<svg [^>]*?)width="[^"]*" ?', r'\1aria-hidden="true" ', body, count=1)


def task_figure(rows: Sequence[Row]) -> Figure:
    """Draw a task, one class a row: its support images, then its query images with their predictions."""
    wide = max(len(row.support) + len(row.query) for row in rows)
    figure = Figure(figsize=(1.15 * wide, 1.3 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), wide, squeeze=False)
    for axis in grid.flat:
        axis.set_axis_off()
    for row, axes in zip(rows, grid, strict=True):
        cells = [(picture, "support", "#8a8a8a") for picture in row.support]
        cells += [
            (prediction.picture,
             f"{'✓' if prediction.right else prediction.label[-14:]} {100 * prediction.probability:.0f} %",
             "#5f9e4a" if prediction.right else "#c8553d")
            for prediction in row.query
        ]  # fmt: skip
        for axis, (picture, title, color) in zip(axes, cells, strict=False):
            pixels = Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))).convert("RGB")
            axis.imshow(pixels)
            axis.set_axis_on()
            axis.set(xticks=[], yticks=[])
            axis.set_title(title, fontsize=7, color=color, parse_math=False)
            for side in axis.spines.values():
                side.set(color=color, linewidth=2.5)
        axes[0].set_ylabel(row.name[-14:], fontsize=7, parse_math=False)
    return figure


def described(panel: Panel) -> str:
    """Return what a panel shows in words, for readers who cannot see it."""
    unit = f" {panel.unit}" if panel.unit else ""

    def words(curve: Curve) -> str:
        first, last, least, greatest = (
            f"{value:.3g}{unit}" for value in (curve.values[0], curve.values[-1], min(curve.values), max(curve.values))
        )
        return (
            f"{curve.label}: from {first} at meta-step {curve.steps[0]:.0f} to {last} at {curve.steps[-1]:.0f}; "
            f"minimum {least}, maximum {greatest}"
        )

    return "; ".join(words(curve) for curve in panel.curves)
