"""The recipes' figures, drawn from their rows. matplotlib without pyplot: no window, nothing global changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from metagrad.recipes.convergence import COLD, SHRINKING, WARM, ConvergenceRow
from metagrad.recipes.heads import CurveRow
from metagrad.recipes.memory_compute import MemoryRow
from metagrad.recipes.meta_gradient_error import ErrorRow
from metagrad.recipes.network_error import NetworkRow
from metagrad.recipes.rates import RateRow, fits

# Told apart by lightness, by marker and by dash as well: for eyes and printers that see no colour.
_LIGHT, _MIDDLE, _DARK, _RED, _GREY = "#7fbfd6", "#2f86a6", "#123f50", "#c8553d", "#8a8a8a"
_ERRORS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("MAML", ""): ("MAML, unrolled", {"color": _RED, "linestyle": (0, (1, 1)), "linewidth": 2.4}),
    # Curves lie on each other where the linear system is solved: their markers take turns.
    ("iMAML", "2"): ("iMAML, 2 CG steps", {"color": _LIGHT, "marker": "^", "markevery": (0, 3)}),
    ("iMAML", "5"): ("5 CG steps", {"color": _MIDDLE, "marker": "s", "markevery": (1, 3)}),
    ("iMAML", "20"): ("20 CG steps", {"color": _DARK, "marker": "o", "markevery": (2, 3)}),
    ("iMAML", "solved"): ("CG until solved", {"color": _GREY, "linestyle": (0, (5, 2)), "linewidth": 1.2}),
}
_NETWORK: dict[str, dict[str, Any]] = {
    "Gauss-Newton, 5 CG steps": {"color": _DARK, "marker": "o"},
    "exact Hessian, 5 CG steps": {"color": _MIDDLE, "marker": "s", "linestyle": "--"},
    "exact Hessian, solved": {"color": _LIGHT, "marker": "^"},
    "first order": {"color": _RED, "marker": "v", "linestyle": (0, (1, 1))},
}
_SPECTRA = {"few": "five distinct eigenvalues", "spread": "eigenvalues spread log-uniformly"}
_MEMORY: dict[str, dict[str, Any]] = {
    "MAML": {"color": _RED, "marker": "v"},
    "MAML, checkpoints": {"color": _RED, "marker": "^", "linestyle": "--"},
    "MAML, last 5 steps": {"color": _RED, "marker": "", "linestyle": (0, (1, 1))},
    "iMAML, Hessian-free": {"color": _MIDDLE, "marker": "s", "linestyle": "--"},
    "iMAML, descent": {"color": _MIDDLE, "marker": "s"},
    "ANIL, recomputed": {"color": _GREY, "marker": "D", "linestyle": "--"},
    "ANIL": {"color": _GREY, "marker": "D"},
    "ITD-BiO, recomputed": {"color": _LIGHT, "marker": "P", "linestyle": "--"},
    "ITD-BiO": {"color": _LIGHT, "marker": "P"},
    "memory-reduced": {"color": _DARK, "marker": "o"},
}
_CONVERGENCE: dict[str, dict[str, Any]] = {
    WARM: {"color": _DARK, "linewidth": 1.6},
    COLD: {"color": _RED, "linestyle": (0, (1, 1)), "linewidth": 2.2},
    SHRINKING: {"color": _LIGHT, "linestyle": "--", "linewidth": 1.6},
}
_HEADS: dict[str, dict[str, Any]] = {
    "maml": {"color": _RED, "linestyle": (0, (1, 1)), "linewidth": 2.2},
    "anil": {"color": _GREY, "linestyle": "--", "linewidth": 1.6},
    "itd-bio": {"color": _LIGHT, "linewidth": 1.6},
    "memory-reduced": {"color": _DARK, "linewidth": 1.6},
    "memory-reduced-descent": {"color": _DARK, "linestyle": "-.", "linewidth": 1.4},
}
_RATES: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("MAML", "gradient descent"): ("MAML, gradient descent", {"color": _RED, "marker": "v"}),
    ("iMAML", "gradient descent"): ("iMAML, gradient descent + CG", {"color": _LIGHT, "marker": "s"}),
    ("MAML", "Nesterov"): ("MAML, Nesterov", {"color": _RED, "marker": "^", "linestyle": "--"}),
    ("iMAML", "Nesterov"): ("iMAML, Nesterov + CG", {"color": _DARK, "marker": "o"}),
}


def draw_errors(rows: Sequence[ErrorRow], caption: str) -> Figure:
    """Draw error against inner steps: a row of panels a spectrum, a column an inner solver."""
    spectra, solvers = (list(dict.fromkeys(getattr(row, key) for row in rows)) for key in ("spectrum", "solver"))
    figure = Figure(figsize=(8.4, 0.9 + 2.9 * len(spectra)), layout="constrained")
    panels = figure.subplots(len(spectra), len(solvers), sharex=True, sharey=True, squeeze=False)
    for axes, (spectrum, solver) in zip(panels.flat, ((a, b) for a in spectra for b in solvers), strict=True):
        here = [row for row in rows if (row.spectrum, row.solver) == (spectrum, solver)]
        for curve, (label, style) in _ERRORS.items():
            mine = [row for row in here if (row.method, row.cg) == curve]
            _curve(axes, mine, "inner_steps", "error", style, label)
            steps, lowest, highest = (
                [getattr(row, key) for row in mine] for key in ("inner_steps", "lowest", "highest")
            )
            axes.fill_between(steps, lowest, highest, color=style["color"], alpha=0.12, linewidth=0)
        _plain(axes)
        axes.set_title(f"{_SPECTRA.get(spectrum, spectrum)}, {solver}", fontsize=10)
    for axes in panels[:, 0]:
        axes.set_ylabel("relative error of the meta-gradient", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("inner steps", fontsize=9)
    _around(figure, panels[0, 0], caption, columns=len(_ERRORS))
    return figure


def draw_rates(rows: Sequence[RateRow], caption: str) -> Figure:
    """Draw gradient evaluations, with their fitted exponents, and iterates held, against the condition number."""
    figure = Figure(figsize=(8.4, 4.4), layout="constrained")
    work, memory = figure.subplots(1, 2)
    exponents = fits(rows)
    for curve, (label, style) in _RATES.items():
        mine = [row for row in rows if (row.method, row.solver) == curve]
        if (fit := exponents.get(curve)) is not None:
            label += f": κ^({fit.value:.3f} ± {fit.error:.3f})"
        _curve(work, mine, "kappa", "evaluations", {"markersize": 5, **style}, label)
        _curve(memory, mine, "kappa", "held", {"markersize": 5, **style})
    _plain(work, "condition number κ", "gradient evaluations")
    _plain(memory, "condition number κ", "inner iterates held for the way back")
    _around(figure, work, caption, columns=2)
    return figure


def draw_network(rows: Sequence[NetworkRow], caption: str) -> Figure:
    """Draw cosine with the accurate gradient and inner gradient norm against inner steps: a column a problem."""
    panels = list(dict.fromkeys((row.activation, row.lam) for row in rows))
    figure = Figure(figsize=(2.6 * len(panels) + 0.6, 5.2), layout="constrained")
    axes = figure.subplots(2, len(panels), sharex=True, sharey="row", squeeze=False)
    for (cosine, norm), (activation, lam) in zip(axes.T, panels, strict=True):
        here = [row for row in rows if (row.activation, row.lam) == (activation, lam)]
        for method, style in _NETWORK.items():
            _curve(cosine, [row for row in here if row.method == method], "inner_steps", "cosine", style, method)
        one = [row for row in here if row.method == here[0].method]
        _curve(
            norm, one, "inner_steps", "grad_norm", {"color": _DARK, "marker": "o", "markersize": 4, "linewidth": 1.5}
        )
        norm.axhline(max(one[0].reference_grad_norm, 1e-8), color=_GREY, linestyle=(0, (5, 2)), linewidth=1.2)
        cosine.set_title(f"{activation}, λ = {lam:g}", fontsize=10)
        cosine.axhline(0, color="#bbbbbb", linewidth=0.8)
        _plain(norm, "inner steps")
        _plain(cosine)
        cosine.set(yscale="linear", ylim=(-0.35, 1.05))  # its x axis is the norm's
    axes[0, 0].set_ylabel("cosine with the\naccurate meta-gradient", fontsize=9)
    axes[1, 0].set_ylabel("inner gradient norm\n(dashed: the accurate one's)", fontsize=9)
    _around(figure, axes[0, 0], caption, columns=4)
    return figure


def draw_memory(rows: Sequence[MemoryRow], caption: str) -> Figure:
    """Draw peak memory and time against inner steps: a column a network."""
    networks = list(dict.fromkeys(row.network for row in rows))
    figure = Figure(figsize=(8.4, 6.4), layout="constrained")
    panels = figure.subplots(2, len(networks), sharex=True, squeeze=False)
    for (memory, seconds), network in zip(panels.T, networks, strict=True):
        for method, style in _MEMORY.items():
            mine = [row for row in rows if (row.network, row.method) == (network, method)]
            _curve(memory, mine, "inner_steps", "megabytes", style, method)
            _curve(seconds, mine, "inner_steps", "seconds", style)
        memory.set_title(network, fontsize=10)
        _plain(memory)
        _plain(seconds, "inner steps")
    panels[0, 0].set_ylabel("peak tensor memory of\none meta-gradient, MB", fontsize=9)
    panels[1, 0].set_ylabel("seconds", fontsize=9)
    _around(figure, panels[0, 0], caption, columns=4)
    return figure


def draw_convergence(rows: Sequence[ConvergenceRow], caption: str) -> Figure:
    """Draw the squared error against meta-steps, and where it stays against the batch."""
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    steps, batches = figure.subplots(1, 2)
    for form, style in _CONVERGENCE.items():
        _curve(steps, [row for row in rows if row.form == form], "iteration", "error", style, form)
    fixed = [row for row in rows if row.form not in _CONVERGENCE]
    _curve(batches, fixed, "batch", "error", {"color": _DARK, "marker": "o", "markersize": 6})
    _plain(steps, "meta-steps", "relative squared error of theta")
    _plain(batches, "tasks a meta-step (sampled, steps of fixed length)")
    _around(figure, steps, caption, columns=3)
    return figure


def draw_heads(rows: Sequence[CurveRow], caption: str) -> Figure:
    """Draw validation accuracy against processor time."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for method, style in _HEADS.items():
        mine = [row for row in rows if row.method == method]
        if not mine:
            continue
        marker = "o" if len(mine) == 1 else ""  # a line of one point is not seen
        minutes, accuracy = [row.cpu_seconds / 60 for row in mine], [100 * row.accuracy for row in mine]
        axes.plot(minutes, accuracy, label=method, marker=marker, **style)
    _plain(axes, "processor minutes of training", "validation accuracy, %", scale="linear")
    _around(figure, axes, caption, columns=4)
    return figure


def save(figure: Figure, path: Path, form: str) -> None:
    """Write a figure as ``"png"`` or ``"svg"``; the same figure gives the same bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "metagrad"}):
        figure.savefig(path, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)


def _curve(axes: Axes, rows: Sequence[Any], x: str, y: str, style: Mapping[str, Any], label: str | None = None) -> None:
    """Draw a field of the rows against another."""
    look = {"linewidth": 1.6, "markersize": 4.5, **style}
    axes.plot([getattr(row, x) for row in rows], [getattr(row, y) for row in rows], label=label, **look)


def _plain(axes: Axes, x: str = "", y: str = "", *, scale: str = "log") -> None:
    """Label the axes, and leave out what says nothing."""
    axes.set(xscale=scale, yscale=scale)
    if x:
        axes.set_xlabel(x, fontsize=9)
    if y:
        axes.set_ylabel(y, fontsize=9)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _around(figure: Figure, axes: Axes, caption: str, *, columns: int) -> None:
    """Put the legend of ``axes`` above all panels, the caption below."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=columns, frameon=False,
                  fontsize=9, columnspacing=1.6, handlelength=2.8)  # fmt: skip
    figure.supxlabel(caption, fontsize=8, color="#555555")
